"""Train the V4 quad-modal weld model: ``python scripts/weld/train_supcon.py --quick-test --debug``."""

import sys
from collections.abc import Sequence

from anomaly_lib.command_line import command
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld.supcon.options import Args


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    return command(Args, SYSTEMS["weld_supcon"].train, argv, prog="train_supcon.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
