"""Train Causal-FiLM for weld inspection: ``python train_causal_film.py`` (synthetic welds, tiny frozen encoders)."""

import sys
from collections.abc import Sequence

from anomaly_lib.commands.training import train_main


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    return train_main("causal-film", argv, prog="train_causal_film.py")


if __name__ == "__main__":
    sys.exit(main())
