"""What each training-time extension of the V4 weld model changes, on the data of the ladder, in one table.

Interrupted or repeated, it goes on with the rows that are not there yet (``--fresh`` starts over).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_lib.config import command

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts import each other from the repository root

from scripts.weld.studies.extensions import Args, run_extensions


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run what is missing, print the table."""
    return command(
        Args, lambda args: run_extensions(args, print) and None, argv, prog="run_extensions.py",
        description=__doc__ or "",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
