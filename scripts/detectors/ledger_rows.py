"""What the ledger of few-shot detectors compares: the images of each class, the detectors, and one measured row."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_lib.data import Item, open_dataset
from anomaly_lib.data.base import ImageDataset, select
from anomaly_lib.data.demo.items import demo_items
from anomaly_lib.errors import UserError
from anomaly_lib.metrics import auroc
from anomaly_lib.models.detectors.registry import entry_of
from anomaly_lib.models.promptad.model import PromptAD
from anomaly_lib.models.promptad.scores import Scoring
from anomaly_lib.systems.detectors.build import make_extractor
from anomaly_lib.systems.detectors.data import image_transform
from anomaly_lib.systems.detectors.inputs import Inputs, images_of, score_all
from anomaly_lib.systems.detectors.options import Args as DetectorArgs
from anomaly_lib.systems.promptad.features import Towers
from anomaly_lib.systems.promptad.options import Args as PromptArgs
from anomaly_lib.types import Prediction

REAL = ("mvtec_ad/bottle", "mtd/magnetic_tile", "battery_weld/weld")
DEMO = ("woven", "brushed_metal", "grid", "capsule", "circuit_board")
SIDE, POOL, MOST = 224, 16, 40  # pixels; images that k are drawn from; images that "all" are
MOST_GOOD = MOST_BROKEN = 24  # test images
EPOCHS = 10  # of PromptAD's contexts
STEP = 4  # every fourth row and column of a map enters the pixel AUROC
CPU = torch.device("cpu")
VIT, RESNET = "timm:vit_tiny_patch16_224", "resnet18"
FILES = {VIT: "vit_tiny_patch16_224_imagenet_fp16.pth", RESNET: "resnet18_imagenet1k_layers1-3_bnfolded.pth"}


@dataclass(frozen=True)
class Method:
    """A row of the ledger: a detector on a network, its layers and options, and what differs when it learns all."""

    model: str
    backbone: str
    layers: Sequence[str] = ()  # that the detector compares
    options: dict[str, Any] = field(default_factory=dict)
    learning_all: dict[str, Any] = field(default_factory=dict)
    read: Sequence[str] = ()  # that the network is asked for, so that several detectors share one encoding

    def args(self, shot: int | None, seed: int, cache_dir: str) -> Any:
        """Options of the detector, the network and the store."""
        file = FILES.get(self.backbone)
        weights = None if file is None else str(data_folder() / "weights" / file)
        options = self.options if shot else self.options | self.learning_all
        kind = DetectorArgs.variant({"model": self.model})
        if "seed" in kind.__dataclass_fields__:
            options = options | {"seed": seed}
        size = 128 if self.backbone == "demo-clip" else SIDE
        return DetectorArgs(
            model=self.model, backbone=self.backbone, weights=weights, layers=list(self.layers), image_size=[size],
            dataset="mvtec", data_path=".", cache="disk", cache_dir=cache_dir, shot=shot, batch_size=16, **options,
        )  # fmt: skip


TURNS = ("layer.2", "layer.5", "layer.7", "layer.8")
PLAIN = ("layer.2", "layer.7", "pooled", "normed.3", "normed.6", "normed.9", "normed.11")
METHODS: dict[str, Method] = {
    "fewshot": Method("fewshot", VIT, ("layer.2", "layer.5", "layer.8"), read=TURNS),
    "patchcore, ResNet-18": Method("patchcore", RESNET, ("layer2", "layer3"), read=("layer1", "layer2", "layer3")),
    "patchcore, ViT-Tiny": Method("patchcore", VIT, ("layer.2", "layer.7"), read=PLAIN),
    "padim, ResNet-18": Method("padim", RESNET, ("layer1", "layer2", "layer3")),
    "padim, ViT-Tiny": Method("padim", VIT, ("layer.2", "layer.7"), read=PLAIN),
    "anomalydino": Method("anomalydino", VIT, ("layer.7",), learning_all={"rotations": 1}, read=TURNS),
    "subspacead": Method(
        "subspacead", VIT, ("layer.5", "layer.6", "layer.7"), {"rotations": 5}, learning_all={"rotations": 0}
    ),
    "rad": Method("rad", VIT, ("pooled", "normed.3", "normed.6", "normed.9", "normed.11"), read=PLAIN),
    "winclip": Method("winclip", "demo-clip", ("pooled", "window.2", "window.3", "normed.4")),
    "visionad": Method("visionad", VIT, ("layer.3", "layer.5", "layer.7"), learning_all={"augment_support": False}),
}
NOTE = f"""\
Image AUROC / pixel AUROC in per cent (pixels: every fourth row and column), mean over the classes and the draws;
differences with 95 % intervals over paired resamples of the test images. Classes: bottle (MVTec AD), magnetic tiles,
battery welds, and the built-in {", ".join(DEMO)}. At most {MOST_GOOD} good and {MOST_BROKEN} broken test images a
class, {SIDE} px; k images are drawn from the same {POOL} (five draws for 1, 2 and 4, all of them for {POOL}), "all" is
at most {MOST}. On ViT-Tiny's ImageNet weights where no network is named. `winclip` and `promptad` run on the demo CLIP
at its 128 px, because no published weights are here: it has been trained on drawings and knows nothing of real parts;
`promptad` has one draw and {EPOCHS} epochs of contexts. `subspacead` learns 5 turns instead of 30, and with all images
none; with all images `anomalydino` and `visionad` learn no other views either. `padim` needs more than one image.
In brackets: on how many of the classes, where a method was not measured on all; differences are over those alone.
**The design of `fewshot` was chosen on these classes**, partly on the same test images: the table shows what was
looked for, which is more than your data will give."""


# -- images -----------------------------------------------------------------------------------------------------------


@dataclass
class Class:
    """Normal training images (the first POOL of them are those that k are drawn from) and test images of a class."""

    normal: list[Item]
    test: list[Item]

    @property
    def labels(self) -> list[int]:
        return [item.label for item in self.test]

    def support(self, shot: int | None, seed: int) -> list[Item]:
        """`shot` of the pool, drawn by seed, or all."""
        pool = self.normal[:POOL]
        return self.normal if shot is None else random.Random(seed).sample(pool, shot)


@cache
def class_of(name: str) -> Class:
    """A class of the data folder or of the drawn data; too many images are thinned by a fixed seed."""
    if "/" in name:
        folder, _, category = name.partition("/")
        items = open_dataset("mvtec", str(data_folder() / folder), classes=[category])
    else:
        items = demo_items(categories=[name], size=SIDE, train=MOST, test_good=MOST_GOOD, per_defect=4)
    test = select(items, split="test")
    good, broken = (thinned([i for i in test if i.label == label], most) for label, most in
                    ((0, MOST_GOOD), (1, MOST_BROKEN)))  # fmt: skip
    return Class(thinned(select(items, split="train", label=0), MOST), good + broken)


def thinned(items: list[Item], most: int) -> list[Item]:
    """Up to `most` of the items in the order of a fixed draw."""
    order = np.random.default_rng(0).permutation(len(items))[:most]
    return [items[i] for i in order]


def data_folder() -> Path:
    """$ANOMALY_LIB_DATA."""
    root = Path(os.environ.get("ANOMALY_LIB_DATA", ""))
    if not (root / "weights").is_dir():
        raise UserError("set ANOMALY_LIB_DATA to a folder with weights/ and the real categories")
    return root


# -- a row ------------------------------------------------------------------------------------------------------------


@cache
def extractor_of(backbone: str, layers: tuple[str, ...], cache_dir: str) -> nn.Module:
    """The frozen network that answers `layers`."""
    method = Method("patchcore", backbone, layers)
    return make_extractor(method.args(None, 0, cache_dir)).eval()


@cache
def masks_of(name: str, side: int) -> Tensor:
    """Truth [N, side / STEP, side / STEP] of the test images."""
    kind = DetectorArgs(model="patchcore", backbone=RESNET, dataset="mvtec", data_path=".", image_size=[side])
    data = ImageDataset(class_of(name).test, transform=image_transform(kind))
    masks = torch.stack([data[i]["mask"].reshape(side, side) for i in range(len(data))])
    return masks[:, STEP // 2 :: STEP, STEP // 2 :: STEP] > 0.5


def inputs_of(module: nn.Module, items: list[Item], args: Any, *, learnt: bool) -> Inputs:
    data = ImageDataset(items, transform=image_transform(args))
    return Inputs(module, images_of(data, args, 3), args, CPU, learnt=learnt)


def detector_row(method: Method, name: str, shot: int | None, seed: int, cache_dir: str) -> Prediction:
    """Scores and maps of the test images of a class by a detector that has learnt `shot` images (None: all)."""
    args, data = method.args(shot, seed, cache_dir), class_of(name)
    net = extractor_of(method.backbone, tuple(method.read or method.layers), cache_dir)
    module = entry_of(method.model).load()(args, extractor=net).eval()
    learnt = inputs_of(module, data.support(shot, seed), args, learnt=True)
    module.fit_features(learnt.whole(range(learnt.count), "normal images"))
    return score_all(inputs_of(module, data.test, args, learnt=False), "test")


def figures(name: str, found: Prediction) -> dict[str, Any]:
    """Image and pixel AUROC, and the ranks of the image scores for the bootstrap."""
    assert found.map is not None
    maps = found.map[:, STEP // 2 :: STEP, STEP // 2 :: STEP]
    masks = masks_of(name, found.map.shape[-1])
    ranks = found.score.unique(return_inverse=True)[1].tolist()
    return {
        "image_auroc": round(float(auroc(found.score, class_of(name).labels)), 5),
        "pixel_auroc": round(float(auroc(maps.flatten(), masks.flatten())), 5),
        "ranks": " ".join(map(str, ranks)),
    }


# -- PromptAD ---------------------------------------------------------------------------------------------------------


@cache
def towers_of(visual: str | None, cache_dir: str) -> Towers:
    """PromptAD's frozen networks: the demo CLIP, and the network of its memory where that is another."""
    own: dict[str, Any] = {}
    if visual is not None:
        own = {"visual_backbone": visual, "visual_weights": str(data_folder() / "weights" / FILES[visual])}
    return Towers(PromptArgs(backbone="demo-clip", epochs=EPOCHS, cache="disk", cache_dir=cache_dir, **own), CPU)


