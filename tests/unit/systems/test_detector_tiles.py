"""Detectors that see an image in tiles: learnt, left out, decided and scored by the image."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_lib import load
from anomaly_lib.errors import OptionError
from anomaly_lib.evaluation.graph import ExportedDetector
from anomaly_lib.models.detectors.registry import entries
from anomaly_lib.options import TileArgs
from anomaly_lib.systems.detectors.build import FROZEN, build
from anomaly_lib.systems.detectors.data import image_transform, tiles_of
from anomaly_lib.systems.detectors.inputs import Images, Inputs, score_all
from anomaly_lib.systems.detectors.normal import left_out_decision
from anomaly_lib.systems.detectors.options import Args, tiny
from anomaly_lib.systems.detectors.train import train

TILED = [entry.name for entry in entries() if not (entry.placed or entry.transductive)]
QUICK = ("patchcore", "draem")


def picture(seed: int, size: int = 96) -> np.ndarray:
    """A woven board [size, size, 3] uint8, no two alike."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    weave = 120 + 40 * np.sin(rows * 0.8) * np.cos(columns * 0.8) + rng.normal(0, 6, (size, size))
    return np.repeat(weave[:, :, None], 3, axis=2).clip(0, 255).astype(np.uint8)


def write(folder: Any, count: int = 6) -> None:
    for split, label in (("train", "good"), ("test", "good"), ("test", "bad")):
        place = folder / split / label
        place.mkdir(parents=True)
        for index in range(count if split == "train" else 2):
            pixels = picture(index + 10 * (split == "test") + 20 * (label == "bad"))
            if label == "bad":
                pixels[40:56, 40:56] = 255
            Image.fromarray(pixels).save(place / f"{index}.png")


def options(folder: Any, model: str, **more: Any) -> Args:
    given = {"dataset": "folder", "data_path": str(folder / "parts"), "image_size": [96, 96], "cache": "off"}
    given |= {"model": model, "output_dir": str(folder / "run"), "tile": 64, "overlap": 32, "batch_size": 4}
    if not next(entry for entry in entries() if entry.name == model).frozen:
        del given["cache"]
    return tiny(**(given | more))


SOME = [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in TILED]


