"""Every option of Causal-FiLM; imports no torch. The networks' own are in `models.weld.config`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from anomaly_lib.config import ANY, Options, Preset, Switch, arg, override
from anomaly_lib.errors import OptionError
from anomaly_lib.models.weld.config import CausalFiLMConfig, CausalScoreArgs, LossConfig
from anomaly_lib.options import DataArgs, DecisionArgs, EvalArgs, OptimArgs, RunArgs, TrackArgs
from anomaly_lib.systems.weld.options import WeldInputArgs


@dataclass
class CausalTrainArgs(Options):
    """Schedule, averaging and stopping."""

    text_vector: Optional[str] = arg(
        None, "tensor file with the CLIP embedding of 'a normal weld'; None = no text term", type=str
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
        Preset(
            when={"preset": "stage1", "dummy": False}, then={"image_backbone": "dinov2-base", "learning_rate": 1e-4}
        ),
        Preset(
            when={"dummy": True}, then={"d_model": 64, "sensor_hidden": 32, "epochs": 40, "learning_rate": 3e-3}
        ),
        Preset(
            when={"protocol": "paper"},
            then={
                "target_mode": "joint", "decoder_activation": "silu", "decoder_dropout": 0.1, "encoder_dropout": 0.2,
            },
        ),
    )  # fmt: skip

    def check(self) -> None:
        if self.target_mode == "ema_target" and not self.ema_decay:
            raise OptionError("target_mode=ema_target: the targets are averages, give ema_decay= above 0")


def tiny(**changes: Any) -> Args:
    """Seconds on a CPU."""
    small: dict[str, Any] = {
        "epochs": 2, "demo_train": 8, "demo_good": 2, "demo_defects": 1, "d_model": 16, "sensor_hidden": 16,
        "sensor_steps": 16, "video_frames": 2, "video_size": 32, "image_size": [32], "views": 2, "audio_frames": 32,
        "patience": 0, "figures": False,
    }  # fmt: skip
    return Args(**small | changes)
