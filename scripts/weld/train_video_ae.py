"""Train the video auto-encoder of late fusion: python scripts/weld/train_video_ae.py"""

import sys
from collections.abc import Sequence

from anomaly_lib.command_line import command
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld.video_ae.options import Args


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    train = SYSTEMS["video_ae"].train
    return command(Args, train, argv, prog="train_video_ae.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
