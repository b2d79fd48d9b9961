"""The fingerprint of data: equal for moved data, another for every byte, name, label or split that differs."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from anomaly_lib.data.base import Item
from anomaly_lib.data.demo.items import demo_items
from anomaly_lib.data.fingerprint import DataFingerprint, files_below, fingerprint_of_items
from anomaly_lib.engine import run as engine_run
from anomaly_lib.engine.run import Run
from anomaly_lib.interrupt import stop_signals
from tests.support.tiny_recipe import Args


def written(folder: Path) -> Path:
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "0.png").write_bytes(b"normal")
    (folder / "a" / "1.png").write_bytes(b"damaged")
    return folder


def of(folder: Path, *facts: object) -> DataFingerprint:
    return DataFingerprint.of(facts, files_below(folder), folder)


def test_moved_data_are_the_same(tmp_path: Path) -> None:
    here = of(written(tmp_path / "here"))
    noted = here.plain()
    shutil.move(tmp_path / "here", tmp_path / "there")
    there = of(tmp_path / "there")
    assert there.equals(noted)
    assert (noted["files"], noted["bytes"]) == (2, 13)


@pytest.mark.parametrize("change", ["byte", "name", "more", "less", "fact", "swapped"])
def test_every_change_shows(change: str, tmp_path: Path) -> None:
    noted = of(written(tmp_path), "train").plain()
    first, second = tmp_path / "a" / "0.png", tmp_path / "a" / "1.png"
    if change == "byte":
        first.write_bytes(b"mormal")
    elif change == "name":
        first.rename(tmp_path / "a" / "2.png")
    elif change == "more":
        shutil.copy(first, tmp_path / "a" / "2.png")
    elif change == "less":
        first.unlink()
    elif change == "swapped":
        first.rename(tmp_path / "x"), second.rename(first), (tmp_path / "x").rename(second)
    assert not of(tmp_path, "test" if change == "fact" else "train").equals(noted)


def test_bytes_are_read_only_where_something_may_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = of(written(tmp_path)).plain()
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("read"))
    assert of(tmp_path).equals(noted)


def test_touched_files_are_the_same_data(tmp_path: Path) -> None:
    noted = of(written(tmp_path)).plain()
    os.utime(tmp_path / "a" / "0.png", (1, 1))
    again = of(tmp_path)
    assert again.seen != noted["seen"]
    assert again.equals(noted)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    assert DataFingerprint.of([], [tmp_path / "x.png"]).content == DataFingerprint.of([], [tmp_path / "x.png"]).content


def test_labels_masks_and_splits_of_images_count(tmp_path: Path) -> None:
    path = written(tmp_path) / "a" / "0.png"
    kinds = [
        Item(path, 0, "nut", "train"), Item(path, 1, "nut", "train"), Item(path, 0, "nut", "test"),
        Item(path, 0, "bolt", "train"), Item(path, 0, "nut", "train", mask_path=tmp_path / "a" / "1.png"),
    ]  # fmt: skip
    assert len({fingerprint_of_items([one], tmp_path).content for one in kinds}) == len(kinds)


def test_drawn_images_are_known_by_their_names() -> None:
    items = demo_items(categories=["woven"], train=2, test_good=1, per_defect=1)
    found = fingerprint_of_items(items, None)
    assert found.files == ()
    assert found.content == fingerprint_of_items(items, None).content != fingerprint_of_items(items[1:], None).content


def test_reading_many_bytes_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, args = of(written(tmp_path / "data")), Args(output_dir=str(tmp_path / "run"))
    said = []
    for limit in (13, 12, 12):  # the data have 13 bytes
        monkeypatch.setattr(engine_run, "NOTICEABLE", limit)
        with Run.open("tiny", args, name="x", data=of(tmp_path / "data")):
            said.append("once to know the data again (fingerprint)" in capsys.readouterr().out)
        if limit == 13:
            shutil.rmtree(tmp_path / "run")
    assert said == [False, True, False]  # the third finds files that look as they did
    assert data.bytes == 13


def test_a_signal_ends_the_reading_of_a_large_file(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(1 << 40)  # takes no room, and many minutes to read
    stop = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    began = time.thread_time()
    with pytest.raises(KeyboardInterrupt):
        content_until(stop, of(tmp_path))
    assert time.thread_time() - began < 5


def content_until(stop: threading.Timer, data: DataFingerprint) -> str:
    with stop_signals():
        stop.start()
        return data.content
