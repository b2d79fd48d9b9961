"""The template's import block: ``from experiment_utils import evaluate_source_domain, ...``."""

from pathlib import Path
from typing import Any

from anomaly_lib.systems.detectors.hdmap import experiment_utils
from anomaly_lib.systems.detectors.hdmap.experiment_utils import *  # noqa: F403


def load_experiment_conditions(json_filename: Path | str) -> list[dict[str, Any]]:
    """The conditions of a file, which may lie beside this one, as the template's do."""
    beside = Path(__file__).parent / json_filename
    there = beside.is_file() and not Path(json_filename).is_file()
    return experiment_utils.load_experiment_conditions(beside if there else json_filename)
