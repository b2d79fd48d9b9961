"""Every option of the V4 quad-modal system, written once. None = decided by the data (see `resolve`)."""

from dataclasses import dataclass, replace
from typing import Any, Optional

from anomaly_lib.config import Options, Switch, arg, override
from anomaly_lib.errors import UserError
from anomaly_lib.metrics.names import KNN_METRICS
from anomaly_lib.models.weld.supcon_quad import FREEZE_POLICIES, QuadConfig
from anomaly_lib.options import DataArgs, EvalArgs, OptimArgs, RunArgs, TrackArgs
from anomaly_lib.systems.weld.inputs import WeldDemoArgs, WeldEncoderArgs, WeldInputArgs


@dataclass
class QuadModelArgs(Options):
    """The model."""

    hidden_dim: Optional[int] = arg(None, "width; None = 512 (tiny encoders: 64)", type=int, at_least=8)
    sensor_dim: Optional[int] = arg(None, "sensor encoder; None = 256 (tiny encoders: 32)", type=int, at_least=8)
    sensor_layers: Optional[int] = arg(None, "its blocks; None = 4 (tiny encoders: 2)", type=int, at_least=1)
    sensor_stride: int = arg(1, "sensor steps averaged into one token", at_least=1)
    fusion_tokens: int = arg(4, "learned queries", at_least=1)
    dropout: float = arg(0.1, "dropout", at_least=0, at_most=0.9)
    classifier_layers: int = arg(1, "layers of the class head", at_least=1, at_most=2)
    missing: str = arg(
        "skip", "an absent modality is skipped, or stands as a learned vector", choices=["skip", "embedding"]
    )
    modality_dropout: float = arg(0.1, "chance that training hides a modality of a run", at_least=0, at_most=0.9)
    activation_checkpointing: Switch = arg(False, "recompute the sensor encoder in backward to save memory")
    scale_tokens: Switch = arg(True, "z-score the frozen tokens by the training runs, for each place and channel")
    freeze: str = arg("none", "what does not learn", choices=list(FREEZE_POLICIES))
    freeze_encoders_epochs: int = arg(0, "apply --freeze only for the first epochs; 0 = always", at_least=0)
    adapters: str = arg("none", "adapters on the fusion's frozen attention", choices=["none", "lora", "adapter"])
    adapter_rank: int = arg(8, "their rank", at_least=1)


@dataclass
class SupConArgs(Options):
    """The objective."""

    loss_type: str = arg("combined", "contrastive alone, or with the class loss", choices=["supcon", "combined"])
    temperature: float = arg(0.07, "temperature", at_least=0.001)
    supcon_weight: float = arg(1.0, "weight of the contrastive loss", at_least=0)
    ce_weight: float = arg(0.1, "weight of the class loss", at_least=0)
    score_weight: float = arg(0.1, "weight of the score head's good/defect loss", at_least=0)
    reconstruct_weight: float = arg(0.0, "weight of rebuilding each modality from the fused vector", at_least=0)
    mixup: float = arg(0.0, "alpha of feature mixing (the published value is 0.2); 0 = off", at_least=0)
    queue: int = arg(0, "past features that serve as further positives and negatives", at_least=0)
    accumulate: int = arg(1, "batches per optimiser step", at_least=1)
    hard_negatives: float = arg(1.0, "share of the most similar negatives kept", at_least=0.01, at_most=1)
    hardness: float = arg(0.0, "exponent that weights similar negatives more", at_least=0)
    pretrain: str = arg("none", "first learn without labels", choices=["none", "simclr", "masked"])
    pretrain_epochs: int = arg(5, "epochs of --pretrain", at_least=1)


@dataclass
class SupConTrainArgs(Options):
    """Schedule and checks."""

    warmup_epochs: int = arg(5, "epochs of linear warm-up", at_least=0)
    warmup_start_lr: float = arg(1e-7, "learning rate of the first epoch", at_least=0)
    min_lr: float = arg(1e-6, "learning rate at the end", at_least=0)
    patience: Optional[int] = arg(
        None,
        "epochs without improvement before stopping; 0 = never; None = 10 (built-in data: 20)",
        type=int,
        at_least=0,
    )
    stop_on: str = arg(
        "accuracy", "what counts: nearest-centroid accuracy or loss, on val", choices=["accuracy", "loss"]
    )
    sampler: str = arg("stratified", "how batches are drawn", choices=["stratified", "balanced"])
    k: int = arg(5, "neighbours of the k-NN evaluation", at_least=1)
    metric: str = arg("cosine", "its distance", choices=KNN_METRICS)
    quick_test: Switch = arg(False, "3 epochs, batches of 4, tiny data, a log line per batch")
    debug: Switch = arg(False, "describe the first batch: labels, features, similarities, positives, gradients")
    mixed_precision: Switch = arg(False, "same as --precision bf16 on a CPU, fp16 on a GPU")
    log_every: int = arg(10, "batches between log lines", at_least=1)


