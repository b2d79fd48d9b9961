"""PatchCore and PaDiM on one real category, beside anomalib's modules on the same frozen features."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_lib.data.base import ImageDataset, select
from anomaly_lib.engine.run import machine_facts
from anomaly_lib.metrics import aupro, auroc, pixel_auroc
from anomaly_lib.models.detectors.anomalib_keys import load_anomalib
from anomaly_lib.ops import greedy_coreset
from anomaly_lib.ops.predictions import joined
from anomaly_lib.systems.detectors.build import build, make_extractor
from anomaly_lib.systems.detectors.data import image_transform, open_class, stack_images
from anomaly_lib.systems.detectors.inputs import on_cpu
from anomaly_lib.systems.detectors.options import published
from anomaly_lib.types import Prediction
from scripts.pages.beside_peer import what

CPU = torch.device("cpu")


@torch.no_grad()
def score_batches(module: nn.Module, batches: list[Tensor]) -> Prediction:
    """Scores and maps of many batches of images [B, 3, H, W]."""
    return joined([on_cpu(module.eval()(images)) for images in batches])


class Remembering(nn.Module):
    """A frozen network that answers each batch once; the batches are kept, so their addresses name them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.known: dict[int, dict[str, Tensor]] = {}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if images.data_ptr() not in self.known:
            self.known[images.data_ptr()] = self.net(images)
        return self.known[images.data_ptr()]


class Category:
    """Images, truth and frozen features of one category, read once for all runs."""

    def __init__(self, name: str, opts: Any) -> None:
        """`opts`: options of the detector that reads all layers."""
        _, items = open_class(opts.dataset, opts.data_path, opts.obj)
        normal, test = (
            ImageDataset(select(items, split=split, label=label), transform=image_transform(opts))
            for split, label in (("train", 0), ("test", None))
        )
        self.name, self.count = name, len(normal)
        self.train = [stack_images(normal, rows) for rows in torch.arange(len(normal)).split(32)]
        self.test = [stack_images(test, rows) for rows in torch.arange(len(test)).split(32)]
        self.labels = torch.tensor([item.label for item in test.items])
        self.masks = torch.stack([test[i]["mask"] for i in range(len(test))])
        self.extractor = Remembering(make_extractor(opts)).eval()

    def measures(self, prediction: Prediction) -> dict[str, float]:
        return {
            "image_auroc": auroc(prediction.score, self.labels),
            "pixel_auroc": pixel_auroc(prediction.map, self.masks),
            "aupro": aupro(prediction.map, self.masks),
        }


class Peer(nn.Module):
    """anomalib's module on the same frozen features."""

    def __init__(self, model: str, extractor: nn.Module) -> None:
        super().__init__()
        if model == "patchcore":
            from anomalib.models.image.patchcore.torch_model import PatchcoreModel as Model
        else:
            from anomalib.models.image.padim.torch_model import PadimModel as Model
        self.module = Model(layers=published(model)["layers"], backbone="resnet18", pre_trained=False)
        self.module.feature_extractor = extractor

    def forward(self, images: Tensor) -> Prediction:
        found = self.module(images)
        return Prediction(found.pred_score.flatten(), found.anomaly_map.squeeze(1))

    @torch.no_grad()
    def fit(self, batches: list[Tensor], ratio: float) -> None:
        self.module.train()
        self.module.feature_extractor.eval()
        for images in batches:
            self.module(images)
        if hasattr(self.module, "subsample_embedding"):
            with quick_greedy():
                self.module.subsample_embedding(ratio)
        else:
            self.module.fit()
        self.eval()


@contextmanager
def quick_greedy() -> Iterator[None]:
    """anomalib's selection of a coreset, its own projection and first pick, without its loop of hours.

    `greedy_coreset` picks what that loop picks (bench_memory_bank.py and tests/parity compare the two).
    """
    from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy

    def select(self: Any) -> list[int]:
        self.model.fit(self.embedding)
        start = int(torch.randint(high=self.n_observations, size=(1,)))
        found: list[int] = greedy_coreset(self.model.transform(self.embedding), self.coreset_size, start=start).tolist()
        return found

    original, KCenterGreedy.select_coreset_idxs = KCenterGreedy.select_coreset_idxs, select
    try:
        yield
    finally:
        KCenterGreedy.select_coreset_idxs = original


def detector_on(data: Category, opts: Any) -> nn.Module:
    detector = build(opts, CPU)
    detector.extractor = data.extractor
    return detector.eval()


def same_draws(data: Category, opts: Any, peer: Peer) -> Any:
    """Our detector with anomalib's bank and nearest upsampling, or fitted here on anomalib's channels."""
    detector: Any = detector_on(data, opts)
    if opts.model == "patchcore":
        load_anomalib(detector, {"model.memory_bank": peer.module.memory_bank})
        detector.config = replace(opts, upsample="nearest")
    else:
        detector.channels = peer.module.idx.clone()
        detector.fit(data.train)
    return detector


def row_of(data: Category, opts: Any) -> dict[str, Any]:
    """What was measured, without a figure yet."""
    facts = {"train_images": data.count, "test_images": len(data.labels), "commit": machine_facts()["git_commit"]}
    return what(data.name, opts) | facts


def check(data: Category, opts: Any, with_peer: bool) -> dict[str, Any]:
    row = row_of(data, opts)
    ours: Any = detector_on(data, opts)
    row["here"] = data.measures(score_batches(ours.fit(data.train), data.test))
    if not with_peer:
        return row
    torch.manual_seed(opts.seed)  # anomalib draws from the global generators, torch's and (for its projection) numpy's
    np.random.seed(opts.seed)  # noqa: NPY002
    peer = Peer(opts.model, data.extractor)
    peer.fit(data.train, opts.coreset_ratio)
    theirs = score_batches(peer, data.test)
    row["anomalib"] = data.measures(theirs)
    twin = same_draws(data, opts, peer)
    matched = score_batches(twin, data.test)
    row["same_draws"] = data.measures(matched)
    row["same_draws_largest_score_difference"] = relative(matched.score, theirs.score)
    row["same_draws_largest_map_difference"] = relative(matched.map, theirs.map)
    if opts.model == "patchcore":
        twin.config = opts
        row["same_draws_our_resize"] = data.measures(score_batches(twin, data.test))
    return row


def relative(ours: Any, theirs: Any) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())
