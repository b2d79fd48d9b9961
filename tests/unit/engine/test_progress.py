"""The progress line of a run that writes to a file: how far, how fast, how long; a bar on a terminal."""

from collections.abc import Iterator

import pytest
import torch

from anomaly_lib.engine import log
from anomaly_lib.engine.log import progress, progress_to
from anomaly_lib.features import FeatureSpec, FeatureStore, array_key, extract


class Clock:
    """Seconds that pass only when work is done."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(log, "time", clock)
    return clock


def test_a_line_every_twenty_seconds_with_rate_and_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for item in progress(range(100, 200), "maps"):
        seen.append(item)
        clock.now += 0.5
    assert seen == list(range(100, 200))
    assert capsys.readouterr().err.splitlines() == [
        "maps: 40/100, 2 a second, 30 s left",
        "maps: 80/100, 2 a second, 10 s left",
    ]


def test_the_rate_is_that_of_the_whole_run_and_an_unknown_total_has_no_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def items() -> Iterator[int]:
        yield from range(3)

    for item in progress(items(), "search"):
        clock.now += 10 + 30 * item
    assert capsys.readouterr().err.splitlines() == ["search: 2, 0.04 a second", "search: 3, 0.025 a second"]


def test_quick_work_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(progress([1, 2, 3], "sums")) == 6
    assert capsys.readouterr().err == ""


def test_counts_reported_by_others(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    show = progress_to("coreset")
    for run in range(2):  # a second search begins a new bar
        for done in (1, 5, 10):
            show(done, 10)
            clock.now += 15
        del run
    assert capsys.readouterr().err.splitlines() == ["coreset: 5/10, 0.167 a second, 30 s left"] * 2


def test_extraction_counts_images_not_batches(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    spec = FeatureSpec(backbone="tiny", weights="00", outputs=("pooled",), transform="")
    items = [torch.full((2,), float(i)) for i in range(30)]

    def encode(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        clock.now += 2.0 * len(batch)
        return {"pooled": batch}

    store = FeatureStore(spec, cache="ram")
    extract(encode, items, store, load=lambda item: item, key=lambda item: array_key(item.numpy()), batch_size=8,
            track=progress)  # fmt: skip
    assert capsys.readouterr().err == "encode tiny: 16/30, 0.5 a second, 28 s left\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress(iter("abc"), "letters", total=3)) == ["a", "b", "c"]
    said = capsys.readouterr().err
    assert "letters" in said
    assert "0/3" in said
