"""Products staged like the demo data: what is drawn, what is held out, and that labels follow the pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_lib.data.demo.defects import Defect
from anomaly_lib.data.demo.items import CATEGORIES
from scripts.demo_backbone.pictures.batches import _reframe, make_batch
from scripts.demo_backbone.pictures.defects import DEFECT_NAMES
from scripts.demo_backbone.pictures.objects import OBJECTS
from scripts.demo_backbone.pictures.outlines import SHAPES, outline, rounded_box
from scripts.demo_backbone.pictures.pictures import PIECES, SURFACE
from scripts.demo_backbone.pictures.pool import DRAWN, MARGIN, PATCH, SIZE, draw_pool
from scripts.demo_backbone.pictures.staged import SEEN, _Stage, draw_staged
from scripts.demo_backbone.pictures.staged_damage import KINDS, WORDS, random_damage
from scripts.demo_backbone.pictures.wares import Ware, design, surface


def wares(count: int) -> list[Ware]:
    return [design(np.random.default_rng((31, seed))) for seed in range(count)]


def test_the_held_out_categories_are_not_drawn() -> None:
    assert set(CATEGORIES) - set(SEEN) == {"capsule", "circuit_board"}
    assert set(WORDS) == {defect for name in SEEN for defect in CATEGORIES[name].defects}
    assert {*WORDS.values(), *(word for word, _ in KINDS)} <= set(DEFECT_NAMES)
    assert set(SHAPES) <= set(OBJECTS)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_outline_encloses_one_thing_of_fair_size(shape: str) -> None:
    axis = torch.linspace(-1.5, 1.5, 121)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    for seed in range(5):
        distance = outline(np.random.default_rng(seed), shape)(u, v)
        inside = distance < 0
        assert 0.1 < inside.float().mean() * 9 < 4  # of the 2 x 2 that the camera sees
        assert not inside[torch.hypot(u, v) > 1.3].any()
        slope = torch.stack(torch.gradient(distance, spacing=0.025)).norm(dim=0)[1:-1, 1:-1]
        assert slope[distance[1:-1, 1:-1].abs() < 0.1].median() == pytest.approx(1, abs=0.45)


def test_a_rounded_box_measures_distance() -> None:
    box = rounded_box(0.5, 0.3, 0.1, u=0.2)
    points = torch.tensor([[0.2, 0.0], [0.9, 0.0], [0.2, -0.7], [0.7, 0.3]])
    expected = torch.tensor([-0.3, 0.2, 0.4, 0.1 * (2**0.5 - 1)])
    torch.testing.assert_close(box(*points.T), expected)


def test_what_can_be_missing_is_in_its_place_and_nowhere_else() -> None:
    found = 0
    for ware in wares(40):
        changed = (ware.full - ware.bare).abs().amax(1)[0] > 0.01
        size = changed.shape[-1]
        centre = (torch.arange(size) + 0.5) / size * 3 - 1.5
        v, u = torch.meshgrid(centre, centre, indexing="ij")
        allowed = taken = torch.zeros_like(changed)
        for (x, y, a, b), _, _ in ware.places:
            box = ((u - x).abs() < a + 0.02) & ((v - y).abs() < b + 0.02)
            assert (ware.distance(u, v)[box] < 0.03).all()  # on the thing
            assert changed[box].any()
            own = ((u - x).abs() < a) & ((v - y).abs() < b)
            assert not (taken & own).any()  # and on no other part
            allowed, taken = allowed | box, taken | own
            found += 1
        assert not (changed & ~allowed).any()
    assert found > 60


def test_only_a_comparison_tells_of_a_part_without_a_seat() -> None:
    seen = set()
    for ware in wares(20):
        for seed in range(20):
            damage = random_damage(np.random.default_rng(seed), ware)
            if damage.compared:
                assert not all(place.seated for place in ware.places)
            seen.add((damage.word, damage.compared))
    assert {("wear", True), ("missing part", False), ("missing part", True), ("misplaced piece", False)} <= seen


def test_a_bend_that_bends_nothing_changes_nothing() -> None:
    """The straight piece and the bent one are the same piece, drawn from the same stream."""
    ware = wares(1)[0]
    stage = _Stage(lambda draws, scene: surface(ware, draws, scene), 64, 4.0, 0.03, 0.03)
    still = Defect(bend=lambda draws, scene, strength: (scene, torch.zeros_like(scene.u, dtype=torch.bool)))
    pieces, changed = stage.pieces([(1, 2), (1, 3)], still)
    assert pieces.shape == (2, 64, 64, 3)
    assert not changed.any()
    moved, _ = stage.pieces([(1, 2)])
    assert not np.array_equal(moved[0], pieces[1])  # two pieces of one product are not the same


def test_a_product_follows_from_its_key_and_its_damage_shows() -> None:
    kinds = set()
    for seed in range(24):
        one = draw_staged((41, seed), 80)
        again = draw_staged((41, seed), 80)
        assert np.array_equal(one.pieces, again.pieces)
        assert one.pieces.shape == (PIECES, 80, 80, 3)
        assert one.posed
        assert one.mask.any()
        assert one.mask.mean() < 0.25
        kinds.add(one.object == SURFACE)
    assert kinds == {False, True}


def test_reframing_moves_picture_and_mask_alike() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((DRAWN, DRAWN)) < 0.3
    pieces = np.stack(
        [np.zeros((DRAWN, DRAWN, 3), np.uint8)] * (PIECES - 1) + [np.repeat(mask[..., None], 3, -1) * 200]
    )
    for _ in range(16):
        views, label = _reframe(rng, pieces.astype(np.uint8), mask, 5)
        assert views.shape == (PIECES, SIZE, SIZE, 3)
        assert np.array_equal(views[-1, ..., 0] == 200, label)
        assert not views[:-1].any()
    assert round(MARGIN * 0.4) <= MARGIN // 2  # the farthest cut stays on the picture


def test_staged_products_are_not_photographed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts.demo_backbone.pictures import batches

    pool = draw_pool(tmp_path, 6, 5)
    assert pool["posed"].tolist() == [False, True] * 3
    monkeypatch.setattr(batches, "photograph", lambda images, _: torch.zeros_like(images))
    batch = make_batch(pool, np.random.default_rng(0), 6)
    lit = batch.images.flatten(1).amax(1).unflatten(0, (6, PIECES)) > 0
    assert lit.all(1).tolist() == pool["posed"].tolist()
    assert (batch.patches[1::2] == 1).any(1).all()
    assert batch.patches.shape == (6, (SIZE // PATCH) ** 2)
