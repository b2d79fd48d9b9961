"""The template's import block: ``from experiment_utils import evaluate_source_domain, ...``."""

from anomaly_lib.recipes.hdmap.experiment import *  # noqa: F403
