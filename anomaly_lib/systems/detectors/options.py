"""Options of the five classical detectors, and what each of them means by default. This file loads no torch."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Optional

from anomaly_lib.config import ANY, Preset, Switch, arg, default_of, override, shown
from anomaly_lib.errors import OptionError
from anomaly_lib.models.detectors.configs import (
    CONFIGS,
    DRAEMS,
    MEMORIES,
    READS_BACKBONE,
    DraemSevNetConfig,
    PadimConfig,
    PatchCoreConfig,
    ReverseDistillationConfig,
)
from anomaly_lib.options import (
    SCHEDULES,
    BackboneArgs,
    DataArgs,
    DecisionArgs,
    EvalArgs,
    HoldOutArgs,
    OptimArgs,
    RunArgs,
    TrackArgs,
)

MODELS = tuple(CONFIGS)
TRAINED = tuple(model for model in MODELS if model not in MEMORIES)
TRAINING: dict[str, dict[str, Any]] = {
    "patchcore": {"backbone": "wide_resnet50_2", "epochs": 1, "batch_size": 32},
    "padim": {"backbone": "resnet18", "epochs": 1, "batch_size": 32},
    "reverse_distillation": {"epochs": 200, "batch_size": 16, "learning_rate": 0.005},
    "draem": {"epochs": 700, "batch_size": 8, "learning_rate": 1e-4},
    "draem_sevnet": {"epochs": 50, "batch_size": 16, "learning_rate": 1e-4},
}
"""Published values of what is no option of a model's module."""
DEFAULT = "patchcore"


def published(model: str) -> dict[str, Any]:
    """What a model means by default: the options of its module and its row of `TRAINING`."""
    return {f.name: default_of(f) for f in fields(CONFIGS[model])} | TRAINING[model]


def _published_preset(model: str) -> Preset:
    """What differs from the defaults of the options, which are those of `DEFAULT`."""
    usual = published(DEFAULT)
    own = {name: value for name, value in published(model).items() if value != usual.get(name, value)}
    absent = {name: value for name, value in TRAINING[model].items() if name not in usual}
    return Preset(when={"model": model}, then={**own, **absent})


