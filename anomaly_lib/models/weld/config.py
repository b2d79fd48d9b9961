"""Configurations of the weld networks, which are their option groups; imports no torch.

The V4 model's is in `quad_config.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from anomaly_lib.config import ANY, Options, Preset, Switch, arg
from anomaly_lib.errors import OptionError

POOLS = ("mean", "max", "gem", "cls")
GEM_MODES = ("clamp", "signed", "softplus")
MODULATORS = ("mamba", "gru", "transformer", "none")
LEARNT = MODULATORS[:-1]
PERCEPTRONS = ("mlp", "bottleneck")
DECODERS = (*PERCEPTRONS, "linear_attention")
TARGET_MODES = ("joint", "stopgrad", "ema_target")
SCORE_KINDS = ("combined", "cosine", "l1", "mean_abs")
ATTENTION_HEADS = 4  # of the transformer over sensors, of what aligns them and of linear attention
STAGES = ("best", "doc", "stage1")
SENSOR_CHANNELS = 6  # pressure, gas flow, feed, current, wire, voltage

BRANCH_PRESETS: Mapping[str, str] = {
    "best": "21.mean,21.gem,32.mean",
    "doc": "10.gem,21.gem",
    "stage1": "12.mean,8.max",
    "L24+L8": "24.mean,8.max",
    "L20+L8": "20.mean,8.max",
    "L20+L28": "20.mean,28.max",
    "L21+L32": "21.max,32.mean",
    "L22+L32": "22.max,32.mean",
    "L20+L32": "20.max,32.mean",
    "L21mm+L32": "21.mean,21.max,32.mean",
}
"""Branches the original tried, by the name its log gives them; `best` and `doc` contradict each other there."""


# -- which tokens of the photographs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Branch:
    """One view of the image backbone: which layer (as the user counts layers) and how its tokens become one vector."""

    layer: int
    pool: str

    @property
    def name(self) -> str:
        return f"L{self.layer}.{self.pool}"

    @classmethod
    def parse(cls, text: str) -> "Branch":
        """``L21.gem`` or ``21.gem``."""
        layer, _, pool = text.strip().removeprefix("L").partition(".")
        if not layer.isdigit() or pool not in POOLS:
            raise OptionError(f"branches={text}: write LAYER.POOL, e.g. 21.gem; pools are {', '.join(POOLS)}")
        return cls(int(layer), pool)


def parse_branches(text: str) -> tuple[Branch, ...]:
    """The branches of a preset's name or of a list such as ``21.mean,21.gem,32.mean``."""
    branches = tuple(Branch.parse(part) for part in BRANCH_PRESETS.get(text, text).replace(" ", ",").split(",") if part)
    if not branches:
        raise OptionError(f"branches={text!r}: at least one branch is needed, e.g. 21.gem")
    return branches


@dataclass
class BranchArgs(Options):
    """What is read of the photographs."""

    branches: str = arg("best", "image layers and pools: a preset's name or e.g. 21.mean,21.gem,32.mean")

    def check(self) -> None:
        parse_branches(self.branches)


# -- Causal-FiLM ----------------------------------------------------------------------------------------------------


@dataclass
class PublishedStage(Options):
    """The published stage."""

    preset: str = arg(
        "best", "published stage whose values are the defaults; given, on built-in data too", choices=list(STAGES)
    )


