"""The weld baseline ladder A-D in one table; ``--models fusion`` compares late, mid and cross-attention fusion only.

Interrupted or repeated, it goes on with the rows that are not there yet (``--fresh`` starts over).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_lib.command_line import command

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts import each other from the repository root

from scripts.weld.studies.options import LadderArgs


def run(args: LadderArgs) -> None:
    """The rows that are missing, then the table."""
    from scripts.weld.studies.ladder import run_ladder

    run_ladder(args, print)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run what is missing, print the table."""
    return command(LadderArgs, run, argv, prog="run_baselines.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
