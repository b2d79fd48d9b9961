"""The drawn pictures the demo backbone learns from: masks, labels and captions say what the pixels show."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.demo_backbone.pictures import batches, captions
from scripts.demo_backbone.pictures.batches import make_batch
from scripts.demo_backbone.pictures.defects import DEFECT_NAMES, take_away
from scripts.demo_backbone.pictures.pictures import MATERIALS, PIECES, SURFACE, _scene, draw
from scripts.demo_backbone.pictures.pool import DRAWN, GRID, MARGIN, PATCH, Pool, draw_pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return draw_pool(tmp_path_factory.mktemp("pool"), 24, 3, staged=False)


def test_damage_is_where_the_mask_says() -> None:
    for seed in range(12):
        one = draw((9, seed), 96)
        clean, damaged = one.pieces[-2:].astype(float)
        change = np.abs(damaged - clean).max(-1)
        assert one.mask.any()
        assert np.median(change[one.mask]) > 10  # of 255
        assert np.median(change[~one.mask]) <= 3


def test_pieces_of_a_product_share_its_design_and_nothing_else() -> None:
    """Two pieces are alike in colour and structure, yet no two have the same grain; two products differ in both."""

    def contrast(picture: np.ndarray) -> float:
        return float(np.log(picture.std() + 1))

    drawings = [draw((3, seed), 96) for seed in range(40)]
    pieces = [one.pieces.astype(float) for one in drawings if one.object == SURFACE]
    assert len(pieces) > 5
    within = [abs(contrast(a) - contrast(b)) for a, b, _ in pieces]
    between = [abs(contrast(a[0]) - contrast(b[0])) for a, b in itertools.pairwise(pieces)]
    assert np.median(within) < 0.3 * np.median(between)
    noisy = [one for one in drawings if MATERIALS[one.material] in ("carpet", "concrete", "leather", "steel")]
    assert noisy
    assert all(not np.array_equal(one.pieces[0], one.pieces[1]) for one in noisy)


def test_a_missing_part_shows_what_lies_beneath_it() -> None:
    seen = {False: 0, True: 0}
    for seed in range(400):
        scene = _scene(np.random.default_rng((21, seed)), np.random.default_rng((22, seed)), 64)
        for box in scene.layers.boxes:
            rest = take_away(scene.layers, box)
            inside = slice(int(box.y), int(box.y) + 1), slice(int(box.x), int(box.x) + 1)
            np.testing.assert_allclose(rest[inside], scene.layers.bare[inside], atol=1e-6)
            far = np.hypot(*(np.mgrid[0:64, 0:64] - np.array([box.y, box.x])[:, None, None])) > 40
            np.testing.assert_array_equal(rest[far], scene.layers.full[far])
            seen[box.seated] += 1
    assert min(seen.values()) > 20  # print and loose parts leave no trace, seated ones do


def test_pool_does_not_depend_on_how_it_was_drawn(tmp_path: Path, pool: Pool) -> None:
    again = draw_pool(tmp_path, 3, 3, staged=False, workers=2)
    assert all(np.array_equal(again[name], pool[name][:3]) for name in again)
    assert again["pictures"].shape == (3, PIECES, DRAWN, DRAWN, 3)
    stamp = next(tmp_path.glob("*masks.npy")).stat().st_mtime_ns
    draw_pool(tmp_path, 3, 3, staged=False)
    assert next(tmp_path.glob("*masks.npy")).stat().st_mtime_ns == stamp  # drawn once


@pytest.mark.parametrize("window", [8, GRID])
def test_patch_labels_follow_the_pixels(pool: Pool, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    side = window * PATCH
    still = np.array([[1.0, 0, -MARGIN / 2], [0, 1.0, -MARGIN / 2]])
    monkeypatch.setattr(batches, "_pose", lambda *_: still)  # every piece lies in the same place, so pixels compare
    monkeypatch.setattr(batches, "photograph", lambda images, _: images)
    batch = make_batch(pool, np.random.default_rng(0), 12, window)
    assert batch.images.shape == (12 * PIECES, 3, side, side)
    assert batch.offsets.min() >= 0
    assert batch.offsets.max() <= GRID - window
    assert (batch.patches == 1).any(1).float().mean() > 0.6  # windows are aimed at the damage
    clean, damaged = batch.images.unflatten(0, (12, PIECES))[:, -2:].unbind(1)
    change = (damaged - clean).abs().amax(1).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).amax((-1, -2)).flatten(1)
    assert change[batch.patches == 1].min() > 0.02
    assert change[batch.patches == 0].quantile(0.99) < 0.06


def test_poses_move_pictures_and_masks_alike(pool: Pool) -> None:
    """The centre of the damage in the labels is where the pixels of the two posed pictures differ most."""
    rng = np.random.default_rng(5)
    for turn in range(4):
        pose = batches._pose(rng, turn * np.pi / 2, turn % 2 == 1, MARGIN * 0.4)
        clean, damaged = (batches._shoot(pool["pictures"][1, piece], pose) for piece in (-2, -1))
        mask = batches._shoot(pool["masks"][1].astype(np.float32), pose) > 0.5
        change = np.abs(damaged - clean).max(-1)
        assert mask.any()
        assert change[mask].mean() > 8 * change[~mask].mean()


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
