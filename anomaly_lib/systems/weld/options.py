"""Options the weld systems share: which welds, how they become tensors, which frozen encoders; imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from anomaly_lib.config import ANY, Options, Preset, Switch, arg
from anomaly_lib.errors import OptionError
from anomaly_lib.models.weld.config import BranchArgs
from anomaly_lib.options import CacheArgs, DataArgs, RunArgs

LAYER_INDEX_MODES = ("block", "seed")
VIDEO_TOKEN_POOLS = ("none", "spatial")
QUIRK_FRAME_SIZE = 64
ENCODERS = ("video", "images", "audio")
LEARNING = ("last", "lora")
LEARNS = {"encoder_training": LEARNING}
TINY_IMAGE = "tiny-dinov3"
BUILT_IN: Mapping[str, Any] = {"data_path": None}


@dataclass
class WeldDemoArgs(Options):
    """The built-in welds."""

    demo_seed: int = arg(0, "built-in data: seed of the welds", at_least=0, needs=BUILT_IN)
    demo_train: int = arg(96, "good welds to train on", at_least=1, needs=BUILT_IN)
    demo_good: int = arg(24, "good welds in each of val and test", at_least=1, needs=BUILT_IN)
    demo_defects: int = arg(6, "welds of each defect in each of val and test", at_least=1, needs=BUILT_IN)


@dataclass
class FoldArgs(Options):
    """Cross-validation of few runs."""

    folds: int = arg(
        0, "divide the runs into so many parts, whole configurations together, and test on each; 0 = the data's splits",
        at_least=0,
    )  # fmt: skip
    fold: int = arg(0, "train and test only this fold, from 1; 0 = all, and a table of them", at_least=0, needs={"folds": ANY})  # fmt: skip  # noqa: E501

    def check(self) -> None:
        if self.folds in (1, 2) or self.fold > self.folds:
            low = f"folds={self.folds}: TRAIN, VAL and TEST need at least 3"
            raise OptionError(low if self.folds in (1, 2) else f"fold={self.fold}: there are {self.folds} folds")
        for name in ("resume", "save_path") if self.folds and not self.fold else ():
            if getattr(self, name, None):
                raise OptionError(
                    f"{name}={getattr(self, name)}: has no meaning for all folds; give fold= for one of them"
                )


@dataclass
class LegacyArgs(Options):
    """Slips of the original (--protocol paper switches all of them on)."""

    legacy_video: Switch = arg(False, "feed the post-weld photos as the process video")
    legacy_frame_64: Switch = arg(False, f"frames of {QUIRK_FRAME_SIZE} pixels")
    legacy_mel_64: Switch = arg(False, "64 mel bins instead of 128")
    legacy_audio_axes: Switch = arg(False, "swap time and frequency for the audio encoder")
    legacy_image_norm: Switch = arg(False, "leave the photos unnormalised")


@dataclass
class WeldSettings(LegacyArgs, BranchArgs):
    """Weld data and preprocessing."""

    video_frames: int = arg(16, "frames of a clip", at_least=1)
    video_size: int = arg(224, "side of a frame", at_least=8)
    video_norm: str = arg("half", "(x - 0.5) / 0.5, or ImageNet statistics", choices=["half", "imagenet"])
    video_token_pool: str = arg(
        "none", "spatial = one video token per time step", choices=list(VIDEO_TOKEN_POOLS)
    )  # fmt: skip
    image_size: list[int] = arg([224], "height and width of a photo; one number = a square", at_least=8)
    views: int = arg(5, "photos per weld", at_least=1)
    audio_frames: int = arg(1024, "spectrum frames", at_least=1)
    audio_norm: str = arg("ast", "ast = Kaldi log energies; db = dB below the maximum", choices=["ast", "db"])
    frame_select: str = arg("uniform", "which spectrum frames", choices=["uniform", "truncate", "active"])
    sensor_steps: int = arg(128, "steps the sensor series is resampled to", at_least=2)
    sensor_norm: str = arg("sample", "z-score by the run itself, or by the training runs", choices=["sample", "train"])
    layer_index: str = arg(
        "seed",
        "seed = layer L is hidden_states[L-1] as published; block = the output of block L",
        choices=list(LAYER_INDEX_MODES),
    )
    patch_only: Switch = arg(False, "pool patch tokens only, without class and register tokens")

    PRESETS: ClassVar[Sequence[Preset]] = (
        Preset(
            when={"protocol": "paper"},
            then=dict.fromkeys(("legacy_video", "legacy_mel_64", "legacy_audio_axes", "legacy_image_norm"), True),
        ),
        Preset(when={"protocol": "paper"}, then={"legacy_frame_64": True}, unless=("video_size",)),
        Preset(when={"legacy_frame_64": True}, then={"video_size": QUIRK_FRAME_SIZE}),
    )

    def check(self) -> None:
        if len(self.image_size) not in (1, 2):
            raise OptionError(f"image_size={self.image_size}: takes one or two numbers")
        if self.legacy_frame_64 and self.video_size != QUIRK_FRAME_SIZE:
            raise OptionError(
                f"video_size={self.video_size}: legacy_frame_64=True means {QUIRK_FRAME_SIZE}; give one of the two"
            )

    @property
    def photo_size(self) -> tuple[int, int]:
        """Height and width of a photograph."""
        return self.image_size[0], self.image_size[-1]

    @property
    def mels(self) -> int:
        """Rows of the spectra; the audio encoder's own number may be another."""
        return 64 if self.legacy_mel_64 else 128