@dataclass
class Args(
    TrackArgs, WeldInputArgs, QuadModelArgs, SupConArgs, OptimArgs, SupConTrainArgs, EvalArgs,
):  # fmt: skip
    """V4: supervised-contrastive quad-modal weld classification."""

    dataset: str = override(DataArgs, "dataset", "demo", choices=["demo", "weld"])
    wandb_project: str = override(TrackArgs, "wandb_project", "weld-anomaly-detection")
    demo_train: int = override(WeldDemoArgs, "demo_train", 24)
    demo_good: int = override(WeldDemoArgs, "demo_good", 12)
    demo_defects: int = override(WeldDemoArgs, "demo_defects", 8)
    dummy: Switch = override(WeldEncoderArgs, "dummy", False, aliases=["use-dummy"])
    epochs: Optional[int] = arg(  # type: ignore[assignment]
        None, "passes over the training data; None = 100 (built-in data: 40)", type=int, at_least=0,
        aliases=["epoch", "num-epochs"],
    )  # fmt: skip
    batch_size: Optional[int] = arg(None, "runs per batch; None = 16 (built-in data: 24)", type=int, at_least=2)  # type: ignore[assignment]
    learning_rate: Optional[float] = arg(  # type: ignore[assignment]
        None, "peak learning rate; None = 1e-4 (built-in data: 1e-3)", type=float, at_least=0, aliases=["lr"]
    )
    weight_decay: float = override(OptimArgs, "weight_decay", 1e-4)
    grad_clip: float = override(OptimArgs, "grad_clip", 1.0)
    seed: int = override(RunArgs, "seed", 42)
    select: str = override(EvalArgs, "select", "val", choices=["val", "last"])


FULL = {
    "video_backbone": "vjepa2-vitl", "audio_backbone": "ast-14-14", "image_backbone": "dinov2-base",
    "layer_index": "block", "branches": "12.mean", "hidden_dim": 512, "sensor_dim": 256, "sensor_layers": 4,
    "epochs": 100, "batch_size": 16, "learning_rate": 1e-4, "patience": 10,
    "video_frames": 8, "video_size": 224, "image_size": 224, "audio_frames": 1024, "video_token_pool": "none",
}  # fmt: skip
TINY = {
    "video_backbone": "tiny-vjepa2", "audio_backbone": "tiny-ast", "image_backbone": "tiny-dinov3",
    "video_weights": "random", "audio_weights": "random", "image_weights": "random", "branches": "2.mean",
    "layer_index": "block", "hidden_dim": 64, "sensor_dim": 32, "sensor_layers": 2,
    "epochs": 40, "batch_size": 24, "learning_rate": 1e-3, "patience": 20,
    "video_frames": 8, "video_size": 64, "image_size": 64, "audio_frames": 64, "video_token_pool": "none",
}  # fmt: skip
QUICK = {"epochs": 3, "batch_size": 4, "log_every": 1, "demo_train": 4, "demo_good": 2, "demo_defects": 2, "k": 1}


def resolve(args: Args) -> Args:
    """Fill every None that has a value, and refuse what cannot work before anything runs."""
    if args.dataset == "weld" and not args.data_path:
        raise UserError("--dataset weld needs --data-path: the folder with manifest.csv")
    if args.adapters != "none" and args.freeze == "none":
        raise UserError("--adapters adapt frozen attention: choose --freeze heads or sensor as well")
    if args.quick_test:
        quick: dict[str, Any] = QUICK
        args = replace(args, **quick)
    if args.mixed_precision:
        args = replace(args, precision="bf16" if args.device in ("auto", "cpu") else "fp16", mixed_precision=False)
    defaults: dict[str, Any] = {**FULL, **(TINY if args.dummy or not args.data_path else {})}
    return replace(args, **{name: value for name, value in defaults.items() if getattr(args, name) is None})


def quad_config(args: Args, dims: dict[str, int]) -> QuadConfig:
    """The model's configuration from resolved options and the encoders' widths."""
    assert args.hidden_dim and args.sensor_dim and args.sensor_layers  # noqa: PT018
    return replace(
        QuadConfig(**{name: int(width) for name, width in dims.items()}),  # type: ignore[arg-type]
        sensor_dim=args.sensor_dim,
        sensor_layers=args.sensor_layers,
        sensor_heads=min(8, args.sensor_dim // 8),
        sensor_stride=args.sensor_stride,
        hidden_dim=args.hidden_dim,
        num_heads=min(8, args.hidden_dim // 8),
        fusion_tokens=args.fusion_tokens,
        dropout=args.dropout,
        classifier_layers=args.classifier_layers,
        missing=args.missing,
        modality_dropout=args.modality_dropout,
        activation_checkpointing=args.activation_checkpointing,
    )


def tiny() -> Args:
    """Seconds on a CPU."""
    return Args(
        epochs=2, demo_train=3, demo_good=2, demo_defects=1, hidden_dim=16, sensor_dim=16, sensor_layers=1,
        batch_size=12, k=1, video_frames=2, video_size=32, image_size=32, views=1, sensor_steps=16,
    )  # fmt: skip
