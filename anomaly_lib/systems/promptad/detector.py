"""A trained PromptAD, ready for single images: score, map, decision."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomaly_lib.data.images import read_image
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import check_weights, load_checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.fusion import REFERENCE_MODES, fusion_by_name
from anomaly_lib.models.promptad.model import PromptAD
from anomaly_lib.models.promptad.prompts import PromptLearner
from anomaly_lib.models.promptad.released import IMAGE_SIZE, PATCHES, is_released, read_released
from anomaly_lib.models.promptad.scores import (
    BRANCHES,
    Branches,
    ImageFeatures,
    ScoreSettings,
    branch_scores,
    combine,
)
from anomaly_lib.models.promptad.states import class_text, state_templates
from anomaly_lib.systems.promptad.eval import fit_support, image_scores, settings_of
from anomaly_lib.systems.promptad.features import Towers
from anomaly_lib.systems.promptad.options import ALL, Args, resolve
from anomaly_lib.types import Prediction

SYSTEM = "promptad"
# Two runs that agree in these use the same frozen towers and transforms.
TOWER_OPTIONS = (
    "backbone", "weights", "pretrained_dataset", "image_size", "visual_backbone", "visual_weights", "memory_layers",
    "memory_tap", "reader_resize", "test_color", "precision", "cache", "cache_dir",
)  # fmt: skip
Picture = str | Path | np.ndarray | Image.Image | Tensor


def make_model(args: Args, towers: Towers, class_name: str, memory_images: int) -> PromptAD:
    """The model at the sizes of this run; every hyper-parameter is visible here."""
    words = args.class_text or ("object" if class_name == ALL else class_text(class_name))
    learner = PromptLearner(
        towers.text,
        class_text=words,
        states=state_templates(class_name, args.states),
        n_ctx=args.n_ctx,
        n_ctx_ab=args.n_ctx_ab,
        n_pro=args.n_pro,
        n_pro_ab=args.n_pro_ab,
        pairing=str(args.pairing),
    )
    return PromptAD(
        learner,
        stored_logit_scale=towers.logit_scale,
        joint_dim=towers.clip.embed_dim,
        memory_shape=[(memory_images * patches, width) for patches, width in towers.memory_shape],
        logit_scale_mode=str(args.logit_scale),
        triplet_axis=str(args.triplet_axis),
        alignment_weight=args.lambda1,
    ).to(towers.device)


@dataclass
class Decision(Prediction):
    """A prediction with the decision ``score >= threshold``."""

    threshold: float = float("nan")
    fusion_mode: str = ""

    @property
    def anomalous(self) -> Tensor:
        """[B] bool."""
        return self.score >= self.threshold


class Detector:
    """What ``anomaly_lib.load(checkpoint)`` answers for PromptAD."""

    def __init__(
        self,
        model: PromptAD,
        towers: Towers,
        settings: ScoreSettings,
        normal: Branches,
        facts: dict[str, Any],
        args: Args,
    ) -> None:
        self.model, self.towers, self.settings, self.normal, self.facts = model, towers, settings, normal, facts
        self.args = args
        self.trained_fusion: str = facts["fusion_mode"]
        self.transform = towers.transform(test=True)
        # Leave-one-out quantile of normal support scores under the present fusion.
        quantile = float(facts["threshold_quantile"])
        known = len(normal.textual) > 0  # a checkpoint of PromptAD's authors has no support scores
        self.threshold: float = (
            float(torch.quantile(image_scores(normal, settings), quantile)) if known else float("nan")
        )

    def with_fusion(self, mode: str | None) -> "Detector":
        """The detector with another fusion; None keeps the one it was trained and selected with."""
        if mode is None or mode == self.settings.fusion:
            return self
        fusion_by_name(mode)
        if mode in REFERENCE_MODES and not len(self.normal.textual):
            raise UserError(f"--fusion-mode {mode} needs support scores, which a released PromptAD checkpoint lacks")
        return Detector(
            self.model, self.towers, replace(self.settings, fusion=mode), self.normal, self.facts, self.args
        )

    def fusion_notice(self) -> str | None:
        """One line when scoring is done with another fusion than the checkpoint was selected with."""
        if self.settings.fusion == self.trained_fusion:
            return None
        chosen = self.facts["select"] == "best-on-test"
        effect = "its epoch was chosen for that fusion" if chosen else "the contexts do not depend on it"
        return f"scored with fusion {self.settings.fusion}, trained with {self.trained_fusion}: {effect}"

    def predict(self, images: Picture | Sequence[Picture]) -> Decision:
        """Score files, arrays [H, W, 3], PIL images, or a batch tensor [B, 3, H, W] that is already transformed."""
        prediction = combine(self.branches(self.features(images)), self.settings, branch_maps=True)
        return Decision(
            prediction.score,
            prediction.map,
            prediction.parts,
            threshold=self.threshold,
            fusion_mode=self.settings.fusion,
        )

    def branches(self, features: ImageFeatures, *, neighbours: int = 1) -> Branches:
        """Branch scores before fusion."""
        return branch_scores(self.model, features, self.settings, neighbours=neighbours)

    def features(self, images: Picture | Sequence[Picture]) -> ImageFeatures:
        """Frozen features of pictures of any of `predict`'s kinds."""
        if isinstance(images, Tensor):
            return self.towers.encode(images if images.ndim == 4 else images[None])
        single = isinstance(images, (str, Path, np.ndarray, Image.Image))
        pictures: Sequence[Any] = [images] if single else list(images)  # type: ignore[arg-type, list-item]
        if not pictures:
            raise UserError("predict() got no images")
        return self.towers.encode_pictures([_pixels(picture) for picture in pictures])