@dataclass
class WeldEncoderArgs(Options):
    """The frozen encoders."""

    video_backbone: str = arg("vjepa2-vitl", "video encoder", aliases=["video-encoder"])
    audio_backbone: str = arg("ast-14-14", "audio encoder")
    image_backbone: str = arg("dinov3-vith16plus", "image encoder")
    video_weights: Optional[str] = arg(
        None, "its weight file or folder; None = the published ones, 'random' = untrained", type=str, resumable=True
    )
    audio_weights: Optional[str] = arg(
        None, "its weight file or folder; None = the published ones, 'random' = untrained", type=str, resumable=True
    )
    image_weights: Optional[str] = arg(
        None, "its weight file or folder; None = the published ones, 'random' = untrained", type=str, resumable=True
    )
    download: Switch = arg(False, "allow the encoders' library to download its weights", result=False)
    dummy: Switch = arg(False, "tiny random encoders where none is named, whatever the data")
    feature_dtype: str = arg(
        "fp32",
        "number format of cached features; fp16 halves them and is the default of the published encoders",
        choices=["fp32", "fp16"],
    )
    augment: Switch = arg(
        False, "augment video, photos and sound of training runs, which are then encoded anew in every epoch"
    )
    disturb: float = arg(
        0.0,
        "chance that a training run's sensors are warped, scaled, jittered, stuck or spiked, and its sound likewise "
        "where it is encoded anew (--augment, --cache off)",
        at_least=0,
        at_most=1,
    )


@dataclass
class EncoderTrainingArgs(Options):
    """Learning in the encoders."""

    encoder_training: str = arg(
        "frozen",
        "last = their last blocks and final norm learn; lora = low-rank additions to queries and values of those "
        "blocks. The store then keeps the states below them",
        choices=["frozen", *LEARNING],
    )
    encoder_blocks: int = arg(1, "last blocks that learn (published advice: 1 to 3)", at_least=1, needs=LEARNS)
    trained_encoders: list[str] = arg(list(ENCODERS), "which encoders learn", choices=ENCODERS, needs=LEARNS)
    encoder_lr: float = arg(1e-6, "their learning rate", at_least=0, needs=LEARNS)
    encoder_rank: int = arg(8, "rank of LoRA", at_least=1, needs={"encoder_training": "lora"})
    encoder_alpha: float = arg(16.0, "LoRA adds alpha / rank times its product", at_least=0, needs={"encoder_training": "lora"})  # fmt: skip  # noqa: E501
    encoder_recompute: Switch = arg(
        False, "recompute the learning blocks in backward to save memory", needs=LEARNS, result=False
    )

    def learning(self) -> list[str]:
        """Which encoders learn."""
        return [] if self.encoder_training == "frozen" else list(self.trained_encoders)


def _where_tiny(part: str, then: Mapping[str, Any]) -> tuple[Preset, Preset]:
    """The tiny encoder of `part` where no encoder is named and no weight file given, and what goes with it."""
    backbone, weights = f"{part}_backbone", f"{part}_weights"
    tiny = {"video": "tiny-vjepa2", "audio": "tiny-ast", "image": TINY_IMAGE}[part]
    return (
        Preset(when={"dummy": True, weights: (None, "random")}, then={backbone: tiny}, unless=(backbone,)),
        # Untrained blocks have more to learn.
        Preset(when={backbone: tiny}, then={weights: "random", "encoder_lr": 1e-4, **then}),
    )


@dataclass
class WeldInputArgs(
    RunArgs, DataArgs, WeldDemoArgs, FoldArgs, WeldSettings, WeldEncoderArgs, EncoderTrainingArgs, CacheArgs
):
    """Everything that decides which runs are read and what their frozen features are."""

    PRESETS: ClassVar[Sequence[Preset]] = (
        Preset(when={"data_path": None}, then={"dummy": True}),
        Preset(when={"dummy": False}, then={"feature_dtype": "fp16"}),  # 3 to 7 MB a weld, not twice that
        *_where_tiny("video", {"video_frames": 8, "video_size": 64, "video_token_pool": "spatial"}),
        *_where_tiny("audio", {"audio_frames": 64}),
        *_where_tiny("image", {"image_size": [96], "branches": "1.mean,1.gem,2.mean", "layer_index": "block"}),
    )

    def check(self) -> None:
        check_weld_data(self)


def check_weld_data(args: DataArgs) -> None:
    """Refuse a layout that does not fit the data."""
    if args.dataset == "weld" and not args.data_path:
        raise OptionError("dataset=weld: give data_path=, the folder with manifest.csv")
