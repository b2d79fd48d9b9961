"""PromptAD and SOWA on large images: tiles are seen, whole images are learnt, left out, decided and scored."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_lib import load
from anomaly_lib.errors import OptionError
from anomaly_lib.ops.tiles import Tiles
from anomaly_lib.options import TileArgs
from anomaly_lib.systems.registry import SYSTEMS
from tests.unit.systems.test_detector_tiles import assert_same, picture

TILED: dict[str, Any] = {"image_size": [96, 96], "tile": 64, "overlap": 16}
KINDS = {"promptad cls": {"task": "cls"}, "promptad seg": {"task": "seg"}, "sowa": {}, "sowa zero-shot": {"shot": 0}}


def write(folder: Path, name: str, size: tuple[int, int] = (96, 96)) -> None:
    """A class of woven boards with masks of what is white on them."""
    for split, label, count in (("train", "good", 4), ("test", "good", 3), ("test", "bad", 3)):
        place = folder / name / split / label
        place.mkdir(parents=True)
        for index in range(count):
            pixels = picture(index + 10 * (split == "test") + 20 * (label == "bad"))[: size[0], : size[1]]
            if label == "bad":
                pixels[40:56, 40:56] = 255
                mask = np.zeros(size, dtype=np.uint8)
                mask[40:56, 40:56] = 255
                truth = folder / name / "ground_truth" / label
                truth.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(truth / f"{index}_mask.png")
            Image.fromarray(pixels).save(place / f"{index}.png")


def trained(kind: str, folder: Path, size: tuple[int, int] = (96, 96), **options: Any) -> Any:
    """A detector of tiny boards."""
    system = kind.split()[0]
    names = ["one", "two"] if system == "sowa" else ["one"]
    for name in names:
        if not (folder / "data" / name).exists():
            write(folder / "data", name, size)
    given: dict[str, Any] = {"dataset": "mvtec", "data_path": str(folder / "data"), "cache": "ram", "epochs": 1}
    given |= {"fast_dev_run": False, "train_classes": ["one"], "test_classes": ["two"]} if system == "sowa" else {}
    given |= {"shot": 3, "backbone": "demo-clip", "weights": None} | KINDS[kind] | options
    out = folder / f"run{len(list(folder.glob('run*')))}"
    return load(SYSTEMS[system].train(SYSTEMS[system].tiny(output_dir=str(out), **given)).checkpoint)


def bad_board() -> np.ndarray:
    pixels = picture(77)
    pixels[40:56, 40:56] = 255
    return pixels


@pytest.mark.parametrize("kind", KINDS)
def test_learnt_decided_and_scored_by_the_image(kind: str, tmp_path: Path) -> None:
    """Four tiles cover a board; a defect on their borders is found as one piece, batches change nothing."""
    detector = trained(kind, tmp_path, **TILED)
    scores = detector.score(detector.items())
    assert len(scores.scores) == len(scores.masks) == len(scores.maps) == 6
    assert scores.maps.shape == scores.masks.shape
    if kind == "sowa zero-shot":
        assert detector.decision is None
    else:
        assert len(detector.decision.normal) == 3
    good, bad = picture(66), bad_board()
    found = detector.predict([good, bad])
    alone = detector.predict(bad)
    torch.testing.assert_close(alone.map[0], found.map[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone.score[0], found.score[1], atol=1e-5, rtol=1e-4)
    again = detector.predict([str(path) for path in scores.paths])
    np.testing.assert_allclose(again.score.numpy(), scores.scores, rtol=1e-3, atol=1e-4)  # of fp16 taps
    if kind != "sowa zero-shot":  # of the memory; the untrained text branch finds nothing
        scale = found.map.shape[-1] / 96
        inside = found.map[1, int(42 * scale) : int(54 * scale), int(42 * scale) : int(54 * scale)]
        outside = found.map[1].clone()
        outside[int(16 * scale) : int(80 * scale), int(16 * scale) : int(80 * scale)] = -1
        assert inside.mean() > outside.max()
        assert found.score[1] > found.score[0]


DEFAULT = ("promptad cls", "sowa")
SOME = [kind if kind in DEFAULT else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", SOME)
def test_one_tile_is_no_tile(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learnt, decided, scored and exported: with a tile of the image's size, or a larger one, as without tiles."""
    whole = trained(kind, tmp_path, image_size=[96, 96])
    monkeypatch.setattr(TileArgs, "check", lambda _: None)  # such a tile is refused, for it does nothing
    assert_same(trained(kind, tmp_path, image_size=[96, 96], tile=128, overlap=32), whole)


@pytest.mark.parametrize("kind", SOME)
def test_a_tile_is_scored_as_an_image_of_its_size(kind: str, tmp_path: Path) -> None:
    """What is said of a tiled image is what the same detector of untiled images says of each tile, put together.

    Of PromptAD cls one side is shorter than a tile (seg draws square maps, the windows of SOWA divide square grids).
    """
    side = (48, 96) if kind == "promptad cls" else (96, 96)
    tiled = trained(kind, tmp_path, side, image_size=list(side), tile=64, overlap=16)
    tiles = Tiles.asked(tiled.args, side)
    assert tiles.tile == (min(64, side[0]), 64)
    given: dict[str, Any] = {"tile": 0, "overlap": None, "image_size": list(tiles.tile)}
    given |= {} if kind.startswith("sowa") else {"resolution": 64}
    saved = SYSTEMS.read(next(tmp_path.glob("run*/*.pt")))
    twin = SYSTEMS.detector_of(replace(saved, content={**saved.content, "args": {**saved.args, **given}}))
    images = torch.stack([tiled.transform(board[: side[0]]) for board in (picture(66), bad_board(), picture(67))])
    found, each = tiled.predict_batch(images), twin.predict_batch(tiles.cut(images))
    torch.testing.assert_close(found.score, each.score.unflatten(0, (3, -1)).amax(1), rtol=1e-5, atol=1e-7)
    if each.map.shape[1:] == tiles.tile:
        whole = tiles.joined(each, (found.map.shape[-2], found.map.shape[-1]))
        torch.testing.assert_close(found.map, whole.map, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["promptad cls", "sowa"])
def test_the_aspect_is_kept(kind: str, tmp_path: Path) -> None:
    detector = trained(kind, tmp_path, (96, 64), keep_aspect=True)
    seen = detector.transform(np.full((96, 64, 3), 255, dtype=np.uint8))
    black = detector.transform(np.zeros((96, 64, 3), dtype=np.uint8))
    side = seen.shape[-1]
    assert torch.equal(seen[..., : side // 7], black[..., : side // 7])
    assert (seen[..., side // 2] > black[..., side // 2]).all()


@pytest.mark.parametrize("system", ["promptad", "sowa"])
def test_what_cannot_be_tiled_is_refused(system: str) -> None:
    for more, message in (
        ({"tile": 64}, "give image_size"),
        ({"image_size": 64, "tile": 64}, "fits into one tile"),
        ({"image_size": 96, "tile": 64, "overlap": 40}, "half in common"),
        ({"overlap": 8}, "overlap"),
    ):
        with pytest.raises(OptionError, match=message):
            SYSTEMS[system].tiny(**more)
    own = {"promptad": {"fusion_in_loss": True}, "sowa": {"vision": "residual"}}[system]
    with pytest.raises(OptionError, match="tile=64"):
        SYSTEMS[system].tiny(image_size=96, tile=64, **own)
