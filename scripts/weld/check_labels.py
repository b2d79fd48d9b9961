"""Count the classes of a weld data set and warn of what breaks training: python scripts/weld/check_labels.py DIR"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from anomaly_lib.errors import UserError
from anomaly_lib.systems.weld.data.demo import weld_demo_runs
from anomaly_lib.systems.weld.data.manifest import CLASSES, SPLITS, read_manifest

MAX_IMBALANCE = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit code 2 when the data cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", help="folder with manifest.csv; none = the built-in welds")
    args = parser.parse_args(argv)
    try:
        runs = read_manifest(args.data) if args.data else weld_demo_runs()
    except UserError as error:
        sys.stderr.write(f"check_labels.py: {error}\n")
        return 2
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
