"""Checkpoints of PromptAD's authors to ours and back; only tensors are read.

    python scripts/promptad/convert_checkpoint.py --source CLS-Seed_111-bottle-check_point.pt --data-path MVTEC
    python scripts/promptad/convert_checkpoint.py --source cls_checkpoint.pth --to original

The first writes bottle_cls.pth (theirs also open as they are; converted they know their data, and may come from any
CLIP: --backbone, --shot), the second CLS-Seed_111-bottle-check_point.pt, which their test_cls.py reads.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg, given_options, override, shown
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.files import atomic_file
from anomaly_lib.systems.promptad.options import Args
from anomaly_lib.systems.registry import SYSTEMS

OURS = {"to": "here"}


@dataclass
class ConvertArgs(Options):
    """A PromptAD checkpoint and what it becomes."""

    source: Optional[str] = arg(None, "checkpoint to read", type=str)
    to: str = arg("here", "whose format to write", choices=["here", "original"])
    write_to: Optional[str] = arg(None, "file to write; None = beside the source, by the usual name", type=str)
    task: Optional[str] = arg(None, "cls or seg; None = as its name says", type=str, choices=["cls", "seg"], needs=OURS)
    obj: Optional[str] = override(Args, "obj", help="class it was trained on; None = as its name says", needs=OURS)
    seed: Optional[int] = arg(None, "seed of its training; None = as its name says", type=int, at_least=0, needs=OURS)
    shot: Optional[int] = arg(
        None, "images it remembers; None = by the original's 225 patches an image", type=int, at_least=1, needs=OURS
    )
    backbone: Optional[str] = arg(
        None, "the CLIP behind it; None = by the width of its memory one of the original's two", type=str, needs=OURS
    )
    image_size: list[int] = override(Args, "image_size", [240], needs=OURS)
    dataset: str = override(Args, "dataset", "mvtec", help="layout of its data, for evaluate.py", needs=OURS)
    data_path: Optional[str] = override(Args, "data_path", help="folder of its data, for evaluate.py", needs=OURS)


def to_ours(args: ConvertArgs, source: Path) -> tuple[str, Any]:
    """File name and content of their checkpoint as one of ours."""
    from anomaly_lib.backbones.weights import read_torch_file
    from anomaly_lib.systems.promptad.released import adopt

    content = read_torch_file(source)
    said = {name: getattr(args, name) for name in ("task", "seed", "shot", "backbone")} | {"class_name": args.obj}
    options = {"image_size": args.image_size, "dataset": args.dataset, "data_path": args.data_path}
    found = adopt(content, source, said=said, **options) if isinstance(content, dict) else None
    if found is None:
        raise UserError(f"{source}: not a checkpoint of PromptAD's authors; to=original converts one of ours")
    return f"{found.args['obj']}_{found.args['task']}.pth", found.content


def to_theirs(args: ConvertArgs, source: Path) -> tuple[str, Any]:
    """File name and content of one of our checkpoints as one of theirs."""
    from anomaly_lib.systems.promptad.released import to_original

    for name in sorted(given_options(args) - {"source", "to", "write_to"}):
        raise OptionError(f"{name}={shown(getattr(args, name))}: has no effect, the checkpoint says it")
    checkpoint = SYSTEMS.read(source)
    if checkpoint.system != "promptad" or checkpoint.adopted:
        raise UserError(f"{source}: not a PromptAD checkpoint of this library")
    return to_original(checkpoint)


def run(args: ConvertArgs) -> None:
    """Write the other form of the checkpoint."""
    import torch

    if args.source is None:
        raise UserError("give source=, the checkpoint to convert")
    source = Path(args.source)
    if not source.is_file():
        raise UserError(f"source={source}: no such file")
    name, content = (to_ours if args.to == "here" else to_theirs)(args, source)
    output = source.with_name(name) if args.write_to is None else Path(args.write_to)
    if output.resolve() == source.resolve():
        raise UserError(f"{output}: would overwrite its source; give another write_to=")
    with atomic_file(output) as stream:
        torch.save(content, stream)
    print(f"written: {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, convert, leave with an exit code."""
    return command(ConvertArgs, run, argv, prog="convert_checkpoint.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
