"""Give a weld manifest new splits, whole configurations together; the old file is kept as manifest.csv.backup.

python scripts/weld/resplit.py DIR --train-ratio 0.8 [--unsupervised] [--seed 42]
"""

import argparse
import csv
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_lib.errors import UserError
from anomaly_lib.files import atomic_file
from anomaly_lib.systems.weld.data.manifest import assign_splits, read_manifest


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite <DIR>/manifest.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder with manifest.csv")
    parser.add_argument("--train-ratio", type=float, default=0.8)
    parser.add_argument("--unsupervised", action="store_true", help="train on good welds only")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    root = Path(args.data)
    try:
        if not 0 < args.train_ratio < 1:
            raise UserError(f"--train-ratio must lie between 0 and 1, got {args.train_ratio}")
        runs = assign_splits(
            read_manifest(root), seed=args.seed, train_ratio=args.train_ratio, supervised=not args.unsupervised
        )
    except UserError as error:
        sys.stderr.write(f"resplit.py: {error}\n")
        return 2
    path = root / "manifest.csv"
    if path.is_file():
        shutil.copy2(path, root / "manifest.csv.backup")
    with atomic_file(path, "w") as stream:
        writer = csv.writer(stream)
        writer.writerow(("CATEGORY", "DIRECTORY", "SUBDIRS", "SPLIT"))
        for run in runs:
            writer.writerow((run.class_name, run.group, run.folder.relative_to(root).as_posix(), run.split.upper()))
    counts = {split: sum(run.split == split for run in runs) for split in ("train", "val", "test")}
    print(f"{path}: {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
