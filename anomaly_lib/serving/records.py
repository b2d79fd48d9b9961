"""What stays of the server's work: a table of each day, and the images that a person has marked."""

import csv
import io
import math
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from anomaly_lib.errors import UserError
from anomaly_lib.files import atomic_file, csv_records, forget_torn_line, lock_folder, remove_leftovers, write_text

TRUTHS = ("good", "bad")
MARKS = ("path", "truth", "model", "score", "name", "time")
SHOWN = 200  # rows of the day that are kept at hand


class Records:
    """A folder that belongs to one server: history/, marked/ and marks.csv."""

    def __init__(self, folder: Path) -> None:
        lock = lock_folder(folder)
        if lock is None:
            raise UserError(f"output_dir={folder}: another server writes there; stop it or give another output_dir=")
        self.folder, self._lock = folder, lock
        self.marks = Marks(folder)

    def history(self, model: str, columns: Sequence[str]) -> "History":
        """The table of one detector; `columns`: what it knows of an image, e.g. score and p_value."""
        return History(self.folder / "history", model, columns)

    def close(self) -> None:
        self._lock.close()


class History:
    """Rows of a detector's predictions, a CSV file a day, written at once."""

    def __init__(self, folder: Path, model: str, columns: Sequence[str]) -> None:
        self.folder, self.model, self.columns = folder, model, ["time", "name", "sha", *columns]
        self._day, self._lock = "", threading.Lock()
        self._rows: deque[dict[str, Any]] = deque(maxlen=SHOWN)
        self._open_day(now()[:10])

    def _open_day(self, day: str) -> None:
        """The day's file with our columns; rows of another decision that day stand in a file of their own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._day, number = day, 1
        while True:
            self.path = self.folder / f"{self.model}-{day}{'' if number == 1 else f'-{number}'}.csv"
            if self.path.is_file():
                forget_torn_line(self.path)
            if not self.path.is_file() or not self.path.stat().st_size:
                self._append(self.columns)
                return
            with self.path.open(encoding="utf-8", newline="") as stream:
                if next(csv.reader(stream)) == self.columns:
                    break
            number += 1
        self._rows.extend(_typed(row) for _, row in csv_records(self.path))

    def _append(self, cells: Sequence[Any]) -> None:
        """One write a row, so that a killed server leaves whole rows or the beginning of one."""
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            stream.write(_line(cells))

    def add(self, row: Mapping[str, Any]) -> None:
        """A prediction: name, sha and what the detector knows."""
        row = {"time": now(), **row}
        with self._lock:
            if row["time"][:10] != self._day:
                self._rows.clear()
                self._open_day(row["time"][:10])
            self._append([_cell(name, row[name]) for name in self.columns])
            self._rows.append(row)

    def holds(self, sha: str) -> bool:
        """Is an image among the last rows?"""
        with self._lock:
            return any(row["sha"] == sha for row in self._rows)

    def today(self) -> list[dict[str, Any]]:
        """The last rows of the day, newest first; a number that is no number of JSON is left out."""
        with self._lock:
            rows = list(self._rows) if now()[:10] == self._day else []
        return [finite(row) for row in reversed(rows)]


class Marks:
    """marked/good, marked/bad and marks.csv, which lists them: what `calibrate --normal` and `fit` read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.table, self._lock = folder, folder / "marks.csv", threading.Lock()
        self._rows: dict[str, dict[str, str]] = {}  # beginning of the hash -> row
        for truth in TRUTHS:
            (folder / "marked" / truth).mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder / "marked" / truth)
        remove_leftovers(folder)
        if self.table.is_file():
            for _, row in csv_records(self.table, needs=MARKS):
                self._take_in(row)
            self._write()

    def _take_in(self, row: dict[str, str]) -> None:
        """A row of an earlier server. The folders are right: an image may have been moved or deleted by hand."""
        name = Path(row["path"]).name
        for truth in (row["truth"], *TRUTHS):
            if truth in TRUTHS and (self.folder / "marked" / truth / name).is_file():
                self._rows[Path(name).stem] = {**row, "path": f"marked/{truth}/{name}", "truth": truth}
                return

    def _write(self) -> None:
        rows = [MARKS, *([_cell(name, row[name]) for name in MARKS] for row in self._rows.values())]
        write_text(self.table, "".join(map(_line, rows)))

    def mark(self, content: bytes, sha: str, suffix: str, truth: str, row: Mapping[str, Any]) -> str:
        """Keep an image as good or bad; one that was marked before is moved. Returns its path beside marks.csv."""
        path = f"marked/{truth}/{sha}{suffix}"
        with self._lock:
            before = self._rows.pop(sha, None)
            if before is not None and before["path"] != path:
                os.replace(self.folder / before["path"], self.folder / path)
            elif before is None:
                with atomic_file(self.folder / path) as stream:
                    stream.write(content)
            self._rows[sha] = {"path": path, "truth": truth, "time": now(), **{k: str(v) for k, v in row.items()}}
            self._write()
        return path

    def truth_of(self, sha: str) -> str | None:
        row = self._rows.get(sha)
        return None if row is None else row["truth"]

    def counts(self) -> dict[str, int]:
        """How many are marked as what."""
        found = [row["truth"] for row in list(self._rows.values())]
        return {truth: found.count(truth) for truth in TRUTHS}


def now() -> str:
    """The local time with its distance to UTC."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _line(cells: Sequence[Any]) -> str:
    """A row of a CSV file."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _cell(column: str, value: Any) -> Any:
    """No name begins as a formula does: tables are opened in spreadsheets, and names come from afar."""
    if column == "name" and value[:1] in tuple("=+-@"):
        return f"'{value}"
    return int(value) if isinstance(value, bool) else value


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without what JSON has no number for, e.g. a threshold that no score reaches."""
    return {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}


def _typed(row: Mapping[str, str]) -> dict[str, Any]:
    """A row of a table as it was before it was written."""
    texts = {"time", "name", "sha"}
    typed: dict[str, Any] = {name: cell if name in texts else float(cell) for name, cell in row.items()}
    if "anomalous" in typed:
        typed["anomalous"] = bool(typed["anomalous"])
    return typed
