"""Options of PromptAD's parts; they are the parts' configurations. Importing them loads no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Optional

from anomaly_lib.config import Options, Preset, arg
from anomaly_lib.errors import OptionError
from anomaly_lib.fusion.names import CALIBRATION_NAMES, FUSION_NAMES

BRANCHES = ("textual", "visual")


@dataclass
class PromptConfig(Options):
    """The learned prompts."""

    n_ctx: int = arg(4, "tokens of a normal context", at_least=1)
    n_ctx_ab: int = arg(1, "tokens of an abnormal context", at_least=1)
    n_pro: int = arg(3, "normal contexts", at_least=1, at_most=1000)
    n_pro_ab: int = arg(4, "abnormal contexts", at_least=1, at_most=1000)
    pairing: str = arg(
        "all",
        "abnormal prompts: all pairs of contexts, or i mod n (the original's, misses pairs)",
        choices=["all", "modulo"],
    )
    class_text: Optional[str] = arg(
        None, "what the class is called in prompts; None = the published name, or the class's own", type=str
    )
    states: list[str] = arg([], "more anomalous states for the prompts, e.g. 'scratch' or 'torn {}'", type=str)

    def check(self) -> None:
        for state in self.states:
            if set("{}") & set(state.replace("{}", "", 1)):
                raise OptionError(f"states={state}: takes plain words, with {{}} once at most (the class's name)")


@dataclass
class LossConfig(Options):
    """The training loss."""

    lambda1: float = arg(0.001, "weight of the alignment loss", at_least=0)
    # The published learning rate was tuned with the stored value, so both protocols keep it; exp is there to be tried.
    logit_scale: str = arg(
        "raw",
        "temperature of loss and textual score: CLIP's stored log value (raw, as published) or its exponential",
        choices=["exp", "raw"],
        aliases=["logit-scale-mode"],
    )
    triplet_axis: str = arg(
        "channel",
        "axis the margin of segmentation sums over; patch is the original's slip",
        choices=["channel", "patch"],
    )


@dataclass
class ScoreConfig(Options):
    """Scores and their fusion."""

    task: str = arg("cls", "cls = image scores, seg = pixel maps", choices=["cls", "seg"])
    fusion_mode: str = arg(
        "harmonic", "how textual and visual scores become one; no part of PromptAD's own loss", choices=FUSION_NAMES
    )
    fusion_weights: list[float] = arg(
        [1.0, 1.0], "weights (textual, visual) of --fusion-mode weighted", type=float, at_least=0, length=2
    )
    calibration: str = arg(
        "none", "put both branches on one scale with support scores before fusing", choices=["none", *CALIBRATION_NAMES]
    )
    resolution: int = arg(400, "side of maps and masks", at_least=8, at_most=8192)
    sigma: float = arg(4.0, "Gaussian smoothing of segmentation maps, in pixels", at_least=0, at_most=1000)
    image_max: str = arg(
        "map",
        "the visual image score is the maximum of the upsampled map or of the patch grid",
        choices=["map", "grid"],
    )

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of maps."""
        return self.resolution, self.resolution


@dataclass
class MemoryConfig(Options):
    """What the memory holds of an image."""

    memory_layers: list[int] = arg(
        [], "blocks whose patches are remembered; empty = 2 7 of 12, scaled to depth", type=int
    )
    memory_tap: str = arg(
        "block_out",
        "remember block outputs, or the state after the next attention (the original's, by aliasing)",
        choices=["block_out", "post_attn_next"],
    )

    def check(self) -> None:
        if len(set(self.memory_layers)) != len(self.memory_layers):
            raise OptionError(f"memory_layers={self.memory_layers}: name every block once")


@dataclass
class PromptADConfig(PromptConfig, LossConfig, ScoreConfig, MemoryConfig):
    """PromptAD: learned prompts, patch memory, scores."""

    PRESETS: ClassVar[Sequence[Preset]] = (Preset(when={"task": "seg"}, then={"n_pro": 1}),)
