"""Train the video auto-encoder of late fusion: python scripts/weld/train_video_ae.py"""

import sys
from collections.abc import Sequence

from anomaly_lib.commands.training import train_main


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    return train_main("video-ae", argv, prog="train_video_ae.py")


if __name__ == "__main__":
    sys.exit(main())
