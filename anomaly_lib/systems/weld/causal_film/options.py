"""Every option of Causal-FiLM; imports no torch. The networks' own are in `models.weld.config`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from anomaly_lib.config import ANY, Options, Preset, Switch, arg, override
from anomaly_lib.errors import OptionError
from anomaly_lib.models.weld.config import CausalFiLMConfig, CausalScoreArgs, LossConfig
from anomaly_lib.options import DataArgs, DecisionArgs, EvalArgs, OptimArgs, RunArgs, TrackArgs
from anomaly_lib.systems.weld.options import TINY_IMAGE, WeldInputArgs


@dataclass
class CausalTrainArgs(Options):
    """Schedule, averaging and stopping."""

    text_prompt: Optional[str] = arg(
        None, "what a frozen CLIP reads for the text term, e.g. 'a normal weld' (preset doc and stage1)", type=str
    )
    text_backbone: str = arg("ViT-B-16:openai", "the CLIP that reads it", needs={"text_prompt": ANY})
    text_weights: Optional[str] = arg(
        None, "its weight file; None = the published ones, 'random' = untrained", type=str, needs={"text_prompt": ANY}
    )
    text_vector: Optional[str] = arg(
        None, "tensor file with such an embedding, read instead of encoding text_prompt", type=str
    )
    warmup_epochs: int = arg(8, "epochs of linear warm-up, at most half of all", at_least=0)
    warmup_start_lr: float = arg(5e-7, "learning rate of the first epoch", at_least=0, needs={"warmup_epochs": ANY})
    min_lr: float = arg(1e-7, "learning rate at the end", at_least=0)
    patience: int = arg(
        20, "epochs without a better validation AUROC before stopping; 0 = never", at_least=0, resumable=True
    )
    ema_decay: float = arg(0.9999, "decay of the weight average; 0 = none", at_least=0, at_most=1)
    ema_warmup: Switch = arg(
        True, "let the decay grow, so that early averages are not stale", needs={"ema_decay": ANY}
    )  # fmt: skip
    log_every: int = arg(10, "batches between log lines", at_least=1)
    wandb_entity: Optional[str] = arg(None, "team at Weights & Biases", type=str, needs={"wandb": True}, result=False)
    wandb_id: Optional[str] = arg(
        None,
        "run id at Weights & Biases; None = the checkpoint's",
        type=str,
        needs={"wandb": True},
        result=False,
    )


@dataclass
class Args(
    TrackArgs, WeldInputArgs, CausalFiLMConfig, LossConfig, CausalScoreArgs, OptimArgs, CausalTrainArgs, EvalArgs,
    DecisionArgs,
):  # fmt: skip
    """Causal-FiLM, process to result."""

    dataset: str = override(DataArgs, "dataset", "demo", choices=["demo", "weld"])
    wandb_project: str = override(TrackArgs, "wandb_project", "weld-anomaly-detection")
    batch_size: int = override(OptimArgs, "batch_size", 32)
    learning_rate: float = override(OptimArgs, "learning_rate", 2e-5, resumable=True)
    weight_decay: float = override(OptimArgs, "weight_decay", 1e-2, resumable=True)
    grad_clip: float = override(OptimArgs, "grad_clip", 0.5)
    seed: int = override(RunArgs, "seed", 42)
    select: str = override(EvalArgs, "select", "val", choices=["val", "last"])

    PRESETS: ClassVar[Sequence[Preset]] = (
        Preset(when={"preset": ("doc", "stage1")}, then={"target_mode": "joint"}),
        Preset(when={"preset": ("doc", "stage1")}, then={"text_prompt": "a normal weld"}, unless=("text_vector",)),
        Preset(when={"preset": "doc"}, then={"weight_decay": 2e-3, "patience": 25}),
        Preset(
            when={"preset": "stage1"},
            then={
                "learning_rate": 1e-4, "weight_decay": 1e-4, "warmup_epochs": 2, "warmup_start_lr": 1e-6, "patience": 8,
            },
        ),
        Preset(when={"preset": "stage1", "dummy": False}, then={"image_backbone": "dinov2-base"}),
        Preset(when={"preset": "doc", "image_backbone": TINY_IMAGE}, then={"branches": "1.gem,2.gem"}),
        Preset(when={"preset": "stage1", "image_backbone": TINY_IMAGE}, then={"branches": "2.mean,1.max"}),
        Preset(when={"dummy": True}, then={"text_backbone": "demo-clip"}),
        Preset(  # a preset that is asked for by name keeps its numbers; only the encoders are tiny then
            when={"dummy": True}, then={"d_model": 64, "sensor_hidden": 32, "epochs": 40, "learning_rate": 3e-3},
            unless=("preset",),
        ),
        Preset(
            when={"protocol": "paper"},
            then={
                "target_mode": "joint", "decoder_activation": "silu", "decoder_dropout": 0.1, "encoder_dropout": 0.2,
                "ema_warmup": False,
            },
        ),
        Preset(when={"target_mode": "stopgrad"}, then={"trained_encoders": ["video", "audio"]}),
    )  # fmt: skip

    def check(self) -> None:
        if self.target_mode == "ema_target" and not self.ema_decay:
            raise OptionError("target_mode=ema_target: the targets are averages, give ema_decay= above 0")
        if "images" in self.learning() and self.target_mode == "stopgrad":
            raise OptionError(
                "trained_encoders=images: no gradient reaches the photos with target_mode=stopgrad; give "
                "target_mode=joint or ema_target, or leave images out"
            )


def tiny(**changes: Any) -> Args:
    """Seconds on a CPU."""
    small: dict[str, Any] = {
        "epochs": 2, "demo_train": 8, "demo_good": 2, "demo_defects": 1, "d_model": 16, "sensor_hidden": 16,
        "sensor_steps": 16, "video_frames": 2, "video_size": 32, "image_size": [32], "views": 2, "audio_frames": 32,
        "patience": 0, "figures": False,
    }  # fmt: skip
    return Args(**small | changes)
