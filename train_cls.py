"""Train PromptAD for image-level anomaly detection: ``python train_cls.py --fusion-mode harmonic``."""

import sys
from collections.abc import Sequence

from anomaly_lib.command_line import command
from anomaly_lib.systems.promptad.options import Args
from anomaly_lib.systems.registry import SYSTEMS


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    train = SYSTEMS["promptad"].train
    return command(Args, train, argv, prog="train_cls.py", description="PromptAD, image level (few-shot, CLIP)")


if __name__ == "__main__":
    sys.exit(main())
