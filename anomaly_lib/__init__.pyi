"""What type checkers and editors know of the package. Written by make_figures.py --only stub; do not edit."""

from pathlib import Path
from typing import Any, Literal, TypedDict, overload

from typing_extensions import Unpack

from anomaly_lib.fitting import Fitted as Fitted

__version__: str
__all__ = ["__version__", "fit", "load"]

def load(path: Any, *, weights: Any = None, plugin: Any = None) -> Any: ...

class _Shared(TypedDict, total=False):
    batch_size: int
    device: str
    figures: bool
    fresh: bool
    image_size: list[int] | int
    keep_aspect: bool
    num_workers: int
    on_error: Literal["fail", "skip"]
    output_dir: str | Path | None
    overlap: int | None
    precision: Literal["fp32", "bf16", "fp16"]
    protocol: Literal["clean", "paper"]
    resume: str | Path | None
    save_every: int
    save_path: str | Path | None
    seed: int
    tensorboard: bool
    tile: int
    wandb: bool
    wandb_name: str | None
    wandb_project: str

class _Frozen(_Shared, total=False):
    backbone: str
    cache: Literal["auto", "ram", "disk", "off"]
    cache_dir: str | Path | None
    download: bool
    sigma: float
    weights: str | Path | None

class _Patchcore(_Frozen, total=False):
    aggregate_dim: int
    chunk_rows: int | None
    coreset_ratio: float
    coreset_size: int | None
    dataset: str
    embedding: Literal["concat", "aggregate"]
    false_alarms: float
    layers: list[str] | str
    neighbours: int
    obj: str | None
    patch_neighbours: int
    plugin: str | Path | None
    projection: bool
    rows: Literal["auto", "raw", "unit", "layernorm"]
    scoring: Literal["reweighted", "max"]
    shot: int | None
    squared: bool
    upsample: Literal["bilinear", "nearest"]

class _Padim(_Frozen, total=False):
    dataset: str
    false_alarms: float
    features: int
    layers: list[str] | str
    obj: str | None
    plugin: str | Path | None
    rows: Literal["auto", "raw", "unit", "layernorm"]
    shot: int | None

class _ReverseDistillation(_Frozen, total=False):
    calibration_share: float
    dataset: str
    early_stopping_patience: int
    epochs: int
    false_alarms: float
    gamma: float
    grad_clip: float
    layers: list[str] | str
    learning_rate: float
    map_mode: Literal["add", "multiply"]
    milestones: list[int] | int
    momentum: float
    obj: str | None
    optimizer: Literal["adam", "adamw", "sgd"]
    plugin: str | Path | None
    schedule: Literal["constant", "cosine", "linear", "step", "multistep", "onecycle"]
    shot: int | None
    step_size: int
    warmup_epochs: int
    weight_decay: float

class _Draem(_Shared, total=False):
    anomaly_probability: float
    calibration_share: float
    channels: int
    concat_order: Literal["image-first", "repair-first"]
    dataset: str
    early_stopping_patience: int
    epochs: int
    false_alarms: float
    focal_alpha: float
    focal_weight: float
    gamma: float
    grad_clip: float
    learning_rate: float
    milestones: list[int] | int
    momentum: float
    obj: str | None
    optimizer: Literal["adam", "adamw", "sgd"]
    plugin: str | Path | None
    repair_width: int
    schedule: Literal["constant", "cosine", "linear", "step", "multistep", "onecycle"]
    score: Literal["max", "mean21-max"]
    segment_width: int
    shot: int | None
    step_size: int
    textures: str | None
    warmup_epochs: int
    weight_decay: float

