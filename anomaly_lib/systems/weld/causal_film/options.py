"""Every option of Causal-FiLM, written once. None = decided by the preset, the protocol or the data (see `resolve`)."""

from dataclasses import dataclass, replace
from typing import Any, Optional

from anomaly_lib.config import Options, Switch, arg, override
from anomaly_lib.errors import UserError
from anomaly_lib.models.weld.causal_film import TARGET_MODES, CausalFiLMConfig, model_config
from anomaly_lib.models.weld.causal_film_loss import LOSS_PRESETS, SCORE_KINDS, LossConfig, loss_config
from anomaly_lib.models.weld.causal_film_parts import DECODERS, GEM_MODES, MODULATORS
from anomaly_lib.options import DataArgs, EvalArgs, OptimArgs, RunArgs, TrackArgs
from anomaly_lib.systems.weld.inputs import WeldInputArgs


@dataclass
class CausalModelArgs(Options):
    """The model."""

    preset: str = arg("best", "published stage whose values the None options take", choices=list(LOSS_PRESETS))
    d_model: Optional[int] = arg(None, "width; None = 512, stage1: 256 (tiny encoders: 64)", type=int, at_least=4)
    sensor_hidden: Optional[int] = arg(
        None, "width of the sensor encoder; None = 128 (tiny encoders: 32)", type=int, at_least=4
    )
    modulator: str = arg("mamba", "sensor encoder", choices=list(MODULATORS))
    scan_backend: str = arg(
        "auto", "Mamba's scan: mamba_ssm's kernel or plain torch", choices=["auto", "torch", "kernel"]
    )
    split_film: Switch = arg(False, "own gamma and beta for video and audio")
    process_dropout: float = arg(0.1, "dropout inside the process encoder", at_least=0, at_most=0.99)
    gem_p: float = arg(3.0, "initial exponent of GeM pooling", at_least=1)
    gem_mode: str = arg("clamp", "what GeM does with negative tokens", choices=list(GEM_MODES))
    view_pool: str = arg("max", "how the photos of a weld become one vector", choices=["max", "mean"])
    reduce: int = arg(0, "shrink each branch to this width before joining; 0 = off", at_least=0)
    gate: Switch = arg(True, "gate the joined branches")
    decoder: str = arg("mlp", "decoder", choices=list(DECODERS))
    decoder_activation: Optional[str] = arg(None, "None = relu (paper: silu)", type=str, choices=["relu", "silu"])
    decoder_dropout: Optional[float] = arg(None, "None = 0.2 (paper: 0.1)", type=float, at_least=0, at_most=0.99)
    decoder_dropout_position: str = arg("hidden", "where the decoder's noise acts", choices=["hidden", "input"])
    encoder_dropout: Optional[float] = arg(
        None, "dropout on all frozen features; None = 0 (paper: 0.2, an accident)", type=float, at_least=0, at_most=0.99
    )
    feature_mask_ratio: float = arg(
        0.2, "share of video and audio features masked in training", at_least=0, at_most=0.99
    )
    feature_noise: float = arg(0.0, "Gaussian noise on video and audio features in training", at_least=0)
    target_mode: Optional[str] = arg(
        None, "joint = the target is trained too (it collapses); stopgrad = a fixed random target encoder; "
        "ema_target = slow copies teach each other; None = stopgrad (paper: joint)", type=str,
        choices=list(TARGET_MODES),
    )  # fmt: skip
    score_kind: str = arg("combined", "the anomaly score", choices=list(SCORE_KINDS))
    score_topk: float = arg(0.5, "share of the largest errors in the score", at_least=0.01, at_most=1)


@dataclass
class CausalLossArgs(Options):
    """The loss."""

    l1_kind: Optional[str] = arg(None, "None = smooth_l1, doc and stage1: l1", type=str, choices=["l1", "smooth_l1"])
    topk_ratio: Optional[float] = arg(None, "None = 0.5, doc and stage1: 1", type=float, at_least=0.01, at_most=1)
    lambda_l1: Optional[float] = arg(None, "None = 1, doc and stage1: 10", type=float, at_least=0)
    lambda_gram: Optional[float] = arg(None, "None = 1, stage1: 0", type=float, at_least=0)
    lambda_text: Optional[float] = arg(None, "None = 0.01, doc and stage1: 0.1", type=float, at_least=0)
    gram_mode: str = arg("feature", "Gram matrix of the features or of the batch", choices=["feature", "batch"])
    gram_norm: str = arg("mse", "its distance", choices=["mse", "fro"])
    text_vector: Optional[str] = arg(
        None, "tensor file with the CLIP embedding of 'a normal weld'; None = no text term", type=str
    )


@dataclass
class CausalTrainArgs(Options):
    """Schedule, averaging and stopping."""

    warmup_epochs: int = arg(8, "epochs of linear warm-up", at_least=0)
    warmup_start_lr: float = arg(5e-7, "learning rate of the first epoch", at_least=0)
    min_lr: float = arg(1e-7, "learning rate at the end", at_least=0)
    patience: int = arg(20, "epochs without a better validation AUROC before stopping; 0 = never", at_least=0)
    ema_decay: float = arg(0.9999, "decay of the weight average; 0 = none", at_least=0, at_most=1)
    ema_warmup: Switch = arg(True, "let the decay grow, so that early averages are not stale")
    log_every: int = arg(10, "batches between log lines", at_least=1)
    wandb_entity: Optional[str] = arg(None, "team at Weights & Biases", type=str)
    wandb_id: Optional[str] = arg(None, "run id at Weights & Biases; None = the checkpoint's", type=str)


