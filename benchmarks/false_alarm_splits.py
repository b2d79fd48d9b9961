"""How each detector is fitted on a random part of the normal images, for false_alarms.py."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import anomaly_lib
from anomaly_lib.data import Item, open_dataset
from anomaly_lib.data.base import load_pixels
from anomaly_lib.data.demo.items import demo_items
from anomaly_lib.data.transforms import resize_image
from anomaly_lib.detect.calibration import maxima_of
from anomaly_lib.models.promptad.model import PromptAD
from anomaly_lib.models.promptad.scores import Scoring
from anomaly_lib.systems.detectors.build import build
from anomaly_lib.systems.detectors.normal import FEW, FOLDS
from anomaly_lib.systems.detectors.options import Args as DetectorArgs
from anomaly_lib.systems.promptad.detector import decision_of
from anomaly_lib.systems.promptad.features import Towers
from anomaly_lib.systems.promptad.options import Args as PromptArgs
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.sowa.decide import left_out
from anomaly_lib.systems.sowa.scoring import remember, score_items
from anomaly_lib.types import Prediction

SIDE, MOST_NORMAL, MOST_BROKEN = 128, 130, 40
FITTED = 30
FITTED_OF = {"visionad": 10, "winclip": 10}  # what compares each image with whole images is slow with many
CPU = torch.device("cpu")


@dataclass
class Data:
    """The pooled normal images and some anomalous ones of one class, small and in memory."""

    name: str
    normal: list[Item]
    broken: list[Item]

    @property
    def items(self) -> list[Item]:
        return [*self.normal, *self.broken]


@dataclass
class Outcome:
    """One split: the normal scores that set the decision, those of new normal images and of anomalous ones."""

    known: Prediction
    new: Prediction
    broken: Prediction


Split = Callable[[np.random.Generator], "Outcome"]


# -- data -------------------------------------------------------------------------------------------------------------


def shrunk(items: list[Item], count: int, seed: int = 0) -> list[Item]:
    """Up to `count` of the images, drawn by seed, at SIDE x SIDE."""
    order = np.random.default_rng(seed).permutation(len(items))[:count]
    size = (SIDE, SIDE)
    return [
        replace(items[i], image=resize_image(load_pixels(items[i])[0], size, "bilinear"), mask=None, mask_path=None)
        for i in sorted(order.tolist())
    ]


def real_data(root: Path, category: str) -> Data:
    folder, _, name = category.partition("/")
    items = open_dataset("mvtec", str(root / folder), classes=[name])
    normal, broken = ([item for item in items if item.label == label] for label in (0, 1))
    return Data(name, shrunk(normal, MOST_NORMAL), shrunk(broken, MOST_BROKEN))


def demo_data(name: str) -> Data:
    items = demo_items(categories=[name], size=SIDE, train=90, test_good=40, per_defect=6)
    return Data(f"demo {name}", [i for i in items if not i.label], [i for i in items if i.label])


# -- detectors that are fitted in each split --------------------------------------------------------------------------


def memory(model: str, name: str, weights: Path, most: int | None = None, *, masked: bool = False) -> Split:
    """A detector on frozen features, fitted on up to `most` images, which set the decision as in training: those of few
    images in a PatchCore are judged by memories of the others, all others are left out of what is known (`masked`: in
    PatchCore, too). Every image is encoded once.
    """
    data = data_of(name)
    fitted = min(most or FITTED_OF.get(model, FITTED), len(data.normal) // 2)
    module: Any = build(DetectorArgs(model=model, image_size=[SIDE], **OPTIONS[model], **network(model, weights)), CPU)
    known = encoded(module, data.normal, module.support_views)
    asked = encoded(module, data.items, module.query_views)
    count, size = len(data.normal), (SIDE // 8, SIDE // 8)

    @torch.no_grad()
    def split(generator: np.random.Generator) -> Outcome:
        order = torch.from_numpy(generator.permutation(count))
        mine, others = order[:fitted], order[fitted:]
        if fitted < module.refitted_below and not masked:
            left_out = folded(module, partial(some, known), partial(some, asked), mine, size)
            module.fit_features([some(known, mine)])
        else:
            module.fit_features([some(known, mine)])
            left_out = module.left_out_features(some(asked, mine), list(range(fitted)), size)
        broken = torch.arange(count, len(data.items))
        return Outcome(left_out, *(module.score_features(some(asked, index), size) for index in (others, broken)))

    return split


OPTIONS: dict[str, dict[str, Any]] = {
    "patchcore": {"coreset_ratio": 0.05, "layers": ["layer2", "layer3"], "sigma": 0.5},
    "padim": {"features": 60, "layers": ["layer2", "layer3"], "sigma": 0.5},
    "anomalydino": {"layers": ["layer.7"], "sigma": 0.5},
    "subspacead": {"layers": ["layer.5", "layer.7"], "rotations": 8, "sigma": 0.5},
    "visionad": {"layers": ["layer.7"]},
    "rad": {"layers": ["pooled", "layer.5", "layer.7"]},
    "winclip": {"layers": ["pooled", "window.2", "window.3", "normed.4"]},
}
"""Detectors on frozen features, with what suits small images."""


def network(model: str, weights: Path) -> dict[str, Any]:
    """The network of each: ResNet-18, ViT-Tiny, or the demo CLIP where words are needed."""
    if model == "winclip":
        return {"backbone": "demo-clip"}
    if model in ("patchcore", "padim"):
        return {"backbone": "resnet18", "weights": str(weights)}
    (transformer,) = weights.parent.glob("vit_tiny_patch16_224*.pth")
    return {"backbone": "timm:vit_tiny_patch16_224", "weights": str(transformer)}


def encoded(module: Any, items: list[Item], views: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The features of images in `views`, in batches."""
    batches = [module.features_of(pixels_of(items[i : i + 16]), views) for i in range(0, len(items), 16)]
    return {layer: torch.cat([batch[layer] for batch in batches]) for layer in batches[0]}