class _DraemSevnet(_Shared, total=False):
    anomaly_probability: float
    calibration_share: float
    channels: int
    combination: Literal["simple_average", "weighted_average", "maximum"]
    combination_weight: float
    concat_order: Literal["image-first", "repair-first"]
    dataset: str
    early_stopping_patience: int
    epochs: int
    false_alarms: float
    focal_alpha: float
    focal_weight: float
    gamma: float
    grad_clip: float
    head_attention: bool
    head_grid: int
    head_hidden: int
    head_mode: Literal["single_scale", "multi_scale"]
    head_pooling: Literal["gap", "spatial_aware"]
    learning_rate: float
    milestones: list[int] | int
    momentum: float
    obj: str | None
    optimizer: Literal["adam", "adamw", "sgd"]
    patch_count: int
    patch_ratio_range: list[float] | float
    patch_width_range: list[int] | int
    plugin: str | Path | None
    repair_width: int
    schedule: Literal["constant", "cosine", "linear", "step", "multistep", "onecycle"]
    score: Literal["max", "mean21-max"]
    segment_width: int
    severity_loss: Literal["mse", "smooth_l1"]
    severity_max: float
    severity_target: Literal["normalised", "raw"]
    severity_weight: float
    shot: int | None
    step_size: int
    warmup_epochs: int
    weight_decay: float

class _Fewshot(_Frozen, total=False):
    dataset: str
    false_alarms: float
    layers: list[str] | str
    obj: str | None
    plugin: str | Path | None
    rotations: int
    shot: int | None
    top_share: float
    variance: float

class _Anomalydino(_Frozen, total=False):
    dataset: str
    false_alarms: float
    layers: list[str] | str
    mask: bool
    mask_support: bool
    mask_threshold: float
    neighbours: int
    obj: str | None
    plugin: str | Path | None
    rotations: int
    shot: int | None
    top_share: float

class _Subspacead(_Frozen, total=False):
    components: int | None
    dataset: str
    false_alarms: float
    layers: list[str] | str
    obj: str | None
    plugin: str | Path | None
    rotations: int
    shot: int | None
    top_share: float
    variance: float

class _Visionad(_Frozen, total=False):
    augment_query: bool
    augment_support: bool
    dataset: str
    false_alarms: float
    layers: list[str] | str
    obj: str | None
    plugin: str | Path | None
    shot: int | None
    top_share: float

class _Rad(_Frozen, total=False):
    dataset: str
    false_alarms: float
    layers: list[str] | str
    nearest_images: int
    obj: str | None
    plugin: str | Path | None
    radius: int
    shot: int | None
    top_share: float

class _Musc(_Frozen, total=False):
    dataset: str
    layers: list[str] | str
    nearest_share: float
    obj: str | None
    plugin: str | Path | None
    rescore: list[int] | int
    shot: int | None
    windows: list[int] | int

class _Winclip(_Frozen, total=False):
    class_text: str
    dataset: str
    false_alarms: float
    few_shot: bool
    layers: list[str] | str
    obj: str | None
    plugin: str | Path | None
    shot: int | None
    temperature: float

class _Promptad(_Frozen, total=False):
    calibration: Literal["none", "z-score", "quantile"]
    class_text: str | None
    dataset: Literal["mvtec", "btad", "demo", "folder", "hdmap", "meta", "visa"]
    epochs: int
    eval_every: int
    false_alarms: float
    fusion_in_loss: bool
    fusion_mode: Literal[
        "harmonic", "harmonic-mean", "max", "mean", "min", "product", "weighted", "noisy-or", "z-score", "rank"
    ]
    fusion_weights: list[float] | float
    grad_clip: float
    image_max: Literal["map", "grid"]
    lambda1: float
    learning_rate: float
    logit_scale: Literal["exp", "raw"]
    memory_layers: list[int] | int
    memory_tap: Literal["block_out", "post_attn_next"]
    memory_views: Literal["none", "flips", "rotations", "all"]
    min_lr: float
    momentum: float
    n_ctx: int
    n_ctx_ab: int
    n_pro: int
    n_pro_ab: int
    obj: str | None
    pairing: Literal["all", "modulo"]
    pretrained_dataset: str | None
    reader_resize: int
    resolution: int
    root_dir: str | None
    select: Literal["last", "val", "best-on-test"]
    shot: int
    shots: str
    states: list[str] | str
    task: Literal["cls", "seg"]
    test_color: Literal["rgb", "bgr"]
    triplet_axis: Literal["channel", "patch"]
    visual_backbone: str | None
    visual_weights: str | None
    weight_decay: float

