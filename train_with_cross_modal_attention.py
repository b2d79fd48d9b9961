"""Train a crystal property model on structure and text: ALIGNN with middle, cross-modal and late fusion.

Without options it trains on built-in crystals and shows what fusion adds; `--root_dir` names real data.
"""

import sys
from collections.abc import Sequence

from anomaly_lib.command_line import command
from anomaly_lib.systems.crystal.options import Args
from anomaly_lib.systems.registry import SYSTEMS


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    train = SYSTEMS["crystal"].train
    return command(Args, train, argv, prog="train_with_cross_modal_attention.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
