"""The rows of a study on disk, written one by one as they are done, so that an interrupted study goes on."""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from anomaly_lib.files import write_text

Row = dict[str, Any]


class StudyRows:
    """`folder/rows.json` and, at the end, `folder/table.md`; `column` names what is varied."""

    def __init__(self, folder: Path, column: str, *, fresh: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.column, self._path = folder, column, folder / "rows.json"
        self.rows: list[Row] = json.loads(self._path.read_text()) if self._path.is_file() and not fresh else []
        self._done = {(row[column], row["seed"]) for row in self.rows}

    def has(self, name: str, seed: int) -> bool:
        return (name, seed) in self._done

    def add(self, row: Row) -> None:
        """Keep a finished row; it survives whatever comes next."""
        self.rows.append(row)
        self._done.add((row[self.column], row["seed"]))
        write_text(self._path, json.dumps(self.rows, indent=1) + "\n")

    def finish(
        self,
        names: Collection[str],
        seeds: Collection[int],
        table: Callable[[Sequence[Row]], list[str]],
        say: Callable[[str], object],
    ) -> list[Row]:
        """Write and say the table of the rows asked for, and return them."""
        rows = [row for row in self.rows if row[self.column] in names and row["seed"] in seeds]
        text = "\n".join(table(rows))
        write_text(self.folder / "table.md", text + "\n")
        say(text)
        return rows
