"""The configuration of the V4 model, which is its option group; imports no torch."""

from dataclasses import dataclass

from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.errors import OptionError

MODALITIES = ("video", "images", "audio", "sensors")  # the order of `present`
ALIASES = {"post_images": "images", "post_weld_images": "images", "sensor": "sensors"}
"""Keys of the document -> ours."""
FREEZE_POLICIES = ("none", "sensor", "heads")
ADAPTERS = ("lora", "adapter")


def heads_of(width: int) -> int:
    """Attention heads of a layer of this width: 8, unless they became narrower than 8 channels."""
    return min(8, width // 8)


@dataclass
class QuadConfig(Options):
    """The model."""

    hidden_dim: int = arg(512, "width", at_least=8)
    sensor_dim: int = arg(256, "width of the sensor encoder", at_least=8)
    sensor_layers: int = arg(4, "its blocks", at_least=1)
    sensor_stride: int = arg(1, "sensor steps averaged into one token", at_least=1)
    fusion_tokens: int = arg(4, "learned queries", at_least=1)
    dropout: float = arg(0.1, "dropout", at_least=0, at_most=0.9)
    classifier_layers: int = arg(1, "layers of the class head", at_least=1, at_most=2)
    missing: str = arg(
        "skip", "an absent modality is skipped, or stands as a learned vector", choices=["skip", "embedding"]
    )
    modality_dropout: float = arg(0.1, "chance that training hides a modality of a run", at_least=0, at_most=0.9)
    align: Switch = arg(False, "sensor tokens take in what video and sound show at their time (temporal attention)")
    activation_checkpointing: Switch = arg(False, "recompute the sensor encoder in backward to save memory")

    def check(self) -> None:
        for name in ("hidden_dim", "sensor_dim"):
            width = getattr(self, name)
            if width % heads_of(width):
                raise OptionError(f"{name}={width}: its {heads_of(width)} attention heads do not divide it")
