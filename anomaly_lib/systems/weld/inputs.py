"""From options to runs and frozen features: what every weld system does before its loop."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from anomaly_lib.backbones import FrozenBackbone, create_backbone
from anomaly_lib.backbones.top_blocks import cut_top
from anomaly_lib.data.fingerprint import DataFingerprint, files_below
from anomaly_lib.detect.choice import Choice
from anomaly_lib.errors import UserError
from anomaly_lib.systems.weld.data.augment import augment_weld
from anomaly_lib.systems.weld.data.demo import weld_demo_runs
from anomaly_lib.systems.weld.data.folds import fold_splits
from anomaly_lib.systems.weld.data.manifest import WeldRun, read_manifest
from anomaly_lib.systems.weld.encoders import WeldEncoders, image_outputs
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.options import WeldInputArgs


class WeldSource(Protocol):
    """Where runs come from, in the options of every weld system."""

    data_path: str | None
    on_error: str
    demo_seed: int
    demo_train: int
    demo_good: int
    demo_defects: int
    folds: int
    fold: int


def data_name(args: WeldSource) -> str:
    """The data in one word, for run folders and tables."""
    return Path(args.data_path).name if args.data_path else "demo"


def data_words(args: WeldSource) -> str:
    """The data in words, for the opening of a run."""
    return f"{args.data_path} (weld runs)" if args.data_path else "no --data-path: running on BUILT-IN synthetic welds"


def open_runs(args: WeldSource, choice: Choice | None = None) -> list[WeldRun]:
    """The built-in runs, or those of ``data_path``; `choice` may name other data and what is done about lost runs."""
    other = choice and choice.data_path
    if other or args.data_path:
        runs = read_manifest(other or str(args.data_path), on_error=(choice or args).on_error)
    else:
        runs = weld_demo_runs(
            seed=args.demo_seed, train=args.demo_train, good=args.demo_good, per_defect=args.demo_defects
        )
    return fold_splits(runs, folds=args.folds, fold=args.fold) if args.fold and not other else runs


def data_fingerprint(runs: Sequence[WeldRun], args: WeldSource, *more: str | None) -> DataFingerprint:
    """Which runs these are: their splits and classes, and all files of their folders and of `more`; a drawn run is
    known by its seed.
    """
    facts = [(one.run_id, one.class_name, one.split, one.facts.get("seed", "") if one.render else "") for one in runs]
    files = [path for one in runs if one.render is None for path in files_below(one.folder)]
    return DataFingerprint.of(facts, [*files, *filter(None, more)], args.data_path)


def build_features(args: WeldInputArgs, device: torch.device) -> WeldFeatures:
    """Frozen encoders and their stores."""

    def encoder(part: str, name: str, weights: str | None, layers: Sequence[str | int]) -> FrozenBackbone:
        try:
            return create_backbone(name, weights=weights, layers=layers, download=args.download)
        except UserError as error:  # three networks: say which
            text = str(error)
            known = "weights=" in text
            said = text.replace("weights=", f"{part}_weights=") if known else f"{part}_backbone={name}: {text}"
            raise UserError(said) from None

    encoders = WeldEncoders(
        encoder("video", args.video_backbone, args.video_weights, ["patch_tokens"]),
        encoder("audio", args.audio_backbone, args.audio_weights, ["tokens"]),
        encoder("image", args.image_backbone, args.image_weights, image_outputs(args)),
        args,
    )
    cut_encoders(encoders, args)
    return WeldFeatures(
        args,
        encoders,
        cache=args.cache,
        cache_dir=args.cache_dir,
        device=device,
        precision=args.precision,
        dtype=args.feature_dtype,
        threads=args.num_workers,
        augment=augment_weld if args.augment else None,
        disturb=args.disturb,
    )


def cut_encoders(encoders: WeldEncoders, args: WeldInputArgs) -> None:
    """Take the last blocks off the encoders that learn."""
    for part in args.learning():
        try:
            encoders.cut[part] = cut_top(encoders.nets[part], args.encoder_blocks)
        except UserError as error:
            option = f"{part.removesuffix('s')}_backbone"
            raise UserError(f"{option}={getattr(args, option)}: {error}") from None


def usable(runs: Sequence[WeldRun], features: WeldFeatures, say: Callable[[str], object]) -> list[WeldRun]:
    """Runs with at least one photo: without one there is no result to compare."""
    if features.cache == "off":
        return list(runs)
    kept = [run for run, photo in zip(runs, features.have_photos(runs), strict=True) if photo]
    if len(kept) < len(runs):
        blind = sorted({run.run_id for run in runs} - {run.run_id for run in kept})
        say(f"{len(blind)} runs have no photo of the finished weld and are left out ({', '.join(blind[:20])})")
    if not kept:
        raise UserError("no run has a photo of the finished weld: check the images/ folders")
    return kept


def moved_weights(text: str | None) -> dict[str, str]:
    """``"video=FILE,image=FILE"`` as the options they stand for."""
    moved: dict[str, str] = {}
    for word in (text or "").split(","):
        part, _, path = word.partition("=")
        if word and (part not in ("video", "audio", "image") or not path):
            raise UserError(
                f"weights={text}: a weld detector has three frozen networks; give weights=video=FILE,audio=FILE,"
                "image=FILE (those that moved)"
            )
        if word:
            moved[f"{part}_weights"] = path
    return moved
