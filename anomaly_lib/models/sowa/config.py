"""Options of SOWA's networks and scores, which are their configurations; imports no torch."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.errors import OptionError
from anomaly_lib.models.sowa.phrases import LONG_TEMPLATE, PLAIN_SETS
from anomaly_lib.parts import Parts

ADAPTERS = Parts(
    "adapter",
    "anomaly_lib.models.sowa",
    {
        "window": "window_adapter:BasicLayer",
        "soldier": "window_adapter:soldier",
        "officer": "window_adapter:officer",
        "linear": "window_adapter:linear",
        "none": "window_adapter:nothing",
    },
)
"""Name -> ``make(attn, grid, config)``: the frozen attention of the stage's CLIP block, the patch grid (rows, columns)
and the stage's `AdapterConfig` make a module [B, L, C] -> [B, L, C]."""
FUSIONS = Parts("fusion", "anomaly_lib.models.sowa", {"dot": "model:DotProductFusion"})
"""Name -> class of a module (text features [B, 2, D], vision features [B, L, D] or [B, D]) -> [B, L, 2] or [B, 2]."""
VISIONS = ("map", "residual")
PROMPTS = ("coop", "plain", "zero")
SCALINGS = ("support", "transductive")
IMAGE_SCORES = ("mean", "text")
PER_STAGE = ("adapter", "window_size", "depth")
_WINDOW = {"adapter": "window"}
_WINDOWED = {"adapter": ("window", "soldier", "officer")}
_TRAINED = {"adapter": ("window", "soldier", "officer", "linear")}
_LEARNED = {"prompt_learner": "coop"}


@dataclass
class AdapterConfig(Options):
    """The adapters (one value for all stages, or one per stage)."""

    feature_map_idx: list[int] = arg(
        [], "CLIP blocks that are adapted; empty = the last of each quarter (5 11 17 23 of 24)", type=int
    )
    vision: str = arg(
        "map",
        "map = frozen taps; residual = adapted tokens flow back into the tower (no stored taps, slow)",
        choices=VISIONS,
    )
    gamma: float = arg(
        0.1, "share of adapted tokens that flows back", at_least=0, at_most=1, needs={"vision": "residual"}
    )
    adapter: list[str] = arg(
        ["window"],
        "what adapts the patch tokens; soldier: windows of a quarter of the grid, officer: of half of it, then shifted",
        choices=ADAPTERS,
    )
    window_size: list[int] = arg([0], "side of a window in patches; 0 = half the grid", at_least=0, needs=_WINDOW)
    depth: list[int] = arg([1], "blocks of a stage; every second one has shifted windows", at_least=1, needs=_WINDOW)
    num_heads: int = arg(8, "attention heads of the adapter", at_least=1, needs=_WINDOWED)
    cpb_dim: int = arg(64, "width of the position-bias network", at_least=1, needs=_WINDOWED)
    value_only: Switch = arg(True, "compare values with values instead of queries with keys", needs=_WINDOWED)
    hidden_features: list[int] = arg(
        [], "hidden widths of the adapter's MLP; empty = one linear map", type=int, at_least=1, needs=_TRAINED
    )
    drop: float = arg(0.0, "dropout of projections", at_least=0, at_most=1, needs=_WINDOWED)
    attn_drop: float = arg(0.1, "dropout of attention weights", at_least=0, at_most=1, needs=_WINDOWED)
    drop_path: float = arg(0.0, "stochastic depth", at_least=0, at_most=0.99, needs=_WINDOWED)
    share_weight: Switch = arg(
        False, "one set of trained weights for all stages that have an adapter of one name", needs=_TRAINED
    )

    def check(self) -> None:
        for name in PER_STAGE:
            values = getattr(self, name)
            if not values or (self.feature_map_idx and len(values) not in (1, len(self.feature_map_idx))):
                raise OptionError(wrong_count(name, values, len(self.feature_map_idx)))

    def of_stage(self, stage: int, stages: int) -> "AdapterConfig":
        """The options of the adapter of one of `stages` stages."""
        own: dict[str, Any] = {}
        for name in PER_STAGE:
            values = getattr(self, name)
            if len(values) not in (1, stages):
                raise OptionError(wrong_count(name, values, stages))
            own[name] = values if len(values) == 1 else [values[stage]]
        made = copy(self)
        for name, value in own.items():
            setattr(made, name, value)
        return made


