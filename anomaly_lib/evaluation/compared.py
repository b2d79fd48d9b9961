"""How an exported file compares with its detector: on which inputs, by how much, the price of precision, how fast."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from anomaly_lib.data.base import load_pixels
from anomaly_lib.data.images import read_image
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.errors import UserError
from anomaly_lib.evaluation.graph import Answer
from anomaly_lib.evaluation.inputs import expand
from anomaly_lib.metrics import auroc
from anomaly_lib.types import Prediction

CALIBRATED, COMPARED = 64, 200  # pictures that set the ranges of int8, and that the loss of precision is measured on


def fresh_pictures() -> list[np.ndarray]:
    """Drawn pictures [H, W, 3] of several sizes and shapes, one of them tall."""
    rng = np.random.default_rng(0)
    made = []
    for height, width in ((256, 256), (97, 150), (211, 64)):
        coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
        smooth = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
        made.append((0.7 * smooth + 0.3 * rng.integers(0, 256, smooth.shape)).astype(np.uint8))
    return made


def largest_difference(wanted: Prediction, run: Answer, inputs: Sequence[tuple[np.ndarray, ...]]) -> float:
    """Largest |difference| of scores and maps, relative to the largest value of each; an input is a batch of one."""
    worst = 0.0
    for index, given in enumerate(inputs):
        found = run(*given)
        for name in ("score", "map"):
            value = getattr(wanted, name)
            if value is not None:
                want = value[index].detach().cpu().numpy()
                scale = max(float(np.abs(value.detach().cpu().numpy()).max()), 1e-6)
                worst = max(worst, float(np.abs(want - found[name][0]).max()) / scale)
    return worst


def normal_pictures(folder: str | None) -> list[np.ndarray]:
    """Normal pictures [H, W, 3] uint8 that the ranges of int8 are measured on; [] without a folder."""
    if folder is None:
        return []
    files = [path for path, _ in expand(folder)][:CALIBRATED]
    pictures = [read_image(path) for path in files]
    if not pictures or any(picture.dtype != np.uint8 for picture in pictures):
        raise UserError(f"calibration={folder}: pictures of 8 bits are needed")
    return pictures


def loss_of_precision(detector: ImageDetector, run: Answer) -> tuple[dict[str, Any], list[str]]:
    """AUROC and decisions of file and detector on the test images of the training run, and the same in words."""
    try:
        selection = detector.items()
    except UserError as error:
        return {}, [f"what less precision costs could not be measured: {error}"]
    ours, theirs, labels, flipped = [], [], [], 0
    for item in evenly(selection.items, COMPARED):
        pixels = load_pixels(item)[0]
        if pixels.dtype != np.uint8:
            return {}, [f"what less precision costs could not be measured: {item.path} has more than 8 bits"]
        found = detector.predict(pixels)
        answer = run(pixels[None])
        ours.append(float(found.score[0]))
        theirs.append(float(answer["score"][0]))
        labels.append(item.label)
        flipped += found.anomalous is not None and bool(found.anomalous[0]) != bool(answer["anomalous"][0])
    truth = torch.tensor(labels)
    before, after = (auroc(torch.tensor(values), truth) for values in (ours, theirs))
    measured = {"on": selection.name, "images": len(labels), "auroc": after, "auroc_of_fp32": before}
    line = f"on {len(labels)} images of {selection.name}: AUROC {after:.4f}, in fp32 {before:.4f}"
    if detector.decision is not None:
        measured["decisions_that_differ"] = flipped
        line += f"; {flipped} decisions differ"
    return measured, [line]


def evenly(items: Sequence[Any], most: int) -> Iterator[Any]:
    """At most `most` of the items, spread over them all."""
    step = max(1.0, len(items) / most)
    return (items[int(place * step)] for place in range(min(most, len(items))))


def latency(call: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of one call, after two warm-up calls."""
    times = []
    for index in range(repeats + 2):
        started = time.perf_counter()
        call()
        if index >= 2:
            times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))
