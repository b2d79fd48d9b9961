"""The weld baseline ladder A-D in one table; ``--models fusion`` compares late, mid and cross-attention fusion only.

Interrupted or repeated, it goes on with the rows that are not there yet (``--fresh`` starts over).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_lib.config import command

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts import each other from the repository root

from scripts.weld.studies.ladder import run_ladder
from scripts.weld.studies.ladder_options import Args


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run what is missing, print the table."""
    return command(
        Args, lambda args: run_ladder(args, print) and None, argv, prog="run_baselines.py", description=__doc__ or ""
    )


if __name__ == "__main__":
    sys.exit(main())