def wrong_count(name: str, values: Sequence[Any], stages: int) -> str:
    per_stage = f" ({stages})" if stages else ""
    return f"{name}={' '.join(map(str, values))}: give one value, or one per stage{per_stage}"


@dataclass
class PromptConfig(Options):
    """The prompts."""

    prompt_learner: str = arg(
        "coop", "learned contexts, plain phrases with a trained map, or no tuning at all", choices=PROMPTS
    )
    class_names: list[str] = arg(["object"], "names in the prompts; an image of another class reads the first")
    prompt_length: int = arg(12, "tokens of a learned context", at_least=1, needs=_LEARNED)
    normal_templates: list[str] = arg(["{}"], "normal phrasings; 'long' = the 44 of the original", needs=_LEARNED)
    anomaly_templates: list[str] = arg(
        ["damaged {}"], "anomaly phrasings, as many as normal ones, or 'long'", needs=_LEARNED
    )
    plain_templates: str = arg(
        "short",
        "phrasings of plain prompts: five, or CLIP-AC's ensemble of 35",
        choices=list(PLAIN_SETS),
        needs={"prompt_learner": ("plain", "zero")},
    )
    start: str = arg(
        "zero-shot",
        "training begins at plain CLIP's zero-shot answer, or at random maps and contexts (paper)",
        choices=["zero-shot", "random"],
    )
    context_words: str = arg(
        "a photo of a", "what learned contexts say at the start", needs={"start": "zero-shot", **_LEARNED}
    )
    truncate: Switch = arg(False, "cut prompts that are too long instead of refusing them", needs=_LEARNED)
    text_linear: Switch = arg(
        True, "train a linear map on the text features", needs={"prompt_learner": ("coop", "plain")}
    )

    def check(self) -> None:
        if not self.class_names:
            raise OptionError("class_names=[]: give at least one name")
        normal, anomaly = self.normal_templates, self.anomaly_templates
        if ("long" in normal) != ("long" in anomaly):
            raise OptionError("normal_templates= and anomaly_templates=: 'long' for both or for none")
        if not normal or len(normal) != len(anomaly):  # with 1 against 3 the original silently mixes the two
            raise OptionError(
                f"normal_templates= and anomaly_templates=: {len(normal)} normal against {len(anomaly)} anomaly "
                "phrasings; give equal numbers"
            )
        for phrase in [*normal, *anomaly]:
            if "{}" not in phrase and phrase != "long":
                raise OptionError(f"prompt template {phrase!r} has no {{}} for the name of the object")

    def templates(self, kind: str) -> list[str]:
        """The "normal" or "anomaly" phrasings."""
        given = self.normal_templates if kind == "normal" else self.anomaly_templates
        return list(LONG_TEMPLATE[kind]) if "long" in given else given


@dataclass
class AnomalyCLIPConfig(PromptConfig, AdapterConfig):
    """The model."""

    fusion: str = arg("dot", "how text and vision features are compared", choices=FUSIONS)
    temperature: float = arg(0.07, "divides the cosines of the image score", at_least=1e-6)
    map_calibration: str = arg(
        "logistic",
        "a fitted scale and offset per map and weight per stage, or bare cosines (none, paper)",
        choices=["logistic", "none"],
    )


@dataclass
class ScoreConfig(Options):
    """Scores."""

    sigma: float = arg(4.0, "Gaussian smoothing of the text map, in pixels; 0 = off", at_least=0)
    stages: list[int] = arg([], "score with these stages only (0 = the first); empty = all", type=int, at_least=0)
    score_scaling: str = arg(
        "support",
        "few-shot image score: against the support images, or min-max over the test set (transductive, paper)",
        choices=SCALINGS,
    )
    image_score: str = arg(
        "mean",
        "zero-shot image score: mean of P(anomaly) and the map's peak, or P(anomaly) alone (text, paper)",
        choices=IMAGE_SCORES,
    )
