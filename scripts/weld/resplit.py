"""Give a weld manifest new splits, whole configurations together; the old file is kept as manifest.csv.backup.

python scripts/weld/resplit.py DIR --train-ratio 0.8 [--unsupervised] [--seed 42]
"""

import csv
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly_lib.bare_words import name_bare_words
from anomaly_lib.command_line import command
from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.errors import OptionError
from anomaly_lib.files import atomic_file


@dataclass
class Args(Options):
    """The new splits."""

    data_path: str = arg("", "folder with manifest.csv; may stand without the flag")
    train_ratio: float = arg(0.8, "share of the runs that trains")
    unsupervised: Switch = arg(False, "train on good welds only")
    seed: int = arg(42, "seed of the order of configurations", at_least=0)

    def check(self) -> None:
        if not self.data_path:
            raise OptionError("give data_path=, the folder with manifest.csv")
        if not 0 < self.train_ratio < 1:
            raise OptionError(f"train_ratio={self.train_ratio}: must lie between 0 and 1")


def resplit(args: Args) -> None:
    """Rewrite <DIR>/manifest.csv."""
    from anomaly_lib.systems.weld.data.manifest import SPLITS, assign_splits, read_manifest

    root = Path(args.data_path)
    runs = assign_splits(
        read_manifest(root), seed=args.seed, train_ratio=args.train_ratio, supervised=not args.unsupervised
    )
    path = root / "manifest.csv"
    if path.is_file():
        shutil.copy2(path, root / "manifest.csv.backup")
    with atomic_file(path, "w") as stream:
        writer = csv.writer(stream)
        writer.writerow(("CATEGORY", "DIRECTORY", "SUBDIRS", "SPLIT"))
        for run in runs:
            writer.writerow((run.class_name, run.group, run.folder.relative_to(root).as_posix(), run.split.upper()))
    print(f"{path}: { ({split: sum(run.split == split for run in runs) for split in SPLITS}) }")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, rewrite, leave with an exit code."""
    words = name_bare_words(sys.argv[1:] if argv is None else argv, Args, ["data_path"])
    return command(Args, resplit, words, prog="resplit.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
