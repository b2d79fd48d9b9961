"""Detectors from anomalib's checkpoints and back; only tensors are read.

    python scripts/convert_detector.py --source model.ckpt --model patchcore --backbone resnet18 --image-size 256 256
    python scripts/convert_detector.py --source runs/x/checkpoint.pt --to anomalib

The first writes model.pt, which `anomaly_lib.load` and evaluate.py take, and model_backbone.safetensors beside it. The
options of the detector say what the checkpoint's hyper-parameters were.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, Preset, arg, default_of, given_options, override, shown, to_plain
from anomaly_lib.errors import OptionError, UserError, reason_of
from anomaly_lib.files import atomic_file, write_atomic
from anomaly_lib.models.detectors.registry import Entry, entry_of
from anomaly_lib.options import BackboneArgs, DataArgs
from anomaly_lib.systems.detectors.options import DetectorArgs, ModelArgs
from anomaly_lib.systems.registry import SYSTEMS

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Args(ModelArgs):
    """A checkpoint and what it becomes."""

    source: Optional[str] = arg(None, "checkpoint to read", type=str)
    to: str = arg("here", "whose format to write", choices=["here", "anomalib"])
    write_to: Optional[str] = arg(None, "file to write; None = beside the source, ending in .pt or .ckpt", type=str)
    weights: Optional[str] = override(
        BackboneArgs, "weights", help="weight file of the frozen network, if it has moved", needs={"to": "anomalib"}
    )
    backbone: str = override(BackboneArgs, "backbone")
    protocol: str = override(DetectorArgs, "protocol")
    dataset: str = override(DataArgs, "dataset", help="layout of the data it was trained on, for evaluate.py")
    data_path: Optional[str] = override(
        DataArgs, "data_path", help="folder of that data; None = the built-in demo data"
    )

    @classmethod
    def parts_of(cls, entry: Entry) -> list[type[Options]]:  # noqa: ARG003 - nothing is trained here
        return []

    def check(self) -> None:
        usual = {f.name: default_of(f) for f in fields(self)} | self.implied({})
        if self.backbone != usual["backbone"] and not entry_of(self.model).frozen:
            raise OptionError(f"backbone={self.backbone}: has no effect, {self.model} reads no frozen network")

    @classmethod
    def presets_of(cls, entry: Entry) -> tuple[Preset, ...]:  # noqa: ARG003
        return (Preset(when={"to": "here"}, then={"upsample": "nearest", "rows": "raw"}),)  # what anomalib computes


READING = ("source", "to", "write_to", "weights")  # options that mean something for one of our checkpoints


def refuse_options_of_writing(args: Args) -> None:
    """One of our checkpoints says itself what it is."""
    for name in sorted(given_options(args) - set(READING)):
        raise OptionError(f"{name}={shown(getattr(args, name))}: has no effect without to=here, the checkpoint says it")


def from_anomalib(source: Path, output: Path, args: Args) -> None:
    """Write the tensors of an anomalib checkpoint as one of ours, with anomalib's image threshold as its decision."""
    import torch

    from anomaly_lib.backbones.identity import weights_of
    from anomaly_lib.backbones.weights import read_torch_file
    from anomaly_lib.detect.decision import Decision
    from anomaly_lib.engine.checkpoint import save_checkpoint
    from anomaly_lib.models.detectors.anomalib_keys import load_anomalib
    from anomaly_lib.systems.detectors.build import TrainedPart, build

    content = read_torch_file(source)
    options = SYSTEMS["detectors"].Args.from_saved(to_plain(args))
    frozen = entry_of(options.model).frozen
    detector = build(replace(options, weights="random") if frozen else options, torch.device("cpu"))
    try:
        found = load_anomalib(detector, content.get("state_dict", content) if isinstance(content, dict) else {})
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{source}: not an anomalib checkpoint of model={options.model}, or one of other sizes ({reason_of(error)})"
        ) from None
    if frozen:
        options = replace(options, weights=write_backbone(detector, output))
    weights = weights_of(build(options, torch.device("cpu")))  # read back, as loading will find it
    decision = Decision.of(found.get("image_threshold", float("nan")), "image threshold of the anomalib checkpoint")
    plain = None if decision is None else decision.plain()
    payload = {
        "args": to_plain(options), "model": TrainedPart(detector).state_dict(), "epoch": 0, "history": [],
        "extra": {"decision": plain, "source": source.name, "weights": weights},
    }  # fmt: skip
    save_checkpoint(output, payload, system="detectors")


def write_backbone(detector: "nn.Module", output: Path) -> str:
    """The frozen network's tensors beside the checkpoint."""
    from safetensors.torch import save

    from anomaly_lib.models.detectors.anomalib_keys import backbone_state

    path = output.with_name(f"{output.stem}_backbone.safetensors")
    content = save({name: tensor.contiguous().clone() for name, tensor in backbone_state(detector).items()})
    write_atomic(path, lambda stream: stream.write(content))
    return str(path)


def to_their_file(source: Path, output: Path, weights: str | None) -> None:
    """Write the tensors of one of our checkpoints under anomalib's names."""
    import torch

    from anomaly_lib.models.detectors.anomalib_keys import to_anomalib
    from anomaly_lib.systems.detectors.detector import load

    checkpoint = SYSTEMS.read(source)
    if checkpoint.system != "detectors":
        raise UserError(
            f"{source}: a checkpoint of {checkpoint.system}; only classical detectors have anomalib's names"
        )
    detector = load(checkpoint, device="cpu", weights=weights)
    with atomic_file(output) as stream:
        torch.save({"state_dict": to_anomalib(detector.model)}, stream)


def run(args: Args) -> None:
    if args.source is None:
        raise UserError("give source=, the checkpoint to convert")
    source = Path(args.source)
    if not source.is_file():
        raise UserError(f"source={source}: no such file")
    output = (
        Path(args.write_to)
        if args.write_to is not None
        else source.with_suffix(".pt" if args.to == "here" else ".ckpt")
    )
    if output.resolve() == source.resolve():
        raise UserError(f"{output}: would overwrite its source; give another write_to=")
    if args.to == "here":
        from_anomalib(source, output, args)
    else:
        refuse_options_of_writing(args)
        to_their_file(source, output, args.weights)
    print(f"written: {output}")


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, run, argv, prog="convert_detector.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