class _Sowa(_Frozen, total=False):
    ablate_stages: bool
    adapter: (
        list[Literal["window", "soldier", "officer", "linear", "none"]]
        | Literal["window", "soldier", "officer", "linear", "none"]
    )
    anomaly_templates: list[str] | str
    attn_drop: float
    class_names: list[str] | str
    compile: bool
    context_words: str
    cpb_dim: int
    dataset: Literal["mvtec", "btad", "demo", "folder", "hdmap", "meta", "visa"]
    decay: Literal["matrices", "all"]
    depth: list[int] | int
    dirpath: str | None
    drop: float
    drop_path: float
    early_stopping_patience: int
    enable_validation: bool
    epochs: int
    eval_data_path: str | Path | None
    eval_dataset: Literal["mvtec", "btad", "demo", "folder", "hdmap", "meta", "visa"] | None
    false_alarms: float
    fast_dev_run: bool
    feature_map_idx: list[int] | int
    fusion: Literal["dot"]
    gamma: float
    grad_clip: float
    hidden_features: list[int] | int
    image_score: Literal["mean", "text"]
    layers_dtype: Literal["fp32", "fp16", "bf16"]
    learning_rate: float
    loss: Literal["clean", "paper"]
    map_calibration: Literal["logistic", "none"]
    mosaic_label: Literal["any", "replaced"]
    mosaic_rate: float
    normal_data: str | None
    normal_templates: list[str] | str
    num_heads: int
    plain_templates: Literal["short", "ensemble"]
    plugin: str | Path | None
    prompt_learner: Literal["coop", "plain", "zero"]
    prompt_length: int
    schedule: Literal["plateau", "constant", "cosine"]
    score_scaling: Literal["support", "transductive"]
    select: Literal["last", "val", "best-on-test"]
    share_weight: bool
    shot: int
    stages: list[int] | int
    start: Literal["zero-shot", "random"]
    temperature: float
    test_classes: list[str] | str
    text_linear: bool
    text_rate: float
    train_classes: list[str] | str
    truncate: bool
    validation_share: float
    value_only: bool
    vision: Literal["map", "residual"]
    visualize: bool
    weight_decay: float
    window_size: list[int] | int

@overload
def fit(model: Literal["patchcore"], data: Any, **options: Unpack[_Patchcore]) -> Fitted: ...
@overload
def fit(model: Literal["padim"], data: Any, **options: Unpack[_Padim]) -> Fitted: ...
@overload
def fit(model: Literal["reverse_distillation"], data: Any, **options: Unpack[_ReverseDistillation]) -> Fitted: ...
@overload
def fit(model: Literal["draem"], data: Any, **options: Unpack[_Draem]) -> Fitted: ...
@overload
def fit(model: Literal["draem_sevnet"], data: Any, **options: Unpack[_DraemSevnet]) -> Fitted: ...
@overload
def fit(model: Literal["fewshot"], data: Any, **options: Unpack[_Fewshot]) -> Fitted: ...
@overload
def fit(model: Literal["anomalydino"], data: Any, **options: Unpack[_Anomalydino]) -> Fitted: ...
@overload
def fit(model: Literal["subspacead"], data: Any, **options: Unpack[_Subspacead]) -> Fitted: ...
@overload
def fit(model: Literal["visionad"], data: Any, **options: Unpack[_Visionad]) -> Fitted: ...
@overload
def fit(model: Literal["rad"], data: Any, **options: Unpack[_Rad]) -> Fitted: ...
@overload
def fit(model: Literal["musc"], data: Any, **options: Unpack[_Musc]) -> Fitted: ...
@overload
def fit(model: Literal["winclip"], data: Any, **options: Unpack[_Winclip]) -> Fitted: ...
@overload
def fit(model: Literal["promptad"], data: Any, **options: Unpack[_Promptad]) -> Fitted: ...
@overload
def fit(model: Literal["sowa"], data: Any, **options: Unpack[_Sowa]) -> Fitted: ...
@overload
def fit(model: str, data: Any, *, plugin: str | Path, **options: Any) -> Fitted: ...