@dataclass
class Args(
    TrackArgs, WeldInputArgs, CausalModelArgs, CausalLossArgs, OptimArgs, CausalTrainArgs, EvalArgs,
):  # fmt: skip
    """Causal-FiLM, process to result."""

    dataset: str = override(DataArgs, "dataset", "demo", choices=["demo", "weld"])
    wandb_project: str = override(TrackArgs, "wandb_project", "weld-anomaly-detection")
    epochs: Optional[int] = arg(  # type: ignore[assignment]
        None, "passes over the training data; None = 100 (built-in data: 40)", type=int, at_least=0,
        aliases=["epoch", "num-epochs"],
    )  # fmt: skip
    batch_size: int = override(OptimArgs, "batch_size", 32)
    learning_rate: Optional[float] = arg(  # type: ignore[assignment]
        None,
        "peak learning rate; None = 2e-5, stage1: 1e-4 (built-in data: 3e-3)",
        type=float,
        at_least=0,
        aliases=["lr"],
    )
    weight_decay: float = override(OptimArgs, "weight_decay", 1e-2)
    grad_clip: float = override(OptimArgs, "grad_clip", 0.5)
    seed: int = override(RunArgs, "seed", 42)
    select: str = override(EvalArgs, "select", "val", choices=["val", "last"])


TINY_BRANCHES = "1.mean,1.gem,2.mean"
FULL = {
    "video_backbone": "vjepa2-vitl", "audio_backbone": "ast-14-14", "image_backbone": "dinov3-vith16plus",
    "layer_index": "seed", "d_model": 512, "sensor_hidden": 128, "epochs": 100, "learning_rate": 2e-5,
    "video_frames": 16, "video_size": 224, "image_size": 224, "audio_frames": 1024,
    "video_token_pool": "none",
}  # fmt: skip
STAGE1 = {"image_backbone": "dinov2-base", "d_model": 256, "learning_rate": 1e-4}
TINY = {
    "video_backbone": "tiny-vjepa2", "audio_backbone": "tiny-ast", "image_backbone": "tiny-dinov3",
    "video_weights": "random", "audio_weights": "random", "image_weights": "random", "branches": TINY_BRANCHES,
    "layer_index": "block", "d_model": 64, "sensor_hidden": 32, "epochs": 40, "learning_rate": 3e-3,
    "video_frames": 8, "video_size": 64, "image_size": 96, "audio_frames": 64,
    "video_token_pool": "spatial",
}  # fmt: skip
QUIRKS = ("legacy_video", "legacy_frame_64", "legacy_mel_64", "legacy_audio_axes", "legacy_image_norm")
CLEAN = {"target_mode": "stopgrad", "decoder_activation": "relu", "decoder_dropout": 0.2, "encoder_dropout": 0.0}
PAPER = {"target_mode": "joint", "decoder_activation": "silu", "decoder_dropout": 0.1, "encoder_dropout": 0.2}


def resolve(args: Args) -> Args:
    """Fill every None that has a value, and refuse what cannot work before anything runs."""
    if args.dataset == "weld" and not args.data_path:
        raise UserError("--dataset weld needs --data-path: the folder with manifest.csv")
    if args.augment and args.cache != "off":
        raise UserError("--augment changes the inputs every epoch, so features cannot be kept: add --cache off")
    tiny = args.dummy or not args.data_path
    defaults = {**FULL, **(STAGE1 if args.preset == "stage1" else {}), **(TINY if tiny else {})}
    paper = args.protocol == "paper"
    defaults |= PAPER if paper else CLEAN
    defaults["branches"] = defaults.get("branches", args.preset)
    chosen = {name: value for name, value in defaults.items() if getattr(args, name) is None}
    args = replace(args, **chosen)  # type: ignore[arg-type]
    if paper:
        quirks: dict[str, Any] = dict.fromkeys(QUIRKS, True)
        args = replace(args, **quirks)
    if args.legacy_frame_64:
        args = replace(args, video_size=64)
    return args


def causal_config(args: Args, dims: dict[str, int]) -> CausalFiLMConfig:
    """The model's configuration; `dims` are the token widths of the encoders."""
    same = (
        "d_model", "sensor_hidden", "modulator", "split_film", "branches", "reduce", "gate", "gem_p", "gem_mode",
        "view_pool", "decoder", "decoder_activation", "decoder_dropout", "decoder_dropout_position", "encoder_dropout",
        "feature_mask_ratio", "feature_noise", "target_mode", "scan_backend", "process_dropout",
    )  # fmt: skip
    changes: dict[str, Any] = {name: getattr(args, name) for name in same}
    return model_config(args.preset, **(changes | dims))


def causal_loss_config(args: Args) -> LossConfig:
    names = ("l1_kind", "topk_ratio", "lambda_l1", "lambda_gram", "lambda_text", "gram_mode", "gram_norm")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return loss_config(args.preset, **given)


def tiny() -> Args:
    """Seconds on a CPU."""
    return Args(
        epochs=2, demo_train=8, demo_good=2, demo_defects=1, d_model=16, sensor_hidden=16, sensor_steps=16,
        video_frames=2, video_size=32, image_size=32, views=2, audio_frames=32, patience=0, figures=False,
    )  # fmt: skip
