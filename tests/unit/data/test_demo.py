import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_lib.data import demo_items, load_pixels, open_dataset, select, write_demo
from anomaly_lib.data.demo.items import CATEGORIES, render
from anomaly_lib.errors import UserError


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that an anomaly scores higher than a normal image; whichever direction is better."""
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None]
    value = float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    return max(value, 1 - value)


def test_five_categories_with_six_defects_each() -> None:
    assert len(CATEGORIES) >= 5
    assert all(len(category.defects) >= 6 for category in CATEGORIES.values())


@pytest.mark.parametrize("name", sorted(CATEGORIES))
def test_same_seed_same_pixels_whatever_the_count(name: str) -> None:
    defect = next(iter(CATEGORIES[name].defects))
    few, few_masks = render(name, defect, 1, size=64, seed=3)
    more, more_masks = render(name, defect, 3, size=64, seed=3)
    assert np.array_equal(few[0], more[0])
    assert np.array_equal(few_masks[0], more_masks[0])
    assert not np.array_equal(few[0], render(name, defect, 1, size=64, seed=4)[0][0])
    assert not np.array_equal(more[0], more[1])


@pytest.mark.parametrize("name", sorted(CATEGORIES))
def test_masks_are_where_the_defect_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nuisance, defective and clean renderings of the same draws differ inside the mask, not outside."""
    from anomaly_lib.data.demo import items as demo
    from anomaly_lib.data.demo.draw import Draws, posed_scene

    monkeypatch.setattr(demo, "photograph", lambda draws, scene, colour: colour)
    category, size = CATEGORIES[name], 128
    for defect in category.defects:
        seeds = [(7, 11, i) for i in range(3)]
        kind = category.defects[defect]
        if kind.paint is None:
            continue  # a bend moves the whole neighbourhood a little: its mask is defined by the displacement
        colour, touched = demo._draw(seeds, category, defect, size)
        draws = Draws(seeds)
        scene = posed_scene(draws, size, angle=category.angle, shift=category.shift, zoom=category.zoom)
        draws.uniform(*demo.STRENGTH)
        clean = category.surface(draws, scene).colour
        change = (colour - clean).abs().amax(1)
        assert touched.flatten(1).any(1).all(), defect
        assert change[touched].mean() > 8 * change[~touched].mean(), defect


def test_trivial_statistics_find_nothing() -> None:
    """Image AUROC of brightness, contrast, range, extremes and gradients stays below 0.75 for every category."""
    statistics = {
        "mean": np.mean, "std": np.std, "min": np.min, "max": np.max, "range": np.ptp,
        "low": lambda a: np.percentile(a, 1), "high": lambda a: np.percentile(a, 99),
        "edges": lambda a: np.abs(np.diff(a, axis=0)).mean() + np.abs(np.diff(a, axis=1)).mean(),
        "strongest_edge": lambda a: np.abs(np.diff(a, axis=0)).max(),
    }  # fmt: skip
    items = demo_items(size=128, train=0, test_good=30, per_defect=5)
    worst = {}
    for name in CATEGORIES:
        chosen = select(items, class_name=name)
        labels = np.array([item.label for item in chosen])
        grey = [np.asarray(item.image, dtype=float).mean(axis=2) for item in chosen]
        for statistic, function in statistics.items():
            worst[name, statistic] = auroc(np.array([function(g) for g in grey]), labels)
    assert max(worst.values()) < 0.75, max(worst.items(), key=lambda pair: pair[1])


def test_written_files_are_the_items_in_memory(tmp_path: Path) -> None:
    options = {"categories": ["capsule", "grid"], "size": 48, "train": 2, "test_good": 1, "per_defect": 1, "seed": 5}
    written, memory = write_demo(tmp_path, **options), demo_items(**options)
    assert (tmp_path / "capsule/ground_truth/crack/000_mask.png").is_file()
    read = open_dataset("mvtec", tmp_path)
    assert [i.path for i in read] == [i.path for i in written]
    assert len(read) == 2 * (2 + 1 + 6)
    for on_disk, item in zip(read, memory, strict=True):
        (image, mask), (want, want_mask) = load_pixels(on_disk), load_pixels(item)
        assert np.array_equal(image, want)
        assert np.array_equal(mask, want_mask)
        assert (on_disk.label, on_disk.split, on_disk.defect) == (item.label, item.split, item.defect)
    assert Image.open(tmp_path / "grid/test/bent/000.png").size == (48, 48)


def test_hundreds_of_images_in_seconds() -> None:
    start = time.process_time()
    render("woven", "good", 30)
    assert time.process_time() - start < 6, "30 images of 256x256 take about 0.8 s of CPU time on an idle core"


def test_unknown_category_lists_the_known() -> None:
    with pytest.raises(UserError, match="brushed_metal"):
        demo_items(categories=["bottle"])