@cache
@torch.enable_grad()
def contexts_of(name: str, shot: int | None, seed: int, cache_dir: str) -> dict[str, Tensor]:
    """Contexts trained on the images that PromptAD learns; its memory has no part in that."""
    towers = towers_of(None, cache_dir)
    model = PromptAD(towers.args, towers=towers, class_name=class_of(name).normal[0].class_name)
    features = towers.features(class_of(name).support(shot, seed), test=False).for_task("cls")
    optimizer = torch.optim.SGD(model.learner.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        torch.stack(list(model.losses(features).values())).sum().backward()
        optimizer.step()
    return model.learner.state_dict()


@torch.no_grad()
def promptad_row(visual: str | None, name: str, shot: int | None, seed: int, cache_dir: str) -> Prediction:
    """Scores and maps of the test images by PromptAD at image level."""
    towers, data = towers_of(visual, cache_dir), class_of(name)
    model = PromptAD(towers.args, towers=towers, class_name=data.normal[0].class_name)
    model.learner.load_state_dict(contexts_of(name, shot, seed, cache_dir))
    model.remember(towers.features(data.support(shot, seed), test=False).gallery_rows())
    model.keep_text_features()
    return Scoring(towers.args).predict(model.branches(towers.features(data.test, test=True)))


PROMPTED = {"promptad": None, "promptad, ViT-Tiny memory": VIT}


def row_of(method: str, name: str, shot: int | None, seed: int, cache_dir: str) -> Prediction:
    """Scores and maps of the test images of a class by a method that has learnt `shot` of its images (None: all)."""
    if method in PROMPTED:
        return promptad_row(PROMPTED[method], name, shot, seed, cache_dir)
    return detector_row(METHODS[method], name, shot, seed, cache_dir)


def draws_of(method: str, shot: str, seeds: int) -> int:
    """How many draws of `shot` images are measured; 0 where a method cannot learn so few."""
    if method.startswith("padim") and shot == "1":
        return 0
    return 1 if shot == "all" or int(shot) == POOL or method in PROMPTED else seeds
