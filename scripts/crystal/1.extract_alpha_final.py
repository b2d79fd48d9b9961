"""The gate of every atom (alpha, mean over channels; large = much text) of a trained model, as alpha_values.npz."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.errors import UserError
from anomaly_lib.files import write_atomic


@dataclass
class ExtractArgs(Options):
    """Gates of a sample of crystals."""

    checkpoint: str = arg("", "checkpoint file, e.g. best_model.pt")
    data_path: Optional[str] = arg(
        None, "folder of the data; None = that of the training run", type=str, aliases=["root-dir"]
    )
    output: str = arg("alpha_values.npz", "file to write: alphas, atom_types, offsets, targets, jids, property")
    n_samples: int = arg(500, "crystals", at_least=2)
    batch_size: int = arg(16, "crystals at a time", at_least=1)
    dataset: Optional[str] = arg(None, "layout of the data; None = that of the training run", type=str)
    property: Optional[str] = arg(None, "property folder; None = that of the training run", type=str)
    part: str = arg("all", "which crystals", choices=["all", "train", "val", "test"])
    layer: Optional[str] = arg(None, "fusion module, e.g. layer_2; None = the first", type=str)


def extract(args: ExtractArgs) -> None:
    """Measure, print, save."""
    if not args.checkpoint:
        raise UserError("give checkpoint=")
    import numpy as np

    from anomaly_lib.systems.crystal.diagnosis import extract_alphas, sample_positions, trained_model

    detector = trained_model(args.checkpoint)
    wanted = {"dataset": args.dataset, "property": args.property}
    data = detector.load_data(args.data_path, **{name: value for name, value in wanted.items() if value})
    positions = sample_positions(data, args.n_samples, args.part)
    found = extract_alphas(detector, data, positions, layer=args.layer, batch_size=args.batch_size)
    values = found.alphas
    quarter, half, three = np.quantile(values, [0.25, 0.5, 0.75])
    print(f"{len(found.targets)} crystals, {len(values)} atoms")
    print(f"alpha: mean {values.mean():.4f}, std {values.std():.4f}, min {values.min():.4f}, max {values.max():.4f}")
    print(f"quartiles: {quarter:.4f}, {half:.4f}, {three:.4f}")
    if values.std() < 0.05:
        print("std below 0.05: a mean over many channels hardly varies; look at the spread over channels as well")
    label = args.property or detector.args.property
    write_atomic(args.output, lambda stream: np.savez(stream, **vars(found), property=np.array(label)))
    print(f"written: {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    return command(ExtractArgs, extract, argv, prog="1.extract_alpha_final.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
