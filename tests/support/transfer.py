"""A domain-transfer run as a program that takes its options (the template's scripts take condition files)."""

import sys
from collections.abc import Sequence

from anomaly_lib.command_line import command
from anomaly_lib.systems.detectors.hdmap.options import Args
from anomaly_lib.systems.registry import SYSTEMS


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, SYSTEMS["hdmap"].train, argv, prog="transfer.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
