"""Pixel metrics against scikit-learn, scikit-image and loop-written twins; chunks, sizes, degenerate cases."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from skimage.measure import label as skimage_label
from sklearn import metrics as sk

from anomaly_lib import metrics
from anomaly_lib.errors import UserError
from anomaly_lib.metrics.curve import count_in_sorted
from anomaly_lib.metrics.pixel import pixel_curve

LIMITS = (0.3, 0.05, 1.0)


def maps_of(seed: int, *, count: int = 4, side: int = 24, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Noise maps with brighter random blobs; the last image is normal."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((count, side, side), np.uint8)
    for mask in masks[:-1]:
        for _ in range(3):
            y, x = generator.integers(0, side - 6, 2)
            mask[y : y + generator.integers(1, 6), x : x + generator.integers(1, 6)] = 255
        mask[0, 0] = mask[1, 1] = 1  # touch at a corner: one region only under 8-connectivity
    maps = generator.normal(size=masks.shape).astype(np.float32) + 1.2 * (masks > 0)
    return (maps if levels is None else np.round(maps * levels) / levels).astype(np.float32), masks


def aupro_twin(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """Loop over all distinct scores, mean region overlap by scikit-image labels, trapezoid cut at the limit."""
    regions = []
    for index, mask in enumerate(masks):
        labels = skimage_label(mask > 0, connectivity=2)
        regions += [(index, labels == one) for one in range(1, labels.max() + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        fpr = (maps[masks == 0] >= threshold).mean()
        points.append((fpr, np.mean([(maps[index][region] >= threshold).mean() for index, region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        end = min(x1, limit)
        y_end = y1 if x1 == x0 else y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@pytest.mark.parametrize("levels", [None, 4, 1], ids=["distinct", "ties", "many-ties"])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_twins(seed: int, levels: int | None) -> None:
    maps, masks = maps_of(seed, levels=levels)
    flat, marked = maps.ravel(), masks.ravel() > 0
    found = metrics.pixel_metrics(maps, masks, LIMITS)
    assert list(found) == ["auroc", "ap", "f1_max", "f1_max_threshold", "aupro", "aupro_0.05", "aupro_1"]
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(marked, flat), abs=1e-10)
    assert found["ap"] == pytest.approx(sk.average_precision_score(marked, flat), abs=1e-10)
    assert found["f1_max"] == pytest.approx(
        max(sk.f1_score(marked, flat >= t) for t in np.unique(flat[marked])), abs=1e-10
    )
    for limit, name in zip(LIMITS, ("aupro", "aupro_0.05", "aupro_1"), strict=True):
        assert found[name] == pytest.approx(aupro_twin(maps, masks, limit), abs=1e-10)
    assert found["aupro"] == metrics.aupro(maps, masks) == metrics.aupro(maps, masks, fpr_limit=0.3)
    assert found["auroc"] == metrics.pixel_auroc(maps, masks)
    assert found["ap"] == metrics.pixel_average_precision(maps, masks)
    assert found["f1_max"] == metrics.pixel_f1_max(maps, masks)


@pytest.mark.parametrize("chunk_pixels", [1, 600, 1500])
@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_and_threads_change_nothing(chunk_pixels: int, threads: int) -> None:
    maps, masks = maps_of(1, count=7, levels=8)
    whole = pixel_curve(maps, masks)
    masks_of_few = masks * (np.arange(7) == 2)[:, None, None]  # few anomalous pixels: small chunks really happen
    parts = pixel_curve(maps, masks_of_few, chunk_pixels=chunk_pixels, threads=threads)
    once = pixel_curve(maps, masks_of_few, chunk_pixels=10**9, threads=1)
    for name in ("thresholds", "tp", "fp", "fp_above", "overlap"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(once, name))
    assert whole.fp[-1] <= whole.negatives == (masks == 0).sum()


def test_every_form_of_input_gives_the_same() -> None:
    maps, masks = maps_of(2)
    want = metrics.pixel_metrics(maps, masks, LIMITS)
    assert metrics.pixel_metrics(torch.from_numpy(maps), torch.from_numpy(masks), LIMITS) == want
    assert metrics.pixel_metrics(torch.from_numpy(maps)[:, None], torch.from_numpy(masks > 0)[:, None], LIMITS) == want
    assert metrics.pixel_metrics(list(maps), [*masks[:-1], None], LIMITS) == want
    assert metrics.pixel_metrics(maps.astype(np.float64), masks.astype(np.float32) / 255, LIMITS) == want
    half = torch.from_numpy(maps).bfloat16()
    assert metrics.pixel_metrics(half, masks, LIMITS) == metrics.pixel_metrics(half.float(), masks, LIMITS)


def test_images_of_different_sizes() -> None:
    (small, small_masks), (large, large_masks) = maps_of(3, side=16), maps_of(4, side=31)
    found = metrics.pixel_metrics([*small, *large], [*small_masks, *large_masks])
    flat = np.r_[small.ravel(), large.ravel()]
    marked = np.r_[small_masks.ravel(), large_masks.ravel()] > 0
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(marked, flat), abs=1e-10)


def test_perfect_inverted_and_constant_maps() -> None:
    _, masks = maps_of(0)
    perfect = (masks > 0).astype(np.float32)
    assert metrics.pixel_metrics(perfect, masks) == {
        "auroc": 1.0,
        "ap": 1.0,
        "f1_max": 1.0,
        "f1_max_threshold": 1.0,
        "aupro": 1.0,
    }
    assert metrics.aupro(-perfect, masks, 0.3) == pytest.approx(0.0, abs=1e-12)
    assert metrics.pixel_auroc(-perfect, masks) == 0.0
    # A constant map is one diagonal: AUROC 1/2, overlap = FPR, so the normalised area up to L is L / 2.
    assert metrics.pixel_auroc(perfect * 0, masks) == 0.5
    assert metrics.aupro(perfect * 0, masks, 0.3) == pytest.approx(0.15)


def test_degenerate_masks_are_nan() -> None:
    maps, masks = maps_of(0)
    nothing = metrics.pixel_metrics(maps, masks * 0)
    assert all(math.isnan(value) for value in nothing.values())
    everything = metrics.pixel_metrics(maps, masks * 0 + 1)
    assert math.isnan(everything["auroc"])
    assert math.isnan(everything["aupro"])
    assert everything["ap"] == everything["f1_max"] == 1.0


def test_regions_are_eight_connected() -> None:
    mask = np.zeros((6, 6), bool)
    mask[1, 1] = mask[2, 2] = mask[5, 5] = True
    labels, count = metrics.label_regions(mask)
    assert count == 2
    assert labels[1, 1] == labels[2, 2] != labels[5, 5] != 0
    assert metrics.label_regions(mask * False)[1] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0, 0), (3, 5, 5)], ids=["anomalous", "normal"])
def test_non_finite_names_the_sample(value: float, where: tuple[int, int, int]) -> None:
    maps, masks = maps_of(0)
    maps[where] = value
    for call in (metrics.pixel_metrics, metrics.PixelHistogram().update, lambda a, b: metrics.per_image_iou(a, b, 0.5)):
        with pytest.raises(UserError, match=f"sample {where[0]} has NaN"):
            call(maps, masks)


@pytest.mark.parametrize(
    ("maps", "masks", "words"),
    [
        (np.zeros((0, 4, 4)), np.zeros((0, 4, 4)), "at least one anomaly map"),
        (np.zeros((2, 4, 4)), np.zeros((1, 4, 4)), "2 anomaly maps but 1 masks"),
        (np.zeros((1, 4, 4)), np.zeros((1, 4, 5)), "sample 0: the map is"),
        (np.zeros((1, 2, 4, 4)), np.zeros((1, 4, 4)), r"must be \[H, W\]"),
    ],
)
def test_wrong_shapes_are_named(maps: np.ndarray, masks: np.ndarray, words: str) -> None:
    with pytest.raises(UserError, match=words):
        metrics.pixel_metrics(maps, masks)
    with pytest.raises(UserError, match="limit must lie"):
        metrics.aupro(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), 0.0)


def test_count_in_sorted_with_ties() -> None:
    at_least, above = count_in_sorted(np.array([1.0, 2.0, 2.0, 3.0]), np.array([0.0, 2.0, 2.5, 3.0, 9.0]))
    assert at_least.tolist() == [4, 3, 1, 1, 0]
    assert above.tolist() == [4, 1, 1, 0, 0]


def test_per_image_iou_by_hand() -> None:
    maps = np.array([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    masks = np.array([[[1, 0], [1, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]])
    np.testing.assert_allclose(metrics.per_image_iou(maps, masks, 0.5), [1 / 3, np.nan, 0.0])


class TestHistogram:
    @pytest.mark.parametrize("bits", [12, 16, 20])
    @pytest.mark.parametrize("levels", [None, 4])
    def test_within_its_stated_bound(self, bits: int, levels: int | None) -> None:
        maps, masks = maps_of(6, count=6, levels=levels)
        exact = metrics.pixel_metrics(maps, masks, LIMITS)
        histogram = metrics.PixelHistogram(bits=bits)
        for start in range(0, 6, 2):
            histogram.update(maps[start : start + 2], masks[start : start + 2])
        bounds, found = histogram.error_bounds(LIMITS), histogram.metrics(LIMITS)
        for name, bound in bounds.items():
            assert abs(found[name] - exact[name]) <= bound + 1e-12, name
        assert bounds["auroc"] < 2e-2 * 2 ** (12 - bits) + 1e-12 if levels is None else True
        assert found["auroc"] != exact["auroc"] or bits > 12 or levels is not None  # 12 bits do merge scores

    def test_exact_when_each_bin_holds_one_score(self) -> None:
        maps, masks = maps_of(6, levels=4)  # multiples of 1/4 differ in the leading 20 bits
        histogram = metrics.PixelHistogram(bits=20)
        histogram.update(maps, masks)
        want = metrics.pixel_metrics(maps, masks, LIMITS)
        assert histogram.metrics(LIMITS) == pytest.approx(want, abs=1e-12)

    def test_merge_equals_one_histogram(self) -> None:
        maps, masks = maps_of(7)
        whole, one, other = (metrics.PixelHistogram(bits=14) for _ in range(3))
        whole.update(maps, masks)
        one.update(maps[:1], masks[:1])
        other.update(maps[1:], masks[1:])
        one.merge(other)
        assert one.metrics() == pytest.approx(whole.metrics(), abs=1e-12)
        assert one.images == 4

    def test_refusals(self) -> None:
        with pytest.raises(UserError, match="empty"):
            metrics.PixelHistogram().metrics()
        with pytest.raises(UserError, match="10 to 26"):
            metrics.PixelHistogram(bits=40)
        with pytest.raises(UserError, match="cannot be merged"):
            metrics.PixelHistogram(bits=12).merge(metrics.PixelHistogram(bits=14))


def aupimo_twin(maps: np.ndarray, masks: np.ndarray, bounds: tuple[float, float], steps: int) -> list[float]:
    """Threshold by threshold, as the publication describes it."""
    normal = [plane for plane, mask in zip(maps, masks, strict=True) if not mask.any()]
    thresholds = np.linspace(np.min(normal), np.max(normal), steps).astype(np.float32)
    shared = np.array([np.mean([(plane >= t).mean() for plane in normal]) for t in thresholds])
    low, high = (int(np.argmin(np.abs(shared - bound))) for bound in bounds)
    values = []
    for plane, mask in zip(maps, masks, strict=True):
        if not mask.any():
            values.append(np.nan)
            continue
        points = [
            (np.log(shared[i]), (plane[mask > 0] >= thresholds[i]).mean())
            for i in range(high, low + 1)
            if shared[i] > 0
        ]
        area = sum((x0 - x1) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))
        values.append(min(1.0, area / np.log(bounds[1] / bounds[0])))
    return values


def test_aupimo_equals_its_definition() -> None:
    maps, masks = maps_of(8, count=4, side=32)
    maps[1] += 1.5 * (masks[1] > 0)
    found = metrics.aupimo(maps, masks, fpr_bounds=(5e-3, 5e-2), num_thresholds=700)
    np.testing.assert_allclose(found, aupimo_twin(maps, masks, (5e-3, 5e-2), 700), atol=1e-12)
    assert found[1] > found[0]
    with pytest.raises(UserError, match="more normal images"):
        metrics.aupimo(maps, masks, num_thresholds=50)
    with pytest.raises(UserError, match="at least one normal image"):
        metrics.aupimo(maps[:2], masks[:2])
