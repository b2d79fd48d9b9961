"""Every option of V4, the quad-modal weld system; imports no torch. The model's own: `models.weld.quad_config`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from anomaly_lib.config import ANY, Options, Preset, Switch, arg, override
from anomaly_lib.errors import OptionError
from anomaly_lib.metrics.names import KNN_METRICS
from anomaly_lib.models.weld.config import BranchArgs
from anomaly_lib.models.weld.quad_config import ADAPTERS, FREEZE_POLICIES, MODALITIES, QuadConfig
from anomaly_lib.options import DataArgs, DecisionArgs, EvalArgs, OptimArgs, RunArgs, TrackArgs
from anomaly_lib.systems.weld.options import ENCODERS, WeldDemoArgs, WeldEncoderArgs, WeldInputArgs, WeldSettings

PRETRAININGS = ("simclr", "masked", "pixels")


@dataclass
class LearningArgs(Options):
    """What learns."""

    scale_tokens: Switch = arg(True, "z-score the frozen tokens by the training runs, for each place and channel")
    freeze: str = arg("none", "what does not learn", choices=list(FREEZE_POLICIES))
    freeze_encoders_epochs: int = arg(
        0, "apply --freeze only for the first epochs; 0 = always", at_least=0, needs={"freeze": FREEZE_POLICIES[1:]}
    )
    adapters: str = arg(
        "none", "adapters on the fusion's frozen attention", choices=["none", *ADAPTERS],
        needs={"freeze": FREEZE_POLICIES[1:]},
    )  # fmt: skip
    adapter_rank: int = arg(8, "their rank", at_least=1, needs={"adapters": ADAPTERS})


@dataclass
class SupConArgs(Options):
    """The objective."""

    loss_type: str = arg("combined", "contrastive alone, or with the class loss", choices=["supcon", "combined"])
    temperature: float = arg(0.07, "temperature", at_least=0.001)
    supcon_weight: float = arg(1.0, "weight of the contrastive loss", at_least=0)
    ce_weight: float = arg(0.1, "weight of the class loss", at_least=0, needs={"loss_type": "combined"})
    score_weight: float = arg(
        0.1, "weight of the score head's good/defect loss", at_least=0, needs={"loss_type": "combined"}
    )
    reconstruct_weight: float = arg(0.0, "weight of rebuilding each modality from the fused vector", at_least=0)
    next_step_weight: float = arg(0.0, "weight of predicting each sensor step from those before it", at_least=0)
    mixup: float = arg(0.0, "alpha of feature mixing (the published value is 0.2); 0 = off", at_least=0)
    queue: int = arg(0, "past features that serve as further positives and negatives", at_least=0)
    accumulate: int = arg(1, "batches per optimiser step", at_least=1)
    hard_negatives: float = arg(1.0, "share of the most similar negatives kept", at_least=0.01, at_most=1)
    hardness: float = arg(0.0, "exponent that weights similar negatives more", at_least=0)
    drawn_defects: int = arg(
        0, "further training runs with cracks, pits, spatter and holes drawn into good ones' photos: so many of each",
        at_least=0,
    )  # fmt: skip
    pretrain: str = arg(
        "none", "first learn without labels: simclr = two noisy views of a run attract; masked = hidden tokens are "
        "rebuilt; pixels = hidden patches of the frames, photos and spectra themselves, by encoders that learn",
        choices=["none", *PRETRAININGS],
    )  # fmt: skip
    pretrain_on: list[str] = arg(
        list(MODALITIES), "from which modalities", choices=list(MODALITIES), needs={"pretrain": PRETRAININGS}
    )
    pretrain_epochs: int = arg(5, "epochs of --pretrain", at_least=1, needs={"pretrain": PRETRAININGS})
    pretrain_ratio: float = arg(
        0.6, "share of the patches that pixels hides (as SimMIM)", at_least=0.01, at_most=0.99,
        needs={"pretrain": "pixels"},
    )  # fmt: skip


@dataclass
class SupConTrainArgs(Options):
    """Schedule and checks."""

    warmup_epochs: int = arg(5, "epochs of linear warm-up, at most half of all", at_least=0)
    warmup_start_lr: float = arg(1e-7, "learning rate of the first epoch", at_least=0, needs={"warmup_epochs": ANY})
    min_lr: float = arg(1e-6, "learning rate at the end", at_least=0)
    patience: int = arg(10, "epochs without improvement before stopping; 0 = never", at_least=0, resumable=True)
    stop_on: str = arg(
        "accuracy", "what counts: nearest-centroid accuracy or loss, on val", choices=["accuracy", "loss"]
    )
    sampler: str = arg("stratified", "how batches are drawn", choices=["stratified", "balanced"])
    k: int = arg(5, "neighbours of the k-NN evaluation", at_least=1)
    metric: str = arg("cosine", "its distance", choices=list(KNN_METRICS))
    quick_test: Switch = arg(False, "a check of seconds: few epochs, small batches, a log line per batch")
    debug: Switch = arg(False, "describe the first batch: labels, features, similarities, positives, gradients")
    log_every: int = arg(10, "batches between log lines", at_least=1)


@dataclass
class Args(
    TrackArgs, WeldInputArgs, QuadConfig, LearningArgs, SupConArgs, OptimArgs, SupConTrainArgs, EvalArgs,
    DecisionArgs,
):  # fmt: skip
    """V4: supervised-contrastive quad-modal weld classification."""

    dataset: str = override(DataArgs, "dataset", "demo", choices=["demo", "weld"])
    wandb_project: str = override(TrackArgs, "wandb_project", "weld-anomaly-detection")
    demo_train: int = override(WeldDemoArgs, "demo_train", 24)
    demo_good: int = override(WeldDemoArgs, "demo_good", 12)
    demo_defects: int = override(WeldDemoArgs, "demo_defects", 8)
    video_frames: int = override(WeldSettings, "video_frames", 8)
    image_backbone: str = override(WeldEncoderArgs, "image_backbone", "dinov2-base")
    branches: str = override(BranchArgs, "branches", "12.mean")
    layer_index: str = override(WeldSettings, "layer_index", "block")
    dummy: Switch = override(WeldEncoderArgs, "dummy", False, aliases=["use-dummy"])
    batch_size: int = override(OptimArgs, "batch_size", 16)
    learning_rate: float = override(OptimArgs, "learning_rate", 1e-4)
    weight_decay: float = override(OptimArgs, "weight_decay", 1e-4)
    grad_clip: float = override(OptimArgs, "grad_clip", 1.0)
    seed: int = override(RunArgs, "seed", 42)
    select: str = override(EvalArgs, "select", "val", choices=["val", "last"])

    PRESETS: ClassVar[Sequence[Preset]] = (
        Preset(when={"video_backbone": "tiny-vjepa2"}, then={"video_token_pool": "none"}),
        Preset(when={"image_backbone": "tiny-dinov3"}, then={"image_size": [64], "branches": "2.mean"}),
        Preset(
            when={"dummy": True},
            then={
                "hidden_dim": 64, "sensor_dim": 32, "sensor_layers": 2,
                "epochs": 40, "batch_size": 24, "learning_rate": 1e-3, "patience": 20,
            },
        ),
        Preset(
            when={"quick_test": True},
            then={
                "epochs": 3, "batch_size": 4, "log_every": 1, "k": 1,
                "demo_train": 4, "demo_good": 2, "demo_defects": 2,
            },
        ),
    )  # fmt: skip

    def check(self) -> None:
        if self.batch_size < 2:
            raise OptionError(f"batch_size={self.batch_size}: contrast needs at least 2 runs")
        stepwise = {
            f"pretrain={self.pretrain}": self.pretrain in ("masked", "pixels") and "sensors" in self.pretrain_on,
            "next_step_weight": self.next_step_weight > 0,
        }
        if self.pretrain == "pixels":
            check_pixels(self)
        for name in [name for name, wanted in stepwise.items() if wanted and self.sensor_stride > 1]:
            raise OptionError(f"sensor_stride={self.sensor_stride}: {name} predicts every sensor step, give 1")


def check_pixels(args: Args) -> None:
    """Refuse to rebuild the inputs of encoders that do not learn."""
    named = [name for name in ENCODERS if name in args.pretrain_on]
    if not args.learning() or not named:
        raise OptionError(
            "pretrain=pixels: has no effect without encoder_training=last|lora" if named else
            "pretrain_on=sensors: pretrain=pixels is for encoders; give pretrain=masked"
        )  # fmt: skip
    if deaf := [name for name in named if name not in args.learning()]:
        what = " and ".join(deaf)
        raise OptionError(
            f"pretrain_on={' '.join(args.pretrain_on)}: pretrain=pixels rebuilds {what} by an encoder that learns; "
            f"name {what} in trained_encoders= too, or not here"
        )


def tiny(**changes: Any) -> Args:
    """Seconds on a CPU."""
    small: dict[str, Any] = {
        "epochs": 2, "demo_train": 3, "demo_good": 2, "demo_defects": 1, "hidden_dim": 16, "sensor_dim": 16,
        "sensor_layers": 1, "batch_size": 12, "k": 1, "video_frames": 2, "video_size": 32, "image_size": [32],
        "views": 1, "sensor_steps": 16, "figures": False,
    }  # fmt: skip
    return Args(**small | changes)
