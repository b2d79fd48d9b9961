"""Compare two gate experiments: python scripts/promptad/compare_baselines.py result/gate result/gate_harmonic"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_lib.errors import UserError
from anomaly_lib.systems.promptad.analysis import compare, read_results


def main(argv: Sequence[str] | None = None) -> int:
    """Print the merged table and its summary."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("first", type=Path, help="experiment A (folder or full_results.csv)")
    parser.add_argument("second", type=Path, help="experiment B; positive improvement = B is better")
    parser.add_argument("--mode", default="harmonic", help="which mode's rows are compared (default: harmonic)")
    parser.add_argument("--output", type=Path, help="also write the table to OUTPUT.csv, .json, .md and .tex")
    try:
        args = parser.parse_args(argv)
        comparison = compare(read_results(args.first), read_results(args.second), mode=args.mode)
        if args.output:
            comparison.table.write(args.output)
    except UserError as error:
        print(f"compare_baselines.py: {error}", file=sys.stderr)
        return 2
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 2
    print(comparison.table.text(2))
    print("\n".join(["", *comparison.summary]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
