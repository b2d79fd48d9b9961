"""Options of the five classical detectors, and what each of them means by default."""

from dataclasses import dataclass, fields, replace
from typing import Any, Optional

from anomaly_lib.config import Options, Switch, arg, override
from anomaly_lib.engine.schedule import SCHEDULES
from anomaly_lib.errors import UserError
from anomaly_lib.options import BackboneArgs, DataArgs, OptimArgs, RunArgs, TrackArgs

MODELS = ("patchcore", "padim", "reverse_distillation", "draem", "draem_sevnet")
TRAINED = ("reverse_distillation", "draem", "draem_sevnet")
PADIM_FEATURES = {"resnet18": 100, "wide_resnet50_2": 550}

# Published values of what depends on the model: an option left at None takes them.
DEFAULTS: dict[str, dict[str, Any]] = {
    "patchcore": {"backbone": "wide_resnet50_2", "layers": ["layer2", "layer3"], "epochs": 1, "batch_size": 32},
    "padim": {"backbone": "resnet18", "layers": ["layer1", "layer2", "layer3"], "epochs": 1, "batch_size": 32},
    "reverse_distillation": {
        "backbone": "wide_resnet50_2", "layers": ["layer1", "layer2", "layer3"], "epochs": 200, "batch_size": 16,
        "learning_rate": 0.005,
    },
    "draem": {"epochs": 700, "batch_size": 8, "learning_rate": 1e-4},
    "draem_sevnet": {"epochs": 50, "batch_size": 16, "learning_rate": 1e-4},
}  # fmt: skip
# Built-in data and no word about a backbone: the built-in CLIP's patch maps, or networks that train in a minute.
ON_DEMO_DATA: dict[str, dict[str, Any]] = {
    "patchcore": {"backbone": "demo-clip", "layers": ["layer.1", "layer.3"]},
    "padim": {"backbone": "demo-clip", "layers": ["layer.1", "layer.3"], "n_features": 100},
    "reverse_distillation": {"backbone": "resnet18", "weights": "random", "epochs": 3},
    "draem": {"repair_width": 16, "segment_width": 16, "epochs": 20},
    "draem_sevnet": {"repair_width": 16, "segment_width": 16, "epochs": 20},
}
DEMO_IMAGE_SIZE = [128, 128]
# What the published programs do differently: (clean, paper). --protocol paper sets them all, an explicit value stays.
QUIRKS: dict[str, tuple[object, object]] = {
    "upsample": ("bilinear", "nearest"),  # anomalib's PatchCore resizes its map by nearest
    "focal_alpha": (-1.0, 1.0),  # anomalib with kornia >= 0.7: background weight 0
    "severity_target": ("normalised", "raw"),  # a sigmoid regressed to labels above 1
}


@dataclass
class ModelArgs(Options):
    """The detector."""

    model: str = arg("patchcore", "which detector", choices=MODELS)
    image_size: list[int] = arg([256, 256], "height and width that the detector sees", at_least=8)
    channels: int = arg(3, "channels of DRAEM's input: 1 for grey images, else 3", choices=[1, 3])
    sigma: float = arg(4.0, "Gaussian smoothing of PatchCore, PaDiM and Reverse Distillation maps", at_least=0)
    upsample: Optional[str] = arg(
        None, "resize of PatchCore's map: bilinear (paper protocol: nearest)", choices=["bilinear", "nearest"], type=str
    )
    coreset_ratio: float = arg(
        0.1, "share of patches PatchCore keeps", at_least=0, at_most=1, aliases=["coreset-sampling-ratio"]
    )
    coreset_size: Optional[int] = arg(None, "patches PatchCore keeps, instead of a share", type=int, at_least=1)
    chunk_rows: Optional[int] = arg(
        None, "patches held in memory at a time (two-level coreset); None = all", type=int, at_least=1
    )
    neighbours: int = arg(9, "neighbours in PatchCore's image score", at_least=1, aliases=["num-neighbors"])
    scoring: str = arg(
        "reweighted", "PatchCore's image score: re-weighted or plain maximum", choices=["reweighted", "max"]
    )
    embedding: str = arg(
        "concat", "PatchCore's patch vectors: anomalib's or the original's", choices=["concat", "aggregate"]
    )
    squared: Switch = arg(False, "squared distances, as in the original PatchCore")
    patch_neighbours: int = arg(1, "nearest patches averaged in PatchCore's patch score", at_least=1)
    n_features: Optional[int] = arg(
        None, "channels PaDiM keeps; None = 100 (resnet18), 550 (wide)", type=int, at_least=1
    )
    map_mode: str = arg(
        "add", "how Reverse Distillation joins its scales", choices=["add", "multiply"], aliases=["anomaly-map-mode"]
    )
    repair_width: int = arg(128, "base width of DRAEM's repair network", at_least=1)
    segment_width: int = arg(64, "base width of DRAEM's segmentation network", at_least=1)
    concat_order: str = arg(
        "image-first", "input order of DRAEM's segmentation", choices=["image-first", "repair-first"]
    )
    draem_score: str = arg("max", "DRAEM's image score", choices=["max", "mean21-max"])
    focal_alpha: Optional[float] = arg(
        None, "focal weight of the anomaly class; -1 = equal weights (paper protocol: 1)", type=float, at_most=1
    )
    anomaly_probability: float = arg(0.5, "share of training images that get damaged", at_least=0, at_most=1)
    textures: Optional[str] = arg(None, "folder of texture images for DRAEM; None = Perlin noise itself", type=str)