@pytest.mark.parametrize("model", SOME)
def test_learnt_decided_and_scored_by_the_image(model: str, tmp_path: Any) -> None:
    """Four tiles of 64 cover 96 x 96. The decision counts images, the map covers one, batches change nothing."""
    write(tmp_path / "parts")
    frozen = next(entry for entry in entries() if entry.name == model).frozen
    result = train(options(tmp_path, model, **({"cache": "ram"} if frozen else {})))
    detector = load(result.checkpoint)
    assert detector.decision is not None
    assert len(detector.decision.normal) == (6 if entry_leaves_out(model) else 3)
    good, bad = picture(11), picture(31)
    bad[40:56, 40:56] = 255
    found = detector.predict([good, bad])
    assert found.map.shape == (2, 96, 96)
    alone = detector.predict(bad)
    torch.testing.assert_close(alone.map[0], found.map[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone.score[0], found.score[1], atol=1e-5, rtol=1e-4)
    scores = detector.score(detector.items())
    assert scores.maps.shape == (4, 96, 96)


def assert_same(one: Any, other: Any) -> None:
    """Two detectors that decide alike and say the same of the same boards, as they are and as one exported graph."""
    assert (one.decision is None) == (other.decision is None)
    if one.decision is not None:
        assert one.decision.threshold == pytest.approx(other.decision.threshold, rel=1e-5)
        np.testing.assert_allclose(one.decision.normal, other.decision.normal, rtol=1e-5)
        assert one.decision.map_threshold == pytest.approx(other.decision.map_threshold, rel=1e-5)
    boards = [picture(seed) for seed in (66, 77, 78)]
    boards[1][40:56, 40:56] = 255
    pixels = torch.from_numpy(np.stack(boards))
    found, wanted = one.predict(boards), other.predict(boards)
    np.testing.assert_allclose(found.score, wanted.score, rtol=1e-5)
    np.testing.assert_allclose(found.map, wanted.map, rtol=1e-5, atol=1e-6 * float(wanted.map.abs().max()))
    for mine, theirs in zip(ExportedDetector(one)(pixels), ExportedDetector(other)(pixels), strict=True):
        atol = 1e-6 * float(theirs.double().abs().max())
        np.testing.assert_allclose(mine.detach().double(), theirs.detach().double(), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("model", SOME)
def test_one_tile_is_no_tile(model: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learnt, decided, scored and exported: with a tile of the image's size, or a larger one, as without tiles."""
    write(tmp_path / "parts")
    plain = {"tile": 0, "overlap": None, "output_dir": str(tmp_path / "plain")}
    whole = load(train(options(tmp_path, model, **plain)).checkpoint)
    monkeypatch.setattr(TileArgs, "check", lambda _: None)  # such a tile is refused, for it does nothing
    assert_same(load(train(options(tmp_path, model, tile=128)).checkpoint), whole)


def entry_leaves_out(model: str) -> bool:
    return next(entry for entry in entries() if entry.name == model).leaves_out


def inputs_of(module: torch.nn.Module, args: Args, images: torch.Tensor, *, learnt: bool) -> Inputs:
    tiles = tiles_of(args)
    seen = tiles.cut(images)
    return Inputs(
        module,
        Images(lambda index: seen[list(index)], [str(n) for n in range(len(seen))], "", tiles),
        args,
        torch.device("cpu"),
        learnt=learnt,
    )


@pytest.mark.parametrize("model", ["patchcore", "fewshot", "anomalydino", "subspacead", "visionad", "winclip"])
def test_an_image_is_left_out_with_all_its_tiles(model: str, tmp_path: Any) -> None:
    """Leaving one of four images out of a fit equals a fit to the other three, though tiles of one overlap."""
    more = {"patchcore": {"coreset_size": None, "coreset_ratio": 1.0}}.get(model, {})
    args = options(tmp_path, model, **more)
    images = torch.stack([torch.from_numpy(picture(seed)).permute(2, 0, 1).float() / 255 for seed in range(4)])

    frozen = {n: t for n, t in build(args, torch.device("cpu")).state_dict().items() if n.startswith(FROZEN)}

    def fitted(chosen: torch.Tensor) -> torch.nn.Module:
        module = build(args, torch.device("cpu"))
        module.load_state_dict(frozen, strict=False)
        learnt = inputs_of(module, args, chosen, learnt=True)
        return module.fit_features(learnt.whole(range(learnt.count)))

    whole = fitted(images)
    decision = left_out_decision(whole, inputs_of(whole, args, images, learnt=False), [])
    expected = []
    for n in range(4):
        twin = fitted(torch.cat([images[:n], images[n + 1 :]]))
        expected.append(float(score_all(inputs_of(twin, args, images[n : n + 1], learnt=False), "").score[0]))
    np.testing.assert_allclose(decision.normal, sorted(expected), rtol=1e-4)


def test_a_tile_border_through_a_defect_cannot_be_seen(tmp_path: Any) -> None:
    """Tiles end at columns 32, 48 and 64; the square lies across them, and its map has no steps there."""
    write(tmp_path / "parts")
    detector = load(train(options(tmp_path, "patchcore", overlap=16)).checkpoint)
    bad = picture(31)
    bad[40:56, 40:56] = 255
    found = detector.predict(bad)
    inside, outside = found.map[0, 40:56, 40:56], found.map[0].clone()
    outside[24:72, 24:72] = 0
    assert inside.mean() > outside.max()
    steps = (found.map[0, :, 1:] - found.map[0, :, :-1]).abs().amax(0)
    smooth = torch.cat([steps[:24], steps[70:]]).max()
    assert steps.max() < 0.1 * float(found.map.max())
    assert steps[30:34].max() < 2 * smooth + 0.05 * float(found.map.max())


def test_a_tile_of_the_whole_image_changes_nothing_and_is_refused(tmp_path: Any) -> None:
    for more, message in (
        ({"tile": 96}, "fits into one tile"),
        ({"tile": 64, "overlap": 40}, "half in common"),
        ({"tile": 0, "overlap": 8}, "overlap"),
    ):
        with pytest.raises(OptionError, match=message):
            options(tmp_path, "patchcore", **more)
    for model in ("padim", "rad", "musc"):
        with pytest.raises(OptionError, match=f"tile=64: {model} .* cannot learn from tiles"):
            options(tmp_path, model)


def test_the_aspect_is_kept(tmp_path: Any) -> None:
    detector_args = tiny(model="padim", keep_aspect=True, image_size=[64, 64])
    seen = image_transform(detector_args)(np.full((20, 40, 3), 255, dtype=np.uint8))
    assert seen[:, 16:48].min() == 1
    assert seen[:, :16].max() == seen[:, 48:].max() == 0
