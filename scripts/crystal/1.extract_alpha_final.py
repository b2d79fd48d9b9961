"""The gate of every atom (alpha, mean over channels; large = much text) of a trained model, as alpha_values.npz."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import arg, override
from anomaly_lib.errors import UserError
from anomaly_lib.files import write_atomic
from anomaly_lib.systems.crystal.sample import SampleArgs


@dataclass
class ExtractArgs(SampleArgs):
    """Gates of a sample of crystals."""

    checkpoint: str = arg("", "checkpoint file, e.g. best_model.pt; also one of an original program")
    output: str = arg(
        "alpha_values.npz",
        "file to write: alphas, atom_types, offsets, targets, jids, property, layer; alphas_layer_3 of further layers",
    )
    n_samples: int = override(SampleArgs, "n_samples", 500)
    batch_size: int = arg(16, "crystals at a time", at_least=1)
    layer: Optional[str] = arg(None, "this fusion module only, e.g. layer_2; None = all", type=str)


def extract(args: ExtractArgs) -> None:
    """Measure, print, save."""
    if not args.checkpoint:
        raise UserError("give checkpoint=")
    import numpy as np

    from anomaly_lib.systems.crystal.diagnosis import extract_alphas, open_sample

    detector, data, positions = open_sample(args.checkpoint, args)
    found = extract_alphas(detector, data, positions, batch_size=args.batch_size)
    if args.layer is not None:
        if args.layer not in found:
            raise UserError(f"layer={args.layer}: this model has {', '.join(found)}")
        found = {args.layer: found[args.layer]}
    first, *others = found
    print(f"{len(found[first].targets)} crystals, {len(found[first].alphas)} atoms")
    for layer, one in found.items():
        values = one.alphas
        quarter, half, three = np.quantile(values, [0.25, 0.5, 0.75])
        spread = f"std {values.std():.4f}, min {values.min():.4f}, max {values.max():.4f}"
        print(f"{layer}: alpha: mean {values.mean():.4f}, {spread}")
        print(f"  quartiles: {quarter:.4f}, {half:.4f}, {three:.4f}")
        if values.std() < 0.05:
            print("  std below 0.05: a mean over many channels hardly varies; look at the spread over channels as well")
    beside = {"property": np.array(args.property or detector.args.property), "layer": np.array(first)}
    beside |= {f"alphas_{layer}": found[layer].alphas for layer in others}
    write_atomic(args.output, lambda stream: np.savez(stream, **vars(found[first]), **beside))
    print(f"written: {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    return command(ExtractArgs, extract, argv, prog="1.extract_alpha_final.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
