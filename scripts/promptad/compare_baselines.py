"""Compare two gate experiments: python scripts/promptad/compare_baselines.py result/gate result/gate_harmonic"""

import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_lib.config import command
from anomaly_lib.errors import UserError
from anomaly_lib.systems.promptad.options import CompareArgs


def run(args: CompareArgs) -> None:
    """Print the merged table and its summary."""
    from anomaly_lib.systems.promptad.analysis import compare, read_results

    if args.first is None or args.second is None:
        raise UserError("name two experiments: compare_baselines.py A B")
    comparison = compare(read_results(Path(args.first)), read_results(Path(args.second)), mode=args.mode)
    if args.output is not None:
        comparison.table.write(Path(args.output))
    print(comparison.table.text(2))
    print("\n".join(["", *comparison.summary]))


def with_names(argv: Sequence[str]) -> list[str]:
    """argv with the flags of the two experiments that stand without one; every other option takes one value."""
    flags, out, words = iter(("--first", "--second")), [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            flag = next(flags, None)
            out += [word] if flag is None else [f"{flag}={word}"]
            continue
        out.append(word)
        if "=" not in word and word not in ("-h", "--help", "--print-config", "--print_config"):
            out += words[:1]
            words = words[1:]
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, compare, leave with an exit code."""
    named = with_names(sys.argv[1:] if argv is None else argv)
    return command(CompareArgs, run, named, prog="compare_baselines.py", description=CompareArgs.__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
