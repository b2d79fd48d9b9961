"""Maps of many large images lie in a file, not in memory, and nothing that is computed from them is another number."""

import errno
import os
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anomaly_lib import load
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Evaluated, Scores, summary
from anomaly_lib.detect.scoring import class_table, prediction_rows
from anomaly_lib.errors import UserError
from anomaly_lib.metrics import pixel_curve
from anomaly_lib.ops import predictions
from anomaly_lib.ops.predictions import gathered, joined, stacked
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.types import Prediction
from anomaly_lib.viz.overlays import map_range

SIDE = 96


MAPPED: list[range] = []  # addresses of files that have been mapped


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    real = np.memmap

    def mapped(*args: Any, **options: Any) -> Any:
        made = real(*args, **options)
        MAPPED.append(range(made.ctypes.data, made.ctypes.data + made.nbytes))
        return made

    MAPPED.clear()
    monkeypatch.setattr(np, "memmap", mapped)


def in_a_file(values: Any) -> bool:
    """Is its memory that of a file?"""
    address = values.data_ptr() if isinstance(values, torch.Tensor) else values.ctypes.data
    return any(address in one for one in MAPPED)


@pytest.mark.parametrize("held", [0, 1 << 28])
def test_a_stack_is_what_was_put_on_it(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "HELD", held)
    pieces = [torch.rand(2, 5, 7), torch.rand(1, 5, 7)]
    whole = stacked(iter(pieces), 3)
    assert torch.equal(whole, torch.cat(pieces))
    assert in_a_file(whole) == (held == 0)
    masks = [piece > 0.5 for piece in pieces]
    assert torch.equal(stacked(masks, 3), torch.cat(masks))
    assert stacked([], 3) is None
    found = [Prediction(torch.rand(len(p)), p, {"peak": torch.rand(len(p))}, cell=4.0) for p in pieces]
    one, other = gathered(iter(found), 3), joined(found)
    assert torch.equal(one.score, other.score)
    assert torch.equal(one.map, other.map)
    assert one.cell == other.cell
    assert torch.equal(one.parts["peak"], other.parts["peak"])


def test_a_full_disk_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(predictions, "HELD", 0)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"no room for maps of .* TMPDIR"):
        stacked([torch.rand(1, 512, 512)], 4)


def test_one_batch_of_maps_lives_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "HELD", 0)
    alive, most = set(), []

    def batches(count: int) -> Iterator[Prediction]:
        for number in range(count):
            maps = torch.full((2, 8, 8), float(number))
            alive.add(number)
            weakref.finalize(maps, alive.discard, number)
            yield Prediction(torch.zeros(2), maps)
            del maps
            most.append(len(alive))

    whole = gathered(batches(20), 40)
    assert whole.map[:, 0, 0].tolist() == [float(n // 2) for n in range(40)]
    assert max(most) <= 2


def some_scores(count: int) -> Scores:
    """Of `count` images with one small defect in the first two."""
    maps = stacked((torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(n)) for n in range(count)), count)
    masks = stacked((torch.zeros(1, SIDE, SIDE, dtype=torch.bool) for _ in range(count)), count)
    maps[:2, 8:12, 8:12] += 0.5
    masks[:2, 8:12, 8:12] = True
    labels = np.array([1, 1] + [0] * (count - 2))
    return Scores(
        "detectors", "x", maps.amax((1, 2)).numpy(), labels, [f"{n}.png" for n in range(count)], ["a"] * count,
        maps=maps.numpy(), masks=masks.numpy(),
    )  # fmt: skip


def everything(scores: Scores) -> tuple[Any, ...]:
    """What evaluation and report compute of maps."""
    decision = Decision.promising(scores.scores[2:], 0.1, of="normal images", maxima=scores.scores[2:])
    done = Evaluated(Path("x.pt"), scores, decision, summary(scores, decision), [])
    return done.metrics, class_table([done], bootstrap=3).rows, prediction_rows(done), map_range(scores.maps)


def peak_of(count: int) -> int:
    """Bytes that Python and NumPy hold at most beside what is mapped."""
    scores = some_scores(count)
    assert in_a_file(scores.maps)
    assert in_a_file(scores.masks)
    tracemalloc.start()
    everything(scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_what_is_held_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight times the images: less than two maps more, most of it their counts of pixels for the intervals."""
    monkeypatch.setattr(predictions, "HELD", 0)
    monkeypatch.setattr("anomaly_lib.viz.overlays.RANGED", 1 << 14)
    assert pixel_curve.__kwdefaults__ is not None
    monkeypatch.setitem(pixel_curve.__kwdefaults__, "chunk_pixels", SIDE * SIDE)
    peak_of(8)  # what is imported and cached by a first run
    few, many = peak_of(8), peak_of(64)
    assert many - few < 2 * SIDE * SIDE * 4


def test_the_figures_are_those_of_maps_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = everything(some_scores(12))
    monkeypatch.setattr(predictions, "HELD", 0)
    assert repr(everything(some_scores(12))) == repr(expected)


@pytest.mark.parametrize("system", ["detectors", pytest.param("sowa", marks=pytest.mark.slow)])
def test_a_detector_puts_its_maps_there(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"model": "padim", "shot": 4} if system == "detectors" else {}
    result = SYSTEMS[system].train(SYSTEMS[system].tiny(output_dir=str(tmp_path), **more))
    detector = load(result.checkpoint)
    expected = detector.score(detector.items())
    monkeypatch.setattr(predictions, "HELD", 0)
    scores = detector.score(detector.items())
    assert not in_a_file(expected.maps)
    assert in_a_file(scores.maps)
    assert in_a_file(scores.masks)
    np.testing.assert_array_equal(scores.maps, expected.maps)
    np.testing.assert_array_equal(scores.masks, expected.masks)
    assert summary(scores, detector.decision) == pytest.approx(
        summary(expected, detector.decision), rel=1e-12, nan_ok=True
    )
    region = scores.decided(detector.decision).region
    assert region is not None
    assert in_a_file(region)
    rows = np.arange(len(scores)) > 0
    assert in_a_file(scores.chosen(rows, note="").maps)
