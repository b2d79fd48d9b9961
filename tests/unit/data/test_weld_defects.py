"""Synthetic damage changes what its mask says and nothing else; disturbances keep shape and do what they are called."""

import numpy as np
import pytest
import torch

from anomaly_lib.errors import UserError
from anomaly_lib.systems.weld.data.defects import (
    PHOTO_DEFECTS,
    SERIES_DISTURBANCES,
    damage_photo,
    disturb_series,
    disturbances,
    disturbed,
)
from anomaly_lib.systems.weld.data.demo import weld_demo_runs, write_weld_demo
from anomaly_lib.systems.weld.data.drawn import IMITATED, drawn_defects
from anomaly_lib.systems.weld.data.manifest import read_manifest
from anomaly_lib.systems.weld.data.media import photo_bytes
from anomaly_lib.systems.weld.data.runs import load_raw
from anomaly_lib.systems.weld.features import run_key
from anomaly_lib.systems.weld.supcon.options import tiny
from scripts.demo_backbone.pictures.captions import TEMPLATES, grammar_words, noun
from scripts.demo_backbone.pictures.objects import OBJECTS, silhouette
from scripts.demo_backbone.pictures.pictures import MATERIALS, SURFACE, draw
from scripts.demo_backbone.pictures.textures import TEXTURES


def photo():
    return np.random.default_rng(0).integers(90, 140, (96, 96, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", sorted(PHOTO_DEFECTS))
def test_photo_defects_change_the_masked_place_and_repeat(kind):
    before = photo()
    after, mask = damage_photo(np.random.default_rng(3), before, kind, centre=(40.0, 50.0))
    again, _ = damage_photo(np.random.default_rng(3), before, kind, centre=(40.0, 50.0))
    assert np.array_equal(after, again)
    assert 4 < mask.sum() < 0.6 * mask.size
    change = np.abs(after.astype(int) - before.astype(int)).max(-1)
    assert change[mask].mean() > 4 * change[~mask].mean()


def test_unknown_kinds_and_shapes_are_refused():
    with pytest.raises(UserError, match="scratch"):
        damage_photo(np.random.default_rng(0), photo(), "dents")
    with pytest.raises(UserError, match="square"):
        damage_photo(np.random.default_rng(0), photo()[:50], "hole")
    with pytest.raises(UserError, match="warp"):
        disturb_series(np.random.default_rng(0), np.zeros((5, 1), np.float32), "noise")


@pytest.mark.parametrize("kind", sorted(SERIES_DISTURBANCES))
def test_disturbances(kind):
    series = np.cumsum(np.random.default_rng(1).normal(size=(120, 3)), 0).astype(np.float32)
    out = disturb_series(np.random.default_rng(2), series, kind)
    assert out.shape == series.shape
    assert out.dtype == np.float32
    assert not np.array_equal(out, series)
    if kind == "warp":
        assert np.allclose(out[[0, -1]], series[[0, -1]])
        assert out.min() >= series.min() - 1e-5
    if kind == "scale":
        assert np.allclose(np.diff(out / series, axis=0), 0, atol=1e-3)
    if kind == "spikes":
        assert 0 < (out != series).mean() < 0.1
    if kind == "dropout":
        stuck = np.all(np.diff(out, axis=0) == 0, axis=1)
        assert 0 < stuck.sum() < 40


def test_disturbances_repeat_by_seed_and_none_changes_nothing():
    series = np.cumsum(np.random.default_rng(1).normal(size=(60, 3)), 0).astype(np.float32)
    assert disturbed(series, None) is series
    assert np.array_equal(disturbed(series, 5), disturbed(series, 5))
    assert len({disturbed(series, seed).tobytes() for seed in range(6)}) == 6
    before = torch.get_rng_state()
    assert disturbances(3, 0.0) == [None] * 3
    assert torch.equal(torch.get_rng_state(), before)  # without it nothing else changes
    torch.manual_seed(0)
    seeds = disturbances(200, 0.3)
    torch.manual_seed(0)
    assert disturbances(200, 0.3) == seeds
    assert 40 < sum(seed is not None for seed in seeds) < 80


def test_drawn_defects_change_the_photos_alone_and_are_labelled_as_what_they_imitate(tmp_path):
    settings = tiny(image_size=[48])
    (drawn,) = [run for run in weld_demo_runs(train=1, good=1, per_defect=1) if run.split == "train"]
    folder = write_weld_demo(tmp_path, train=1, good=1, per_defect=1)
    (filed,) = [run for run in read_manifest(folder) if run.split == "train"]
    for good in (drawn, filed):
        runs = drawn_defects([good], settings, each=2, seed=3)
        assert [run.class_name for run in runs] == [name for name in IMITATED.values() for _ in range(2)]
        assert len({run.run_id for run in runs} | {good.run_id}) == 9
        assert len({run_key(run) for run in [*runs, good]}) == 9
        raw, before = load_raw(runs[0], settings), load_raw(good, settings)
        assert np.array_equal(raw.sensors, before.sensors)
        assert np.array_equal(raw.audio, before.audio)
        again = load_raw(drawn_defects([good], settings, each=2, seed=3)[0], settings)
        assert all(np.array_equal(a, b) for a, b in zip(raw.photos, again.photos, strict=True))
        for photo, mask, old in zip(raw.photos, raw.masks, before.photos, strict=True):
            change = np.abs(photo.astype(int) - photo_bytes(old, (48, 48)).astype(int)).max(-1)
            assert mask.any()
            assert change[mask].mean() > 4 * change[~mask].mean()
    assert not load_raw(runs[0], settings, ("audio",)).photos


def test_every_texture_and_object_draws_values_in_range():
    rng = np.random.default_rng(0)
    for name, texture in TEXTURES.items():
        values = texture(rng, rng, 48)
        assert values.shape == (48, 48), name
        assert values.min() > -0.1, name
        assert values.max() < 1.6, name
        assert values.std() > 0.005, name
    for name in OBJECTS:
        coverage = silhouette(rng, 48, name)
        assert 0.05 < coverage.mean() < 0.8, name


def test_a_drawing_repeats_and_differs_where_it_is_damaged():
    one, same = (draw((5, 1), 64) for _ in range(2))
    assert np.array_equal(one.pieces, same.pieces)
    clean, damaged = one.pieces[-2:].astype(int)
    change = np.abs(damaged - clean).max(-1)
    assert one.mask.any()
    assert change[one.mask].mean() > 10 * max(change[~one.mask].mean(), 0.1)


def test_nouns_commit_only_to_what_they_say():
    rng = np.random.default_rng(0)
    for _ in range(200):
        text, material, kind = noun(rng, 3, SURFACE if rng.random() < 0.5 else 2)
        assert (material == -1) == (MATERIALS[3] not in text)
        assert (kind == -1) == (OBJECTS[2] not in text)
    words = set(grammar_words())
    assert {"photo", "scratched", "marble", "."} <= words
    assert "zzz" not in words
    assert all("{}" in template for template in TEMPLATES)
