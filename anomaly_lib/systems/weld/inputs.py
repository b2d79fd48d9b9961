"""Options of every weld recipe that reads welds through the three frozen encoders, and what is made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional, Protocol

import torch

from anomaly_lib.backbones import create_backbone
from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.errors import UserError
from anomaly_lib.models.weld.causal_film import parse_branches
from anomaly_lib.options import CacheArgs, DataArgs, RunArgs
from anomaly_lib.systems.weld.data.augment import augment_weld
from anomaly_lib.systems.weld.data.demo import weld_demo_runs
from anomaly_lib.systems.weld.data.manifest import WeldRun, read_manifest, select_runs
from anomaly_lib.systems.weld.data.runs import WeldSettings
from anomaly_lib.systems.weld.encoders import LAYER_INDEX_MODES, VIDEO_TOKEN_POOLS, TokenSettings, WeldEncoders
from anomaly_lib.systems.weld.features import WeldFeatures


@dataclass
class WeldDemoArgs(Options):
    """The built-in welds."""

    demo_seed: int = arg(0, "built-in data: seed of the welds", at_least=0)
    demo_train: int = arg(96, "good welds to train on", at_least=1)
    demo_good: int = arg(24, "good welds in each of val and test", at_least=1)
    demo_defects: int = arg(6, "welds of each defect in each of val and test", at_least=1)


@dataclass
class WeldDataArgs(Options):
    """Weld data and preprocessing."""

    video_frames: Optional[int] = arg(None, "frames of a clip; None = 16 (built-in data: 8)", type=int, at_least=1)
    video_size: Optional[int] = arg(None, "side of a frame; None = 224 (built-in data: 64)", type=int, at_least=8)
    video_norm: str = arg("half", "(x - 0.5) / 0.5, or ImageNet statistics", choices=["half", "imagenet"])
    video_token_pool: Optional[str] = arg(
        None, "spatial = one video token per time step; None = none (built-in data: spatial)", type=str,
        choices=list(VIDEO_TOKEN_POOLS),
    )  # fmt: skip
    image_size: Optional[int] = arg(None, "side of a photo; None = 224 (built-in data: 96)", type=int, at_least=8)
    views: int = arg(5, "photos per weld", at_least=1)
    audio_frames: Optional[int] = arg(None, "spectrum frames; None = 1024 (built-in data: 64)", type=int, at_least=1)
    audio_norm: str = arg("ast", "ast = Kaldi log energies; db = dB below the maximum", choices=["ast", "db"])
    frame_select: str = arg("uniform", "which spectrum frames", choices=["uniform", "truncate", "active"])
    sensor_steps: int = arg(128, "steps the sensor series is resampled to", at_least=2)
    sensor_norm: str = arg("sample", "z-score by the run itself, or by the training runs", choices=["sample", "train"])
    feature_dtype: str = arg("fp32", "number format of cached features; fp16 halves them", choices=["fp32", "fp16"])
    augment: Switch = arg(False, "augment the inputs of training runs (needs --cache off)")


@dataclass
class LegacyArgs(Options):
    """Slips of the original (--protocol paper switches all of them on)."""

    legacy_video: Switch = arg(False, "feed the post-weld photos as the process video")
    legacy_frame_64: Switch = arg(False, "frames of 64 pixels")
    legacy_mel_64: Switch = arg(False, "64 mel bins instead of 128")
    legacy_audio_axes: Switch = arg(False, "swap time and frequency for the audio encoder")
    legacy_image_norm: Switch = arg(False, "leave the photos unnormalised")


@dataclass
class WeldEncoderArgs(Options):
    """The frozen encoders."""

    video_backbone: Optional[str] = arg(
        None, "None = vjepa2-vitl (built-in data: tiny-vjepa2)", type=str, aliases=["video-encoder"]
    )
    audio_backbone: Optional[str] = arg(None, "None = ast-14-14 (built-in data: tiny-ast)", type=str)
    image_backbone: Optional[str] = arg(
        None, "None = dinov3-vith16plus, stage1: dinov2-base (built-in data: tiny-dinov3)", type=str
    )
    video_weights: Optional[str] = arg(None, "weight file or folder; 'random' = untrained", type=str)
    audio_weights: Optional[str] = arg(None, "weight file or folder; 'random' = untrained", type=str)
    image_weights: Optional[str] = arg(None, "weight file or folder; 'random' = untrained", type=str)
    download: Switch = arg(False, "allow the encoders' library to download its weights")
    dummy: Switch = arg(False, "tiny random encoders, whatever the data")
    branches: Optional[str] = arg(
        None, "image layers and pools: a preset's name or e.g. 21.mean,21.gem,32.mean", type=str
    )
    layer_index: Optional[str] = arg(
        None, "seed = layer L is hidden_states[L-1] as published; block = the output of block L; None = seed, "
        "tiny encoders: block", type=str, choices=list(LAYER_INDEX_MODES),
    )  # fmt: skip
    patch_only: Switch = arg(False, "pool patch tokens only, without class and register tokens")


@dataclass
class WeldInputArgs(RunArgs, DataArgs, WeldDemoArgs, WeldDataArgs, LegacyArgs, WeldEncoderArgs, CacheArgs):
    """Everything that decides which runs are read and what their frozen features are."""


def weld_settings(args: WeldInputArgs) -> WeldSettings:
    """Preprocessing of resolved options."""
    assert args.video_frames and args.video_size and args.image_size and args.audio_frames  # noqa: PT018
    return WeldSettings(
        video_frames=args.video_frames,
        video_size=args.video_size,
        video_norm=args.video_norm,
        video_source="images" if args.legacy_video else "video",
        views=args.views,
        image_size=args.image_size,
        image_norm=not args.legacy_image_norm,
        mels=64 if args.legacy_mel_64 else 128,
        audio_frames=args.audio_frames,
        audio_norm=args.audio_norm,
        frame_select=args.frame_select,
        swap_audio_axes=bool(args.legacy_audio_axes),
        sensor_steps=args.sensor_steps,
        sensor_norm=args.sensor_norm,
    )


class WeldSource(Protocol):
    """Where runs come from, in the options of every weld recipe."""

    data_path: str | None
    demo_seed: int
    demo_train: int
    demo_good: int
    demo_defects: int


def open_runs(args: WeldSource) -> list[WeldRun]:
    """The runs of resolved options: built-in, or those of --data-path."""
    if args.data_path:
        return read_manifest(args.data_path)
    return weld_demo_runs(seed=args.demo_seed, train=args.demo_train, good=args.demo_good, per_defect=args.demo_defects)


def build_features(args: WeldInputArgs, device: torch.device, settings: WeldSettings) -> WeldFeatures:
    """Frozen encoders and their stores."""
    assert args.video_backbone and args.audio_backbone and args.image_backbone  # noqa: PT018
    tokens = TokenSettings(
        branches=parse_branches(str(args.branches)),
        layer_index=str(args.layer_index),
        patch_only=args.patch_only,
        video_token_pool=str(args.video_token_pool),
        swap_audio_axes=settings.swap_audio_axes,
        mels=settings.mels,
    )
    encoders = WeldEncoders(
        create_backbone(
            args.video_backbone, weights=args.video_weights, layers=["patch_tokens"], download=args.download
        ),
        create_backbone(args.audio_backbone, weights=args.audio_weights, layers=["tokens"], download=args.download),
        create_backbone(
            args.image_backbone, weights=args.image_weights, layers=tokens.backbone_outputs(), download=args.download
        ),
        tokens,
    )
    return WeldFeatures(
        settings,
        encoders,
        cache=args.cache,
        cache_dir=args.cache_dir,
        device=device,
        precision=args.precision,
        dtype=args.feature_dtype,
        augment=augment_weld if args.augment else None,
    )


def with_sensor_statistics(settings: WeldSettings, features: WeldFeatures, train: Sequence[WeldRun]) -> WeldSettings:
    """For --sensor-norm train: mean and std per channel over the training runs."""
    if settings.sensor_norm != "train":
        return settings
    series = torch.cat([one for one, there in map(features.sensors, train) if there] or [torch.zeros(1, 1)])
    mean, std = series.mean(0), series.std(0, unbiased=False)
    return replace(settings, sensor_mean=tuple(mean.tolist()), sensor_std=tuple(std.tolist()))


def usable(runs: Sequence[WeldRun], features: WeldFeatures, say: Any) -> list[WeldRun]:
    """Runs with at least one photo: without one there is no result to compare."""
    if features.cache == "off":
        return list(runs)
    kept = [run for run in runs if bool(features.batch([run])["views"].any())]
    if len(kept) < len(runs):
        say(f"{len(runs) - len(kept)} runs have no photo of the finished weld and are left out")
    if not kept:
        raise UserError("no run has a photo of the finished weld: check the images/ folders")
    return kept


def usable_of(runs: list[WeldRun], features: WeldFeatures, split: str, say: Any) -> list[WeldRun]:
    chosen = select_runs(runs, split)
    features.prepare(chosen)
    return usable(chosen, features, say)
