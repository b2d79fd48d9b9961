"""Compare two gate experiments: python scripts/promptad/compare_baselines.py result/gate result/gate_harmonic"""

import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_lib.bare_words import name_bare_words
from anomaly_lib.command_line import command
from anomaly_lib.errors import UserError
from anomaly_lib.systems.promptad.options import CompareArgs


def run(args: CompareArgs) -> None:
    """Print the merged table and its summary."""
    from anomaly_lib.systems.promptad.comparison import compare, read_results

    if args.first is None or args.second is None:
        raise UserError("name two experiments: compare_baselines.py A B")
    comparison = compare(read_results(Path(args.first)), read_results(Path(args.second)), mode=args.mode)
    if args.output is not None:
        comparison.table.write(Path(args.output))
    print(comparison.table.text(2))
    print("\n".join(["", *comparison.summary]))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, compare, leave with an exit code."""
    named = name_bare_words(sys.argv[1:] if argv is None else argv, CompareArgs, ["first", "second"])
    return command(CompareArgs, run, named, prog="compare_baselines.py", description=CompareArgs.__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