def some(features: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """The features of some of the images."""
    return {layer: values[index] for layer, values in features.items()}


Pick = Callable[[Tensor], dict[str, Tensor]]


def folded(module: Any, known: Pick, asked: Pick, mine: Tensor, size: tuple[int, int]) -> Prediction:
    """Scores and maps of the images of each fold by a memory of the other folds."""
    folds = len(mine) if len(mine) <= FEW else FOLDS
    fold = torch.arange(len(mine)) % folds
    scores, maps = torch.zeros(len(mine)), torch.zeros(len(mine), *size)
    for number in range(folds):
        module.fit_features([known(mine[fold != number])])
        found = module.score_features(asked(mine[fold == number]), size)
        scores[fold == number], maps[fold == number] = found.score, found.map
    return Prediction(scores, maps)


def pixels_of(items: list[Item]) -> Tensor:
    """[B, 3, H, W] 0..1."""
    return torch.stack([torch.from_numpy(load_pixels(item)[0].copy()).permute(2, 0, 1).float() / 255 for item in items])


def promptad(name: str, shot: int, *, epochs: int = 10) -> Split:
    """PromptAD on k images; contexts are trained for a few epochs."""
    data = data_of(name)
    args = PromptArgs(shot=shot, epochs=epochs, resolution=64, cache="ram", select="last", figures=False)
    towers = Towers(args, CPU)
    features = towers.features(data.items, test=True)
    count = len(data.normal)

    def split(generator: np.random.Generator) -> Outcome:
        torch.manual_seed(int(generator.integers(2**31)))
        order = generator.permutation(count)
        support = features[order[:shot].tolist()]
        model = PromptAD(args, towers=towers, class_name=data.normal[0].class_name)
        model.remember(support.gallery_rows())
        optimizer = torch.optim.SGD(model.learner.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)
        for _ in range(epochs):
            optimizer.zero_grad()
            torch.stack(list(model.losses(support.for_task("cls")).values())).sum().backward()
            optimizer.step()
        model.keep_text_features()
        model.eval().normal = model.left_out_branches(support)
        made = decision_of(model, args)
        assert made is not None
        scoring = Scoring(args, model.normal)
        rest = [*order[shot:].tolist(), *range(count, len(data.items))]
        found = scoring.predict(model.branches(features[rest]))
        return Outcome(
            scoring.predict(model.normal), rows(found, 0, count - shot), rows(found, count - shot, len(rest))
        )

    return split


def sowa(name: str, shot: int) -> Split:
    """SOWA with k support images; its adapters were trained once, on other (drawn) classes."""
    data, detector = data_of(name), tuned_sowa()
    model, taps, args = detector.model, detector.taps, detector.alone

    def split(generator: np.random.Generator) -> Outcome:
        order = generator.permutation(len(data.normal))
        support = [data.normal[i] for i in order[:shot]]
        known = left_out(model, taps, support, args)
        memories = remember(model, taps, {support[0].class_name: support})
        rest = [*(data.normal[i] for i in order[shot : shot + 60]), *data.broken[:20]]
        found = score_items(model, taps, rest, memories, args, batch_size=32)
        return Outcome(known, rows(found, 0, len(rest) - 20), rows(found, len(rest) - 20, len(rest)))

    return split


def rows(found: Prediction, start: int, stop: int) -> Prediction:
    """Some of the samples; of the maps, only what a region needs: their largest values as maps [B, 1, 1]."""
    tops = maxima_of(found).reshape(-1, 1, 1)
    return Prediction(found.score.detach().float().cpu()[start:stop], tops[start:stop] if len(tops) else None)


# -- networks that are trained once -----------------------------------------------------------------------------------


def trained(model: str, name: str, weights: Path, epochs: int) -> Split:
    """A network trained on 60 images, small; all other normal images are split into known and new ones."""
    data = data_of(name)
    small: dict[str, Any] = {"repair_width": 8, "segment_width": 8} if model != "reverse_distillation" else {}
    small |= {"backbone": "resnet18", "weights": str(weights)} if model == "reverse_distillation" else {}
    small |= {"patch_width_range": [8, 24]} if model == "draem_sevnet" else {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_class(root / "data" / "part", data.normal[:60], data.broken[:2])
        args = SYSTEMS["detectors"].Args(
            model=model, dataset="mvtec", data_path=str(root / "data"), obj="part", image_size=[64], epochs=epochs,
            calibration_share=0.0, figures=False, output_dir=str(root / "run"), device="cpu", **small,
        )  # fmt: skip
        detector = anomaly_lib.load(SYSTEMS["detectors"].train(args).checkpoint)
    found = [detector.predict([load_pixels(item)[0]]) for item in data.items[60:]]
    whole = Prediction(torch.cat([one.score for one in found]), torch.cat([one.map for one in found]))
    count = len(data.normal) - 60
    scored = rows(whole, 0, len(found))

    def split(generator: np.random.Generator) -> Outcome:
        order = torch.from_numpy(generator.permutation(count))
        half = order[: count // 2], order[count // 2 :]
        known, new = (Prediction(scored.score[some], scored.map[some]) for some in half)  # type: ignore[index]
        return Outcome(known, new, rows(whole, count, len(found)))

    return split


def write_class(folder: Path, normal: list[Item], broken: list[Item]) -> None:
    """A class in MVTec's layout."""
    from PIL import Image

    for place, items in (("train/good", normal), ("test/good", normal[:2]), ("test/broken", broken)):
        (folder / place).mkdir(parents=True)
        for number, item in enumerate(items):
            pixels = load_pixels(item)[0].copy()
            pixels[0, 0] = number if place == "test/good" else pixels[0, 0]  # no picture may be in two splits
            Image.fromarray(pixels).save(folder / place / f"{number:03d}.png")


# -- read or trained once ---------------------------------------------------------------------------------------------


@cache
def data_of(name: str) -> Data:
    """A class of the data folder or of the drawn data, read once."""
    return demo_data(name.removeprefix("demo ")) if name.startswith("demo ") else real_data(data_folder(), name)


@cache
def tuned_sowa() -> Any:
    """SOWA with adapters trained for an epoch on two drawn classes that are no data set here."""
    with tempfile.TemporaryDirectory() as folder:
        args = SYSTEMS["sowa"].Args(
            train_classes=["woven", "capsule"], test_classes=["grid"], epochs=1, select="last", cache="ram",
            figures=False, output_dir=f"{folder}/run", device="cpu",
        )  # fmt: skip
        return anomaly_lib.load(SYSTEMS["sowa"].train(args).checkpoint)


def short(name: str) -> str:
    """The class alone."""
    return name.rpartition("/")[2]


def data_folder() -> Path:
    root = Path(os.environ.get("ANOMALY_LIB_DATA", ""))
    if not sorted((root / "weights").glob("resnet18*.pth")):
        raise SystemExit("set ANOMALY_LIB_DATA to the folder of real data and weights")
    return root
