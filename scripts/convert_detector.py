"""Detectors from anomalib's checkpoints and back; only tensors are read.

    python scripts/convert_detector.py --source model.ckpt --model patchcore --backbone resnet18 --image-size 256 256
    python scripts/convert_detector.py --source runs/x/checkpoint.pt --to anomalib

The first writes model.pt, which `anomaly_lib.load` and evaluate.py take, and model_backbone.safetensors beside it. The
options of train_detector.py say what the checkpoint's hyper-parameters were.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Optional

import torch
from safetensors.torch import save
from torch import nn

from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.config import arg, command, to_plain
from anomaly_lib.engine.checkpoint import save_checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.files import atomic_file, write_atomic
from anomaly_lib.models.detectors.anomalib_keys import backbone_state, load_anomalib, to_anomalib
from anomaly_lib.systems.detectors.build import TrainedPart, build
from anomaly_lib.systems.detectors.options import resolve
from anomaly_lib.systems.detectors.train import SYSTEM, load_detector
from anomaly_lib.systems.detectors.train import Args as DetectorOptions


@dataclass
class Args(DetectorOptions):
    """A checkpoint and what it becomes."""

    source: Optional[str] = arg(None, "checkpoint to read", type=str)
    to: str = arg("here", "whose format to write", choices=["here", "anomalib"])
    write_to: Optional[str] = arg(None, "file to write; None = beside the source, ending in .pt or .ckpt", type=str)


def from_anomalib(source: Path, output: Path, args: Args) -> None:
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  (torch raises many kinds; all mean the file cannot be used)
        raise UserError(f"{source}: not readable as tensors and plain types ({str(error)[:100]})") from None
    options = resolve(DetectorOptions(**{f.name: getattr(args, f.name) for f in fields(DetectorOptions)}))
    detector = build(replace(options, weights="random"), torch.device("cpu"))
    try:
        found = load_anomalib(detector, content.get("state_dict", content))
    except (ValueError, KeyError) as error:
        raise UserError(f"{source}: not an anomalib checkpoint of --model {options.model}: {error}") from None
    options = replace(options, weights=write_backbone(detector, output))
    frozen = weights_of(build(options, torch.device("cpu")))  # read back, as loading will find it
    payload = {
        "args": to_plain(options), "model": TrainedPart(detector).state_dict(), "epoch": 0, "history": [],
        "extra": {
            "model": options.model, "threshold": found.get("image_threshold"), "source": source.name, "weights": frozen,
        },
    }  # fmt: skip
    save_checkpoint(output, payload, system=SYSTEM)


def write_backbone(detector: nn.Module, output: Path) -> str | None:
    """The frozen network's tensors beside the checkpoint; None for DRAEM, which has none."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in backbone_state(detector).items()}
    if not tensors:
        return None
    path = output.with_name(f"{output.stem}_backbone.safetensors")
    content = save(tensors)
    write_atomic(path, lambda stream: stream.write(content))
    return str(path)


def run(args: Args) -> None:
    if args.source is None:
        raise UserError("--source is needed: the checkpoint to convert")
    source = Path(args.source)
    if not source.is_file():
        raise UserError(f"--source {source}: no such file")
    output = Path(args.write_to) if args.write_to else source.with_suffix(".pt" if args.to == "here" else ".ckpt")
    if output.resolve() == source.resolve():
        raise UserError(f"{output}: would overwrite its source; give another --write-to")
    if args.to == "here":
        from_anomalib(source, output, args)
    else:
        detector = load_detector(source, device="cpu", weights=args.weights)
        with atomic_file(output) as stream:
            torch.save({"state_dict": to_anomalib(detector.model)}, stream)
    print(f"written: {output}")


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, run, argv, prog="convert_detector.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
