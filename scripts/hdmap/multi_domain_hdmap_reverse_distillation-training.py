#!/usr/bin/env python3
"""HDMAP domain transfer with reverse_distillation: one condition of the JSON file beside this script."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly_lib.systems.detectors.hdmap.script import script_main


def train_reverse_distillation_model_multi_domain(
    datamodule: Any, config: dict[str, Any], results_base_dir: str | Path, logger: Any
) -> tuple[Any, Any, Path | None]:
    """The module, its detector and its best checkpoint (None where nothing is trained) on a data module."""
    from anomaly_lib.systems.detectors.hdmap.experiment import train_model_multi_domain

    return train_model_multi_domain("reverse_distillation", datamodule, config, results_base_dir, logger)


def run_single_reverse_distillation_experiment(condition: dict[str, Any], log_dir: str | None = None) -> dict[str, Any]:
    """The result of one condition; a failure is told in it."""
    from anomaly_lib.systems.detectors.hdmap.experiment import run_single_experiment

    return run_single_experiment("reverse_distillation", condition, log_dir)


def main(argv: Sequence[str] | None = None) -> int:
    return script_main("reverse_distillation", __file__, argv)


if __name__ == "__main__":
    sys.exit(main())
