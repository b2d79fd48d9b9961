"""The options of the studies of V4: those of V4 itself, and what is compared; imports no torch."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional, TypeVar

from anomaly_lib.config import Options, Preset, Switch, arg, default_of, override
from anomaly_lib.errors import OptionError
from anomaly_lib.systems.weld.options import LEARNING
from anomaly_lib.systems.weld.supcon.options import Args as QuadArgs

TUNED = ("B-video-tuned", "B-images-tuned", "B-audio-tuned")
MODELS = ("A", "B-video", "B-images", "B-audio", *TUNED, "B-sensors", "C-late", "C-mid", "C-mid-frozen", "D")
LEARN = {"models": (*TUNED, "C-late", "C-mid", "fusion")}
FUSIONS = ("C-late", "C-mid", "D")

# extension -> variant of model D -> the options that switch it on
TRAINED: dict[str, dict[str, dict[str, Any]]] = {
    "none": {"plain": {}},
    "adapters": {
        "frozen-attention": {"freeze": "heads"},
        "lora": {"freeze": "heads", "adapters": "lora"},
        "bottleneck": {"freeze": "heads", "adapters": "adapter"},
        "encoder-lora": {"encoder_training": "lora"},
        "encoder-last": {"encoder_training": "last"},
    },
    "temporal aligner": {"align": {"align": True}},
    "hard negatives": {"hardest-half": {"hard_negatives": 0.5}, "hardness-1": {"hardness": 1.0}},
    "pre-training": {
        "simclr-first": {"pretrain": "simclr"},
        **{
            f"masked-{name}-first": {"pretrain": "masked", "pretrain_on": [name]}
            for name in ("video", "images", "audio", "sensors")
        },
        "masked-first": {"pretrain": "masked"},
        **{  # beside encoder-last
            f"pixels-{name}-first": {"encoder_training": "last", "pretrain": "pixels", "pretrain_on": [name]}
            for name in ("video", "images", "audio")
        },
    },
    "multi-task": {
        "reconstruction": {"reconstruct_weight": 0.1},
        "next-step": {"next_step_weight": 0.1},
        "both": {"reconstruct_weight": 0.1, "next_step_weight": 0.1},
    },
    "augmentation": {
        "disturb": {"disturb": 0.5},
        "drawn-defects": {"drawn_defects": 8},
        "augment": {"augment": True},
        "mixup": {"mixup": 0.2},
    },
}
VARIANTS = {name: options for variants in TRAINED.values() for name, options in variants.items()}
# extension -> what is measured beside the trainings: other fusions, and the plain model in other use
MEASURED: dict[str, tuple[str, ...]] = {
    "fusion": ("late", "mid"),
    "calibration": ("temperature",),
    "uncertainty": ("mc-dropout", "ensemble"),
    "deployment": ("int8", "pruned", "torch.export", "onnx"),
    "explanation": ("grad-cam",),
}
EXTENSIONS = {name: group for rows in (TRAINED, MEASURED) for group, names in rows.items() for name in names}
"""Every row of the table -> which extension it belongs to."""


A = TypeVar("A", bound="TrainingsArgs")
INSTEAD = {"seed": "seeds", "output_dir": "results", "save_path": "results", "resume": "results"}
"""Options of one training -> what a study of many has in their place."""


@dataclass
class TrainingsArgs(QuadArgs):
    """Many trainings of V4: its options, and which seeds."""

    figures: Switch = override(QuadArgs, "figures", False, help="draw figures of each trained D (its time counts them)")
    seeds: list[int] = arg([0, 1, 2], "one row per model and seed", type=int)
    results: str = arg("runs/weld_baselines", "folder of the table and of the trainings")

    PRESETS: ClassVar[Sequence[Preset]] = (Preset(when={"data_path": None}, then={"demo_train": 48, "demo_good": 24}),)

    def check(self) -> None:
        if self.folds and not self.fold:
            raise OptionError(f"folds={self.folds}: a study compares models on one split; give fold= too")
        for name, other in INSTEAD.items():
            value = getattr(self, name)
            if value != default_of(self.__dataclass_fields__[name]):
                raise OptionError(f"{name}={value}: has no effect on a study of many trainings; give {other}=")

    def seeded(self: A, seed: int) -> A:
        """The same with the seed of one row."""
        one = copy.copy(self)
        one.seed = seed
        return one

    def of_model(self, **changes: Any) -> QuadArgs:
        """The options of V4 among these, with `changes`."""
        return QuadArgs.from_saved({**vars(self), **changes})  # type: ignore[no-any-return]


@dataclass
class LadderArgs(TrainingsArgs):
    """The ladder: which models."""

    models: list[str] = arg(
        list(MODELS), "which models; fusion = late, mid and cross-attention only", choices=[*MODELS, "fusion"]
    )
    baseline_epochs: int = arg(50, "epochs of A, B and C", at_least=1)
    baseline_batch: int = arg(32, "batch size of A, B and C", at_least=1)
    peak_lr: float = arg(1e-3, "one-cycle peak of A, B and C (published, at full size: 1e-4)", at_least=0)
    spectrum_fft: int = arg(2048, "A: samples of an STFT window", at_least=16)
    spectrum_frames: int = arg(256, "A: spectrum frames of a run", at_least=2)
    audio_width: int = arg(1024, "A: channels of the audio auto-encoder", at_least=1)
    tuned_training: str = arg("last", "B tuned: what learns in the encoder", choices=LEARNING, needs=LEARN)
    tuned_blocks: int = arg(1, "B tuned: in how many last blocks", at_least=1, needs=LEARN)
    tuned_lr: float = arg(1e-6, "B tuned: one-cycle peak of these blocks", at_least=0, needs=LEARN)
    video_window: int = arg(1, "A: steps of the video score's moving average (2 s at the sampling used)", at_least=1)

    PRESETS: ClassVar[Sequence[Preset]] = (
        Preset(
            when={"data_path": None},
            then={"baseline_batch": 8, "spectrum_fft": 512, "spectrum_frames": 64, "audio_width": 128},
        ),
        Preset(when={"dummy": True}, then={"tuned_lr": 1e-4}),
    )


@dataclass
class ExtensionArgs(TrainingsArgs):
    """Which extensions, on the data of the ladder."""

    variants: list[str] = arg(list(EXTENSIONS), "which variants of model D", choices=list(EXTENSIONS))
    passes: int = arg(20, "mc-dropout: passes", at_least=2)
    pruning: float = arg(0.5, "pruned: share of weights pruned", at_least=0, at_most=0.99)
    results: str = override(TrainingsArgs, "results", "runs/weld_extensions")


@dataclass
class StudyArgs(Options):
    """Study of a V4 checkpoint."""

    checkpoint: Optional[str] = arg(None, "best_model.pth of scripts/weld/train_supcon.py", type=str)
    ensemble: list[str] = arg([], "further checkpoints of other seeds: a deep ensemble, and means over seeds", type=str)
    passes: int = arg(20, "Monte-Carlo dropout passes", at_least=2)
    pruning: float = arg(0.5, "share of weights pruned", at_least=0, at_most=0.99)
    output: str = arg("runs/weld_study", "folder of study.json and the pictures")

    def check(self) -> None:
        if not self.checkpoint:
            raise OptionError("give checkpoint=, a best_model.pth of scripts/weld/train_supcon.py")
