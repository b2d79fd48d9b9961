"""The drawn pictures the demo backbone learns from: masks, labels and captions say what the pixels show."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_lib.data.procedural import captions
from anomaly_lib.data.procedural.batches import make_batch
from anomaly_lib.data.procedural.defects import DEFECT_NAMES
from anomaly_lib.data.procedural.pictures import draw
from anomaly_lib.data.procedural.pool import DRAWN, GRID, PATCH, Pool, draw_pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return draw_pool(tmp_path_factory.mktemp("pool"), 24, 3)


def test_damage_is_where_the_mask_says() -> None:
    for seed in range(12):
        one = draw(np.random.default_rng((9, seed)), 96)
        change = np.abs(one.damaged.astype(float) - one.clean).max(-1)
        assert one.mask.any()
        assert np.median(change[one.mask]) > 10  # of 255
        assert np.median(change[~one.mask]) <= 3


def test_pool_does_not_depend_on_how_it_was_drawn(tmp_path: Path, pool: Pool) -> None:
    again = draw_pool(tmp_path, 3, 3, workers=2)
    assert all(np.array_equal(again[name], pool[name][:3]) for name in again)
    assert again["pictures"].shape == (3, 2, DRAWN, DRAWN, 3)
    stamp = next(tmp_path.glob("*masks.npy")).stat().st_mtime_ns
    draw_pool(tmp_path, 3, 3)
    assert next(tmp_path.glob("*masks.npy")).stat().st_mtime_ns == stamp  # drawn once


@pytest.mark.parametrize("window", [8, GRID])
def test_patch_labels_follow_the_pixels(pool: Pool, window: int) -> None:
    batch = make_batch(pool, np.random.default_rng(0), 12, window)
    assert batch.images.shape == (24, 3, window * PATCH, window * PATCH)
    assert batch.patches[:12].eq(0).all()  # the clean half has no damage anywhere
    assert batch.offsets.min() >= 0
    assert batch.offsets.max() <= GRID - window
    assert (batch.patches[12:] == 1).any(1).float().mean() > 0.6  # windows are aimed at the damage
    difference = (
        (batch.images[12:] - batch.images[:12]).abs().mean(1)
    )  # recoloured differently: only its pattern counts
    cells = difference.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).std((-1, -2)).flatten(1)
    labels = batch.patches[12:]
    assert cells[labels == 1].median() > 1.3 * cells[labels == 0].median()


def test_captions_commit_only_to_what_they_say() -> None:
    attributes = np.array([[m % 18, m % 13 - 1, m % len(DEFECT_NAMES)] for m in range(200)])
    texts, said = captions.caption_pairs(np.random.default_rng(0), attributes)
    clean, damaged = texts[:200], texts[200:]
    assert (said[:200, 2] == 0).all()
    assert (said[200:, 2] == 1).all()
    assert set(said[:200, 3]) == {-1}
    for row, (_, _, defect) in enumerate(attributes):
        states = captions.DEFECT_STATES[DEFECT_NAMES[defect]]
        fragments = [state.replace("{}", "").strip() for state in states]
        if said[200 + row, 3] >= 0:
            assert said[200 + row, 3] == defect
            assert any(fragment in damaged[row] for fragment in fragments), damaged[row]
    assert all(clean[row] != damaged[row] for row in range(200))
    words = set(captions.grammar_words())
    used = {word for text in texts for word in text.replace(".", " ").replace("-", " ").split()}
    assert used - {captions.UNKNOWN_NOUN} <= words


def test_same_seed_same_batch(pool: Pool) -> None:
    def one() -> torch.Tensor:
        torch.manual_seed(4)
        return make_batch(pool, np.random.default_rng(5), 4, 8).images

    assert torch.equal(one(), one())