def _pixels(picture: Any) -> Any:
    return read_image(picture) if isinstance(picture, (str, Path)) else picture


def facts_of(args: Args, class_name: str, memory_images: int) -> dict[str, Any]:
    """What a checkpoint says about itself beside weights and options."""
    return {
        "class_name": class_name,
        "task": args.task,
        "fusion_mode": args.fusion_mode,
        "select": args.select,
        "memory_images": memory_images,
        "threshold_quantile": args.threshold_quantile,
    }


def plain_branches(branches: Branches) -> dict[str, Tensor]:
    """For a checkpoint."""
    return {f.name: getattr(branches, f.name).cpu() for f in fields(Branches)}


def args_of(saved: dict[str, Any]) -> Args:
    """The options a checkpoint was trained with (unknown ones of other versions are left out)."""
    known = {f.name for f in fields(Args)}
    return Args(**{name: value for name, value in saved["args"].items() if name in known})


def _as_ours(path: Path) -> dict[str, Any]:
    """A checkpoint of PromptAD's authors in the form of ours: scored as published, but on RGB images.

    No support scores are in it, so there is no threshold and no fusion that refers to them.
    """
    found = read_released(path)
    rows = found.tensors["feature_gallery1"].shape[0]
    if rows % PATCHES:
        raise UserError(f"{path}: a memory of {rows} patches is no whole number of {IMAGE_SIZE} px images")
    args = resolve(
        Args(
            protocol="paper", test_color="rgb", select="last", task=found.task, obj=found.class_name, seed=found.seed,
            shot=rows // PATCHES, backbone=found.backbone, image_size=IMAGE_SIZE,
        )
    )  # fmt: skip
    nothing = torch.zeros(0, 1, 1)
    normal = {field.name: nothing if found.task == "seg" else nothing.flatten() for field in fields(Branches)}
    facts = {
        "class_name": found.class_name, "task": found.task, "fusion_mode": args.fusion_mode, "select": args.select,
        "memory_images": rows // PATCHES, "normal": normal,
        "threshold_quantile": args.threshold_quantile,
    }  # fmt: skip
    return {"args": asdict(args), "model": found.tensors, "extra": facts}


def load_detector(
    path: Path | str,
    *,
    fusion_mode: str | None = None,
    backbone_weights: str | None = None,
    device: str = "auto",
    notice: Callable[[str], None] | None = None,
    shared: dict[tuple[Any, ...], Towers] | None = None,
) -> Detector:
    """The detector of a PromptAD checkpoint, ours or its authors'; `notice` hears of a fusion it was not trained with.

    Pass one dict as `shared` to load many checkpoints on one set of frozen towers.
    """
    released = is_released(Path(path))
    saved = _as_ours(Path(path)) if released else load_checkpoint(path, system=SYSTEM)
    facts = saved["extra"]
    if "normal" not in facts:
        raise UserError(f"{path}: this training is not finished; run its command again to continue it")
    args = args_of(saved)
    if backbone_weights is not None:
        args = replace(args, weights=backbone_weights)
    key = tuple(str(getattr(args, name)) for name in TOWER_OPTIONS)
    towers = (shared or {}).get(key) or Towers(args, pick_device(device))
    if shared is not None:
        shared[key] = towers
    check_weights(path, facts, towers.weights)
    model = make_model(args, towers, facts["class_name"], facts["memory_images"])
    model.load_state_dict(saved["model"], strict=not released)  # a released file has no contexts; scores need none
    normal = Branches(**{name: value.to(towers.device) for name, value in facts["normal"].items()})
    settings = fit_support(settings_of(args), normal, args.calibration)
    detector = Detector(model, towers, settings, normal, facts, args).with_fusion(fusion_mode)
    if notice is not None and (text := detector.fusion_notice()):
        notice(text)
    return detector


__all__ = ["BRANCHES", "SYSTEM", "Decision", "Detector", "args_of", "facts_of", "load_detector", "make_model"]
