"""Train Causal-FiLM for weld inspection: ``python train_causal_film.py`` (synthetic welds, tiny frozen encoders)."""

import sys
from collections.abc import Sequence

from anomaly_lib.command_line import command
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld.causal_film.options import Args


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    train = SYSTEMS["causal_film"].train
    return command(Args, train, argv, prog="train_causal_film.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
