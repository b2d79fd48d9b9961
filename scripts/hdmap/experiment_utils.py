"""The template's import block: ``from experiment_utils import evaluate_source_domain, ...``."""

from anomaly_lib.systems.detectors.hdmap.experiment_utils import *  # noqa: F403