@dataclass
class DamageArgs(DraemSevNetConfig):
    """Synthetic damage of DRAEM's training images."""

    anomaly_probability: float = arg(
        0.5, "share of training images that get damaged", at_least=0, at_most=1, needs={"model": DRAEMS}
    )
    textures: Optional[str] = arg(
        None, "folder of texture images; None = Perlin noise itself", type=str, needs={"model": "draem"}
    )
    patch_width_range: list[int] = arg(
        [20, 80], "patch widths of the pasted faults", at_least=1, length=2, needs={"model": "draem_sevnet"}
    )
    patch_ratio_range: list[float] = arg(
        [2.0, 4.0], "height over width of the pasted faults", length=2, needs={"model": "draem_sevnet"}
    )
    patch_count: int = arg(1, "patches an image", at_least=1, needs={"model": "draem_sevnet"})

    def check(self) -> None:
        for name in ("patch_width_range", "patch_ratio_range"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise OptionError(f"{name}={low} {high}: takes two positive ascending numbers")


@dataclass
class DetectorTraining(OptimArgs):
    """Training of Reverse Distillation and the DRAEMs; the batches of all."""

    epochs: int = override(OptimArgs, "epochs", TRAINING[DEFAULT]["epochs"], needs={"model": TRAINED})
    batch_size: int = override(OptimArgs, "batch_size", TRAINING[DEFAULT]["batch_size"])
    learning_rate: float = override(OptimArgs, "learning_rate", needs={"model": TRAINED})
    weight_decay: float = override(OptimArgs, "weight_decay", needs={"model": TRAINED})
    grad_clip: float = override(OptimArgs, "grad_clip", needs={"model": TRAINED})
    optimizer: str = arg("adam", "optimizer", choices=["adam", "adamw", "sgd"], needs={"model": TRAINED})
    schedule: str = arg(
        "constant",
        "learning-rate curve over the epochs",
        choices=[name for name in SCHEDULES if name != "plateau"],
        needs={"model": TRAINED},
    )
    warmup_epochs: int = arg(0, "epochs of linear warm-up", at_least=0, needs={"model": TRAINED})
    step_size: int = arg(10, "epochs between drops", at_least=1, needs={"schedule": "step"})
    milestones: list[int] = arg([], "epochs of the drops", type=int, at_least=1, needs={"schedule": "multistep"})
    gamma: float = arg(0.1, "factor of a drop", at_least=0, needs={"schedule": ("step", "multistep")})
    early_stopping_patience: int = arg(
        0,
        "epochs without a better validation AUROC before stopping; 0 = never",
        at_least=0,
        needs={"model": TRAINED},
        resumable=True,
    )

    def check(self) -> None:
        if self.schedule == "multistep" and not self.milestones:
            raise OptionError("schedule=multistep: give the epochs of its drops as milestones=")


@dataclass
class ModelArgs(PatchCoreConfig, PadimConfig, ReverseDistillationConfig, DamageArgs):
    """The detector."""

    PRESETS: ClassVar = (
        *(_published_preset(model) for model in MODELS if model != DEFAULT),
        Preset(when={"model": "padim", "backbone": "wide_resnet50_2"}, then={"features": 550}),
        # What the published programs do differently, where the default is the correct reading:
        Preset(when={"protocol": "paper", "model": "patchcore"}, then={"upsample": "nearest"}),  # anomalib
        Preset(when={"protocol": "paper", "model": DRAEMS}, then={"focal_alpha": 1.0}),  # anomalib, kornia >= 0.7
        Preset(when={"protocol": "paper", "model": "draem_sevnet"}, then={"severity_target": "raw"}),
    )
    model: str = arg(DEFAULT, "which detector", choices=MODELS)
    image_size: list[int] = arg([256, 256], "height and width of what it sees; one number = a square", at_least=8)
    chunk_rows: Optional[int] = arg(
        None, "patches held in memory at a time (two-level coreset); None = all", type=int, at_least=1,
        needs={"model": "patchcore"},
    )  # fmt: skip

    def check(self) -> None:
        if len(self.image_size) not in (1, 2):
            raise OptionError(f"image_size={shown(self.image_size)}: takes one or two numbers")
        self.image_size = (self.image_size * 2)[:2]
        if self.model == "draem_sevnet" and self.patch_width_range[1] >= min(self.image_size):
            raise OptionError(
                f"patch_width_range={shown(self.patch_width_range)}: does not fit image_size={shown(self.image_size)}; "
                "lower it"
            )


@dataclass
class DetectorArgs(RunArgs, TrackArgs, DataArgs, DetectorTraining, ModelArgs, DecisionArgs, BackboneArgs):
    """What every program that trains these detectors takes."""

    backbone: str = override(
        ReverseDistillationConfig, "backbone", TRAINING[DEFAULT]["backbone"], help="frozen network"
    )
    weights: Optional[str] = override(BackboneArgs, "weights", needs={"model": READS_BACKBONE})
    download: Switch = override(BackboneArgs, "download", needs={"model": READS_BACKBONE})
    precision: str = override(RunArgs, "precision", needs={"model": TRAINED})
    protocol: str = override(EvalArgs, "protocol")
    figures: Switch = override(EvalArgs, "figures")


BUILT_IN = {"data_path": None, "dataset": "demo"}


@dataclass
class Args(DetectorArgs, HoldOutArgs):
    """A classical detector on one class of a data set."""

    PRESETS: ClassVar = (
        Preset(when=BUILT_IN, then={"image_size": [128, 128]}, unless=("backbone", "weights")),
        Preset(
            when=BUILT_IN | {"model": MEMORIES},
            then={"backbone": "demo-clip", "layers": ["layer.1", "layer.3"]},
            unless=("backbone", "weights"),
        ),
        Preset(
            when=BUILT_IN | {"model": "reverse_distillation"},
            then={"backbone": "resnet18", "weights": "random", "epochs": 3},
            unless=("backbone", "weights"),
        ),
        Preset(when=BUILT_IN | {"model": DRAEMS}, then={"repair_width": 16, "segment_width": 16, "epochs": 20}),
        Preset(when={"protocol": "paper", "model": TRAINED}, then={"calibration_share": 0.0}),  # all are trained on
    )
    obj: Optional[str] = arg(None, "class; None = the only one, or the demo's first", type=str, aliases=["class-name"])
    false_alarms: float = override(DecisionArgs, "false_alarms", needs={"calibration_share": ANY})
    calibration_share: float = override(HoldOutArgs, "calibration_share", needs={"model": TRAINED})

    def check(self) -> None:
        if self.early_stopping_patience:
            raise OptionError(
                f"early_stopping_patience={self.early_stopping_patience}: there is no validation split here "
                "(the HDMAP experiments have one)"
            )


def tiny(**changes: Any) -> Args:
    """Seconds on a CPU: a random ResNet-18 or narrow networks, one epoch."""
    model = changes.get("model", DEFAULT)
    small: dict[str, Any] = {"image_size": [64, 64], "figures": False}
    small |= {"backbone": "resnet18", "weights": "random"} if model in READS_BACKBONE else {}
    small |= {"repair_width": 8, "segment_width": 8} if model in DRAEMS else {}
    small |= {"epochs": 1} if model in TRAINED else {}
    small |= {"coreset_size": 60} if model == "patchcore" else {}
    small |= {"patch_width_range": [8, 24]} if model == "draem_sevnet" else {}
    return Args(**(small | changes))
