"""PromptAD: prompt learner, losses, patch memory and scores."""

from typing import TYPE_CHECKING

from anomaly_lib.lazy import lazy_names

if TYPE_CHECKING:
    from anomaly_lib.models.promptad.config import MemoryConfig, PromptADConfig, PromptConfig, ScoreConfig
    from anomaly_lib.models.promptad.model import PromptAD, promptad_losses
    from anomaly_lib.models.promptad.prompts import PromptLearner
    from anomaly_lib.models.promptad.scores import Branches, ImageFeatures, Scoring, textual_score, visual_score
    from anomaly_lib.models.promptad.towers import FrozenTowers

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Branches": "scores",
        "FrozenTowers": "towers",
        "ImageFeatures": "scores",
        "MemoryConfig": "config",
        "PromptAD": "model",
        "PromptADConfig": "config",
        "PromptConfig": "config",
        "PromptLearner": "prompts",
        "ScoreConfig": "config",
        "Scoring": "scores",
        "promptad_losses": "model",
        "textual_score": "scores",
        "visual_score": "scores",
    },
)
