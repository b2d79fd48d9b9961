"""A checkpoint of the original crystal programs as one of ours: the same weights, the same predictions.

    python scripts/crystal/convert_checkpoint.py --input best_test_model.pt --output ours.pt

ALIGNN, CrysMMNet and the programs that grew from it are read, as {"model": ...} or a bare state dict. Sizes follow from
the tensors; the rest from --config_file, the configuration pickled into the file (its values are read, nothing of it is
run) or a config.json beside it. All tools open such files as they are; converting adds what the file cannot tell.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json


@dataclass
class ConvertArgs(Options):
    """A checkpoint of theirs and what it becomes."""

    input: str = arg("", "checkpoint of an original program")
    output: str = arg("", "checkpoint to write")
    config_file: Optional[str] = arg(None, "configuration of the run, as their config.json has it", type=str)
    data_path: Optional[str] = arg(None, "folder of the data it was trained on", type=str, aliases=["root-dir"])
    dataset: Optional[str] = arg(None, "layout of that data; None = jarvis", type=str)
    property: Optional[str] = arg(
        None, "property it predicts; None = the name of a run's folder, else that of their tools", type=str
    )
    weights: Optional[str] = arg(None, "folder of the text encoder, MatSciBERT", type=str, aliases=["text-weights"])


def convert(args: ConvertArgs) -> None:
    """Read, say what was found, write."""
    if not args.input or not args.output:
        raise UserError("give input= and output=")
    from anomaly_lib.backbones.weights import read_torch_file
    from anomaly_lib.config import given_options
    from anomaly_lib.engine.checkpoint import is_ours, save_checkpoint, verify_records
    from anomaly_lib.systems.crystal.detector import load
    from anomaly_lib.systems.crystal.released import adopt

    source, output = Path(args.input), Path(args.output)
    if not source.is_file():
        raise UserError(f"input={source}: no such file")
    if source.resolve() == output.resolve():
        raise UserError(f"output={output}: would overwrite its source")
    verify_records(source)
    content = read_torch_file(source)
    if is_ours(content):
        raise UserError(f"input={source}: a checkpoint of this library already")
    config = None if args.config_file is None else read_json(Path(args.config_file))
    if not isinstance(config, (dict, NoneType)):
        raise UserError(f"config_file={args.config_file}: expected a JSON object of settings")
    names = given_options(args) & {"data_path", "dataset", "property", "weights"}
    settings = {name: getattr(args, name) for name in names}
    checkpoint = adopt(content, source, config, **settings) if isinstance(content, dict) else None
    if checkpoint is None:
        raise UserError(f"input={source}: not a checkpoint of the original crystal programs")
    detector = load(checkpoint, device="cpu")
    print(f"{detector.model}, {detector.args.property}, epoch {checkpoint['epoch']}")
    for remark in detector.facts.remarks():
        print(remark)
    save_checkpoint(output, checkpoint.content, system="crystal")
    print(f"written: {output}")
    data = " --data-path DATA" if args.data_path is None else ""
    print(f"next: python evaluate.py --checkpoint {output}{data}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    return command(ConvertArgs, convert, argv, prog="convert_checkpoint.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
