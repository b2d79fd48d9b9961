"""Train a detector on one class of any image data set. `--model NAME --help` shows the options of that one."""

import sys
from collections.abc import Sequence

from anomaly_lib.command_line import command
from anomaly_lib.systems.detectors.options import Args
from anomaly_lib.systems.registry import SYSTEMS


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, SYSTEMS["detectors"].train, argv, prog="train_detector.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