@dataclass
class SevNetArgs(Options):
    """DRAEM-SevNet."""

    severity_head_mode: str = arg("single_scale", "activations the head reads", choices=["single_scale", "multi_scale"])
    severity_head_pooling_type: str = arg("gap", "how they are pooled", choices=["gap", "spatial_aware"])
    severity_head_hidden: int = arg(128, "width of the head", at_least=2)
    severity_head_spatial_size: int = arg(4, "grid of spatial pooling", at_least=1)
    severity_head_use_spatial_attention: Switch = arg(True, "attention before spatial pooling")
    score_combination: str = arg(
        "simple_average", "image score", choices=["simple_average", "weighted_average", "maximum"]
    )
    severity_weight_for_combination: float = arg(0.5, "weight of the severity in it", at_least=0, at_most=1)
    severity_weight: float = arg(0.5, "weight of the severity loss", at_least=0)
    severity_loss_type: str = arg("mse", "severity loss", choices=["mse", "smooth_l1"])
    severity_max: float = arg(1.0, "largest severity drawn")
    severity_target: Optional[str] = arg(
        None, "label of the head: severity / max (paper protocol: raw)", choices=["normalised", "raw"], type=str
    )
    patch_width_range: list[int] = arg([20, 80], "patch widths of the pasted faults", at_least=1)
    patch_ratio_range: list[float] = arg([2.0, 4.0], "height over width of the pasted faults")
    patch_count: int = arg(1, "patches per image", at_least=1)


@dataclass
class DetectorArgs(RunArgs, TrackArgs, DataArgs, OptimArgs, BackboneArgs, ModelArgs, SevNetArgs):
    """What every recipe of these detectors takes."""

    backbone: Optional[str] = arg(None, "frozen network; None = the model's published one", type=str)  # type: ignore[assignment]
    layers: list[str] = arg([], "its stages; none = the model's published ones", type=str)
    epochs: Optional[int] = arg(  # type: ignore[assignment]
        None, "passes over the training data; None = the model's", type=int, at_least=0, aliases=["epoch", "num-epochs"]
    )
    batch_size: Optional[int] = arg(None, "images per step; None = the model's", type=int, at_least=1)  # type: ignore[assignment]
    learning_rate: Optional[float] = arg(  # type: ignore[assignment]
        None, "peak learning rate; None = the model's", type=float, at_least=0, aliases=["lr"]
    )
    weight_decay: float = override(OptimArgs, "weight_decay", 0.0)
    optimizer: str = arg("adam", "optimizer of the trained models", choices=["adam", "adamw", "sgd"])
    schedule: str = arg("constant", "learning-rate curve over the epochs", choices=list(SCHEDULES))
    warmup_epochs: int = arg(0, "epochs of linear warm-up", at_least=0)
    step_size: int = arg(10, "epochs between drops of --schedule step", at_least=1)
    gamma: float = arg(0.1, "factor of a drop", at_least=0)
    early_stopping_patience: int = arg(
        0, "epochs without a better validation AUROC before stopping; 0 = never", at_least=0
    )
    protocol: str = arg("clean", "clean, or paper = all quirks of the published programs", choices=["clean", "paper"])
    figures: Switch = arg(True, "draw figures at the end of the run")


def on_demo_data(args: Any) -> Any:
    """The same detector at demo scale where the user has not said otherwise. Never done to real data."""
    if args.dataset != "demo" or args.data_path or args.backbone or args.weights:
        return args
    declared = {f.name: f.default for f in fields(args)}
    small = {**ON_DEMO_DATA[args.model], "image_size": DEMO_IMAGE_SIZE}
    untouched = {"layers": [], "image_size": DetectorArgs().image_size}
    return replace(
        args,
        **{name: value for name, value in small.items() if getattr(args, name) == untouched.get(name, declared[name])},
    )


def resolve(args: Any) -> Any:
    """Every None replaced by what the model and the protocol say; nonsense refused."""
    known = DEFAULTS[args.model]
    chosen: dict[str, Any] = {
        name: known.get(name, args.layers if name == "layers" else None)
        for name in ("backbone", "epochs", "batch_size", "learning_rate", "layers")
        if not getattr(args, name)
    }
    if args.epochs == 0:
        chosen["epochs"] = 0
    place = 1 if args.protocol == "paper" else 0
    chosen |= {name: values[place] for name, values in QUIRKS.items() if getattr(args, name) is None}
    args = replace(args, **{name: value for name, value in chosen.items() if value is not None})
    if args.model == "padim" and args.n_features is None:
        if args.backbone not in PADIM_FEATURES:
            raise UserError(f"--n-features: PaDiM with {args.backbone} needs a number of channels to keep")
        args = replace(args, n_features=PADIM_FEATURES[args.backbone])
    if len(args.image_size) != 2:
        raise UserError(f"--image-size takes height and width, got {args.image_size}")
    for name in ("patch_width_range", "patch_ratio_range"):
        low_high = getattr(args, name)
        if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1]:
            raise UserError(f"--{name.replace('_', '-')} takes two positive ascending numbers, got {low_high}")
    if args.model == "draem_sevnet" and args.patch_width_range[1] >= min(args.image_size):
        raise UserError(
            f"--patch-width-range up to {args.patch_width_range[1]} does not fit --image-size "
            f"{args.image_size[0]} {args.image_size[1]}; lower it"
        )
    if args.severity_max <= 0:
        raise UserError(f"--severity-max must be positive, got {args.severity_max}")
    return args