@dataclass
class CausalFiLMConfig(PublishedStage, BranchArgs):
    """The model."""

    d_model: int = arg(512, "width", at_least=4)
    sensor_hidden: int = arg(128, "width of the sensor encoder", at_least=4, needs={"modulator": LEARNT})
    sensor_layers: int = arg(2, "its layers", at_least=1, needs={"modulator": LEARNT})
    modulator: str = arg("mamba", "sensor encoder", choices=list(MODULATORS))
    scan_backend: str = arg(
        "auto",
        "Mamba's scan: mamba_ssm's kernel or plain torch",
        choices=["auto", "torch", "kernel"],
        needs={"modulator": "mamba"},
    )
    split_film: Switch = arg(False, "own gamma and beta for video and audio", needs={"modulator": LEARNT})
    align: Switch = arg(
        False,
        "the sensor series takes in what video and sound show at its own time before it modulates them (temporal "
        "attention)",
        needs={"modulator": LEARNT},
    )
    projector_dropout: float = arg(0.0, "dropout where tokens are brought to the width", at_least=0, at_most=0.99)
    process_layers: int = arg(2, "layers of the process encoder", at_least=1)
    process_heads: int = arg(4, "its attention heads", at_least=1)
    process_dropout: float = arg(0.1, "dropout inside the process encoder", at_least=0, at_most=0.99)
    gem_p: float = arg(3.0, "initial exponent of GeM pooling", at_least=1)
    gem_mode: str = arg("clamp", "what GeM does with negative tokens", choices=list(GEM_MODES))
    view_pool: str = arg("max", "how the photos of a weld become one vector", choices=["max", "mean"])
    reduce: int = arg(0, "shrink each branch to this width before joining; 0 = off", at_least=0)
    gate: Switch = arg(True, "gate the joined branches")
    gate_activation: str = arg("silu", "inside the gate", choices=["silu", "relu"], needs={"gate": True})
    decoder: str = arg("mlp", "decoder", choices=list(DECODERS))
    decoder_activation: str = arg(
        "relu", "inside the decoder", choices=["relu", "silu"], needs={"decoder": PERCEPTRONS}
    )
    decoder_dropout: float = arg(0.2, "the decoder's noise", at_least=0, at_most=0.99)
    decoder_dropout_position: str = arg(
        "hidden", "where the decoder's noise acts", choices=["hidden", "input"], needs={"decoder": PERCEPTRONS}
    )
    encoder_dropout: float = arg(0.0, "dropout on all frozen features", at_least=0, at_most=0.99)
    feature_mask_ratio: float = arg(
        0.2, "share of video and audio features masked in training", at_least=0, at_most=0.99
    )
    feature_noise: float = arg(0.0, "Gaussian noise on video and audio features in training", at_least=0)

    PRESETS: ClassVar[Sequence[Preset]] = (
        Preset(when={"preset": "doc"}, then={"branches": "doc"}),
        Preset(
            when={"preset": "stage1"},  # dropout in the decoder and masked features came with stage 2
            then={
                "branches": "stage1", "d_model": 256, "gate_activation": "relu", "decoder_dropout": 0.0,
                "feature_mask_ratio": 0.0,
            },
        ),
    )  # fmt: skip

    def check(self) -> None:
        if self.d_model % self.process_heads:
            raise OptionError(f"process_heads={self.process_heads}: does not divide d_model={self.d_model}")
        if self.decoder == "linear_attention" and self.d_model % ATTENTION_HEADS:
            raise OptionError(f"d_model={self.d_model}: decoder=linear_attention needs a multiple of {ATTENTION_HEADS}")
        attending = "modulator=transformer" if self.modulator == "transformer" else "align=True" if self.align else ""
        if attending and self.sensor_hidden % ATTENTION_HEADS:
            raise OptionError(f"sensor_hidden={self.sensor_hidden}: {attending} needs a multiple of {ATTENTION_HEADS}")


@dataclass
class LossConfig(PublishedStage):
    """The loss."""

    l1_kind: str = arg("smooth_l1", "form of the L1 term", choices=["l1", "smooth_l1"], needs={"lambda_l1": ANY})
    smooth_l1_beta: float = arg(
        0.1, "error at which smooth L1 becomes linear", at_least=1e-6, needs={"l1_kind": "smooth_l1"}
    )
    topk_ratio: float = arg(
        0.5, "share of the largest errors that count", at_least=0.01, at_most=1, needs={"lambda_l1": ANY}
    )
    lambda_l1: float = arg(1.0, "weight of the L1 term", at_least=0)
    lambda_gram: float = arg(1.0, "weight of the Gram term", at_least=0)
    lambda_text: float = arg(0.01, "weight of the text term", at_least=0, needs={"text_vector|text_prompt": ANY})
    gram_mode: str = arg(
        "feature",
        "Gram matrix of the features or of the batch",
        choices=["feature", "batch"],
        needs={"lambda_gram": ANY},
    )
    gram_norm: str = arg("mse", "its distance", choices=["mse", "fro"], needs={"lambda_gram": ANY})

    PRESETS: ClassVar[Sequence[Preset]] = (
        Preset(
            when={"preset": ("doc", "stage1")},
            then={"l1_kind": "l1", "topk_ratio": 1.0, "lambda_l1": 10.0, "lambda_text": 0.1},
        ),
        Preset(when={"preset": "doc"}, then={"gram_norm": "fro"}),
        Preset(when={"preset": "stage1"}, then={"lambda_gram": 0.0}),
    )


@dataclass
class CausalScoreArgs(Options):
    """What is learnt and how it is scored."""

    target_mode: str = arg(
        "stopgrad",
        "joint = the target is trained too, as published (preset doc and stage1; it can collapse); stopgrad = a fixed "
        "random target encoder; ema_target = slow copies teach each other",
        choices=list(TARGET_MODES),
    )
    score_kind: str = arg("combined", "the anomaly score", choices=list(SCORE_KINDS))
    score_topk: float = arg(
        0.5,
        "share of the largest errors in the score",
        at_least=0.01,
        at_most=1,
        needs={"score_kind": ("combined", "l1")},
    )
