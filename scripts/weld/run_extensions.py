"""What each training-time extension of the V4 weld model changes, on the data of the ladder, in one table.

Interrupted or repeated, it goes on with the rows that are not there yet (``--fresh`` starts over).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_lib.command_line import command

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts import each other from the repository root

from scripts.weld.studies.options import ExtensionArgs


def run(args: ExtensionArgs) -> None:
    """The rows that are missing, then the table."""
    from scripts.weld.studies.extensions import run_extensions

    run_extensions(args, print)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run what is missing, print the table."""
    return command(ExtensionArgs, run, argv, prog="run_extensions.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
