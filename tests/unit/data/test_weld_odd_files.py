"""Weld runs that are not there, are listed twice, or hold files that are none: one line that names them."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from anomaly_lib.errors import UserError
from anomaly_lib.systems.weld.data.demo import write_weld_demo
from anomaly_lib.systems.weld.data.manifest import WeldRun, read_manifest
from anomaly_lib.systems.weld.data.media import read_video
from anomaly_lib.systems.weld.data.runs import load_raw
from anomaly_lib.systems.weld.data.signal import read_audio, read_sensor_csv
from anomaly_lib.systems.weld.features import readable_runs
from anomaly_lib.systems.weld.options import WeldSettings
from anomaly_lib.systems.weld.runs_of import normal_runs_below, runs_of
from scripts.weld.check_labels import main as check_labels

HEADER = "CATEGORY,SUBDIRS,SPLIT\n"


def put_runs(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "s.csv").write_text("a,b\n1,2\n3,4\n")


def manifest(root: Path, rows: str, *, header: str = HEADER, encoding: str = "utf-8") -> Path:
    (root / "manifest.csv").write_bytes((header + rows).encode(encoding))
    return root


GOOD = "good,a/1,TRAIN\ngood,a/2,TEST\ngood,b/3,TEST\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_manifest_says_its_encoding(tmp_path: Path, encoding: str) -> None:
    put_runs(tmp_path, "a/1", "a/2", "b/3", "c/né")
    runs = read_manifest(manifest(tmp_path, GOOD + "overlap,c/né,VAL\n", encoding=encoding))
    assert [run.run_id for run in runs] == ["1", "2", "3", "né"]
    manifest(tmp_path, GOOD + "overlap,c/né,VAL\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"manifest\.csv.*not text in UTF-8 .*save it as UTF-8"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (GOOD + "good,a/1,TEST\n", "run 1 is listed in TRAIN and TEST; keep one of the two"),
        (GOOD + "good,a/1,TRAIN\n", "run 1 is listed twice"),
        (GOOD + "good,b/1,TRAIN\n", "run 1 is listed for .*a/1 and .*b/1; every run needs a name of its own"),
        (GOOD + "good,a/4,TEST,more\n", "line 5: 4 cells, the header has 3; quote commas"),
        (GOOD + "good,a/4\n", r"1 of 4 runs have no SPLIT \(4\); give all or none"),
        (GOOD + "good,..,TEST\n", "run .. is listed|no recording|not there"),
        (GOOD + "good,.,TEST\n", ":5: neither SUBDIRS nor run_id names a folder"),
        ("", "none of its 0 run folders exists"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(tmp_path: Path, rows: str, said: str) -> None:
    put_runs(tmp_path / "data", "a/1", "a/2", "b/3", "a/4", "b/1")
    with pytest.raises(UserError, match=said) as refused:
        read_manifest(manifest(tmp_path / "data", rows))
    assert "\n" not in str(refused.value)


def test_runs_that_are_gone_or_empty_are_listed_by_name_and_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_runs(tmp_path, "a/1", "b/3")
    (tmp_path / "a/2").mkdir()
    (tmp_path / "a/2/notes.txt").write_text("nothing recorded")
    manifest(tmp_path, GOOD + "good,c/5,TEST\n")
    with pytest.raises(
        UserError, match=r"2 of 4 runs are not there .*a/2: holds no video.*c/5: no such.*on_error=skip"
    ):
        read_manifest(tmp_path)
    assert check_labels([str(tmp_path)]) == 2
    assert "2 of 4 runs are not there" in capsys.readouterr().err
    runs = read_manifest(tmp_path, on_error="skip")
    kept, skipped = readable_runs(runs, lambda run: load_raw(run, WeldSettings()))
    assert [run.run_id for run in kept] == ["1", "3"]
    assert [Path(one["path"]).name for one in skipped] == ["2", "5"]


@pytest.mark.parametrize("wrong", ["", "two\nlines", b"", None, 3, [], [""], [None], {"a": 1}])
def test_what_is_no_run(wrong: object) -> None:
    with pytest.raises(UserError) as refused:
        runs_of(wrong)
    assert "\n" not in str(refused.value)


def test_a_folder_without_recordings_is_no_run_and_is_not_searched(tmp_path: Path) -> None:
    put_runs(tmp_path, "a/1")
    with pytest.raises(UserError, match="holds no video, sound, sensor table or photo"):
        runs_of(tmp_path)  # its files would have been hashed one by one, were it "/"
    assert runs_of(tmp_path / "a" / "1")[0].run_id == "1"
    assert [run.run_id for run in normal_runs_below(tmp_path)] == ["1"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize(
    ("name", "read"),
    [("x.csv", read_sensor_csv), ("x.flac", read_audio), ("x.avi", lambda path: read_video(path, 2))],
)
def test_pipes_do_not_hang(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: a named pipe"):
        read(tmp_path / name)


def test_a_video_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    root = write_weld_demo(tmp_path, train=1, good=1, per_defect=0)
    path = next(root.rglob("*.avi"))
    assert read_video(path, 4).shape[0] == 4
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"\.avi: (cut short, \d+ of \d+ frames|no frame of this video)"):
        read_video(path, 4)


def test_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    Image.new("L", (8, 9)).save(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"1\.png: its size differs from that of 0\.png"):
        read_video(tmp_path, 2)


@pytest.mark.parametrize(("rate", "good"), [(16_000, True), (44_101, True), (1, False), (2_000_000_000, False)])
def test_rates_of_microphones(tmp_path: Path, rate: int, good: bool) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(64, np.float32), rate)
    if good:
        assert len(read_audio(tmp_path / "x.wav")) == -(-64 * 16_000 // rate)
    else:
        with pytest.raises(UserError, match=rf"x\.wav: a rate of {rate} samples a second"):
            read_audio(tmp_path / "x.wav")


def test_sensor_tables_say_their_encoding(tmp_path: Path) -> None:
    text = "Dé,a,b\nx,1,2\ny,3,4\n"
    for encoding in ("utf-8", "utf-16", "latin-1"):
        (tmp_path / "s.csv").write_bytes(text.encode(encoding))
        assert read_sensor_csv(tmp_path / "s.csv").tolist() == [[1, 2], [3, 4]], encoding


def test_a_run_without_a_folder_is_named() -> None:
    run = WeldRun("1", "good", "train", Path("nowhere"))
    with pytest.raises(UserError, match="nowhere: no such run folder"):
        load_raw(run, WeldSettings())
