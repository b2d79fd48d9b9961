"""SOWA: adapters, prompts, the model, losses, few-shot memory and scores, by the names its document gives them."""

from typing import TYPE_CHECKING

from anomaly_lib.lazy import lazy_names

if TYPE_CHECKING:
    from anomaly_lib.models.sowa.config import (
        ADAPTERS,
        FUSIONS,
        AdapterConfig,
        AnomalyCLIPConfig,
        PromptConfig,
        ScoreConfig,
    )
    from anomaly_lib.models.sowa.model import AnomalyCLIP, DotProductFusion, FusionModule, Output
    from anomaly_lib.models.sowa.scores import Memory, build_memory, detect, kshot_step, sowa_loss
    from anomaly_lib.models.sowa.text import AnomalyPromptLearner, PromptEncoder, PromptTextEncoder, TextMapEncoder
    from anomaly_lib.models.sowa.vision import VisionMapEncoder, VisionResidualEncoder, create_tapped_clip
    from anomaly_lib.models.sowa.window_adapter import BasicLayer, SwinTransformerBlock, WindowAttention

PLACES = {
    "ADAPTERS": "config",
    "AdapterConfig": "config",
    "AnomalyCLIP": "model",
    "AnomalyCLIPConfig": "config",
    "AnomalyPromptLearner": "text",
    "BasicLayer": "window_adapter",
    "DotProductFusion": "model",
    "FUSIONS": "config",
    "FusionModule": "model",
    "Memory": "scores",
    "Output": "model",
    "PromptConfig": "config",
    "PromptEncoder": "text",
    "PromptTextEncoder": "text",
    "ScoreConfig": "config",
    "SwinTransformerBlock": "window_adapter",
    "TextMapEncoder": "text",
    "VisionMapEncoder": "vision",
    "VisionResidualEncoder": "vision",
    "WindowAttention": "window_adapter",
    "build_memory": "scores",
    "create_tapped_clip": "vision",
    "detect": "scores",
    "kshot_step": "scores",
    "sowa_loss": "scores",
}
"""Name -> file of this folder it lies in."""

__getattr__, __dir__ = lazy_names(__name__, PLACES)
