"""The results table: keyed, merged, and whole under many writers."""

import multiprocessing
from pathlib import Path

import pytest

from anomaly_lib.engine.results import ResultsTable
from anomaly_lib.errors import UserError


def test_rows_are_replaced_by_key_and_columns_grow(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "deep" / "results.csv", key=("class", "k"))
    assert table.rows() == []
    table.put({"class": "bottle", "k": 1, "auroc": 0.5}, {"class": "cable", "k": 1, "auroc": None})
    table.put({"class": "bottle", "k": 1, "auroc": 0.875, "note": 'a,b\n"c"'})
    table.put({"class": "bottle", "k": 2, "auroc": 0.1})
    assert table.rows() == [
        {"class": "bottle", "k": "1", "auroc": "0.875", "note": 'a,b\n"c"'},
        {"class": "cable", "k": "1"},
        {"class": "bottle", "k": "2", "auroc": "0.1"},
    ]
    assert table.find(**{"class": "bottle", "k": 2}) == {"class": "bottle", "k": "2", "auroc": "0.1"}
    assert table.find(k=9) is None
    assert table.path.read_text().splitlines()[0] == "class,k,auroc,note"


def test_wrong_rows_and_files_are_refused(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "r.csv", key=("class", "k"))
    with pytest.raises(UserError, match="without k cannot be kept"):
        table.put({"class": "bottle", "auroc": 1})
    assert not table.path.exists()
    table.path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="another kind of table"):
        table.put({"class": "bottle", "k": 1})
    assert table.path.read_text() == "a,b\n1,2\n"
    with pytest.raises(UserError, match="key column"):
        ResultsTable(tmp_path / "x.csv", key=())


def write_many(path: Path, worker: int) -> None:
    table = ResultsTable(path, key=("worker", "i"))
    for i in range(25):
        table.put({"worker": worker, "i": i, f"extra{worker}": i * i}, {"worker": "shared", "i": i, "by": "someone"})


def test_parallel_writers_lose_and_double_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_many, args=(path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    rows = ResultsTable(path, key=("worker", "i")).rows()
    assert len(rows) == 5 * 25
    assert {(row["worker"], row["i"]) for row in rows} == {
        (w, str(i)) for w in ("0", "1", "2", "3", "shared") for i in range(25)
    }
    assert all(int(row[f"extra{row['worker']}"]) == int(row["i"]) ** 2 for row in rows if row["worker"] != "shared")
