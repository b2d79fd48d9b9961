"""Count the classes of a weld data set and warn of what breaks training: python scripts/weld/check_labels.py DIR"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from anomaly_lib.bare_words import name_bare_words
from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg

MAX_IMBALANCE = 10


@dataclass
class Args(Options):
    """The data."""

    data_path: Optional[str] = arg(
        None, "folder with manifest.csv, may stand without the flag; None = the built-in welds", type=str
    )


def check(args: Args) -> None:
    """Print the table of splits and classes, and warnings."""
    from anomaly_lib.systems.weld.data.demo import weld_demo_runs
    from anomaly_lib.systems.weld.data.manifest import CLASSES, SPLITS, read_manifest

    runs = read_manifest(args.data_path) if args.data_path else weld_demo_runs()
    counts = {split: Counter(run.class_name for run in runs if run.split == split) for split in SPLITS}
    print(f"{'class':>32} " + " ".join(f"{split:>6}" for split in SPLITS))
    for name in CLASSES:
        print(f"{name:>32} " + " ".join(f"{counts[split][name]:>6}" for split in SPLITS))
    for split, found in counts.items():
        if not found:
            print(f"warning: the {split} split is empty")
        elif len(found) == 1 and split != "train":
            print(f"warning: the {split} split has one class only; AUROC is undefined there")
        elif len(found) == 1:
            print(
                "note: train has one class: right for Causal-FiLM, too little for SupCon (see scripts/weld/resplit.py)"
            )
        elif max(found.values()) > MAX_IMBALANCE * min(found.values()):
            print(f"warning: in {split} the largest class is more than {MAX_IMBALANCE} x the smallest")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, count, leave with an exit code."""
    words = name_bare_words(sys.argv[1:] if argv is None else argv, Args, ["data_path"])
    return command(Args, check, words, prog="check_labels.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
