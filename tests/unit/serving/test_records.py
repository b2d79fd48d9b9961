"""The history survives a kill, marks are files and a table that `calibrate` and `fit` read, a folder has one server."""

import csv
import math
from pathlib import Path

import pytest

from anomaly_lib.data.fingerprint import fingerprint_of_items
from anomaly_lib.data.layouts import read_folders, read_list
from anomaly_lib.errors import UserError
from anomaly_lib.serving.records import History, Marks, Records, finite
from anomaly_lib.serving.uploads import Upload, shown_name
from tests.support.serving import picture

ROW = {"name": "x.png", "sha": "abc", "score": 0.25, "anomalous": True}


def test_a_day_survives_a_restart_without_its_torn_line(tmp_path: Path) -> None:
    history = History(tmp_path, "part", ["score", "anomalous"])
    for number in range(3):
        history.add({**ROW, "sha": f"00{number}"})  # of digits alone, and text all the same
    with history.path.open("a") as stream:
        stream.write("2026-01-01T00:00:00+00:00,half")
    again = History(tmp_path, "part", ["score", "anomalous"])
    assert [row["sha"] for row in again.today()] == ["002", "001", "000"]
    assert again.today()[0]["anomalous"] is True
    assert again.today()[0]["score"] == 0.25
    again.add(ROW)
    with history.path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4
    assert all(cell for row in rows for cell in row.values())


def test_rows_of_other_columns_get_a_file_of_their_own(tmp_path: Path) -> None:
    first = History(tmp_path, "part", ["score", "anomalous"])
    first.add(ROW)
    second = History(tmp_path, "part", ["score"])
    assert second.path != first.path
    assert second.today() == []
    second.add({name: value for name, value in ROW.items() if name != "anomalous"})
    assert len(History(tmp_path, "part", ["score"]).today()) == 1


def test_a_number_that_json_does_not_have_is_left_out(tmp_path: Path) -> None:
    assert finite({"score": 1.0, "threshold": math.inf, "name": "x"}) == {"score": 1.0, "name": "x"}


def mark(marks: Marks, level: int, truth: str, name: str = "x.png") -> str:
    one = Upload(name, picture(level))
    return marks.mark(one.content, one.sha, one.suffix, truth, {"model": "part", "score": -0.5, "name": name})


def test_marks_are_files_and_a_table_and_move_when_marked_again(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    paths = [mark(marks, level, "good") for level in range(3)]
    assert marks.counts() == {"good": 3, "bad": 0}
    moved = mark(marks, 0, "bad", "=cmd()")
    assert moved.startswith("marked/bad/")
    assert not (tmp_path / paths[0]).exists()
    assert (tmp_path / moved).read_bytes() == picture(0)
    with marks.table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["truth"] for row in rows] == ["good", "good", "bad"]
    assert all(cell for row in rows for cell in row.values())
    assert rows[0]["score"] == "-0.5"
    assert rows[2]["name"] == "'=cmd()"  # no formula in a spreadsheet
    assert [(i.path.name, i.label) for i in read_list(marks.table)] == [(Path(r["path"]).name, int(r["truth"] == "bad"))
        for r in sorted(rows, key=lambda row: row["path"])]  # fmt: skip
    assert [i.split for i in read_folders(marks.table)].count("train") == 1
    assert {i.label for i in read_folders(tmp_path / "marked")} == {0, 1}


def test_listed_images_are_the_same_data_wherever_they_lie(tmp_path: Path) -> None:
    tables = [Marks(tmp_path / name).table for name in "ab"]
    for table in tables:
        marks = Marks(table.parent)
        assert [mark(marks, level, "good") for level in range(3)]
    left, right = (fingerprint_of_items(read_folders(table), str(table)) for table in tables)
    assert left.content == right.content


def test_what_was_moved_by_hand_or_left_by_a_kill_is_taken_in(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    kept, moved, gone = (mark(marks, level, "good") for level in range(3))
    (tmp_path / moved).rename(tmp_path / moved.replace("good", "bad"))
    (tmp_path / gone).unlink()
    (tmp_path / "marked" / "good" / ".x.png.a.tmp").write_text("half")
    again = Marks(tmp_path)
    assert again.counts() == {"good": 1, "bad": 1}
    assert {item.path for item in read_list(again.table)} == {tmp_path / kept, tmp_path / moved.replace("good", "bad")}
    assert not list((tmp_path / "marked" / "good").glob(".*"))


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    first = Records(tmp_path)
    with pytest.raises(UserError, match=r"^output_dir=.*another server writes there"):
        Records(tmp_path)
    first.close()
    Records(tmp_path).close()


def test_lists_are_checked_line_by_line(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    for text, said in {
        "path\nx.png": "column 'truth' is missing",
        "path,truth\nx.png,good": r"list\.csv, line 2: .*x\.png does not exist",
        "path,truth\nlist.csv,fine": r"list\.csv, line 2: truth is good or bad, not 'fine'",
    }.items():
        table.write_text(text)
        with pytest.raises(UserError, match=said):
            read_list(table)
    table.write_text("path,truth\nlist.csv,good")
    with pytest.raises(UserError, match="1 normal images"):
        read_folders(table)


@pytest.mark.parametrize(
    ("given", "shown"),
    [("../../etc/passwd", "passwd"), ("C:\\x\\a.png", "a.png"), ("a\nb\x1b.png", "ab.png"), ("", "image"),
     (None, "image"), ("n" * 300, "n" * 100), ("\ud800.png", ".png"), ("ä 图.png", "ä 图.png")],
)  # fmt: skip
def test_names_of_uploads_are_shown_and_nothing_else(given: str | None, shown: str) -> None:
    assert shown_name(given) == shown


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg"), ("TIFF", ".tif"), ("BMP", ".bmp")])
def test_the_suffix_of_a_kept_file_is_that_of_its_bytes(kind: str, suffix: str) -> None:
    assert Upload("x.exe", picture(9, suffix=kind)).suffix == suffix
