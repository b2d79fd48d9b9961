"""One results table for many processes: a row per key, never lost, never twice."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anomaly_lib.errors import UserError
from anomaly_lib.files import alone_at, write_text


class ResultsTable:
    """A CSV file keyed by some of its columns. Writing a row whose key is there replaces it; new columns are added.

    Every write reads, merges and renames under a file lock, so parallel runs do not overwrite each other and a killed
    one leaves the table as it was. A run that has not ended has no row.
    """

    def __init__(self, path: Path | str, *, key: Sequence[str]) -> None:
        if not key:
            raise UserError("a results table needs at least one key column")
        self.path = Path(path)
        self.key = tuple(key)

    def put(self, *rows: Mapping[str, Any], merge: bool = False) -> None:
        """Add or replace rows; each must have a value in every key column.

        `merge`: cells that the new row does not have stay as they were.
        """
        wanted = [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
        for row in wanted:
            if absent := [name for name in self.key if not row.get(name)]:
                raise UserError(f"{self.path}: a row without {', '.join(absent)} cannot be kept: {row}")
        with alone_at(self.path):
            table = {self._key_of(row): row for row in self.rows()}
            for row in wanted:
                key = self._key_of(row)
                table[key] = {**table.get(key, {}), **row} if merge else row
            write_text(self.path, _to_csv(table.values()))

    def rows(self) -> list[dict[str, str]]:
        """All rows, oldest first; cells without a value are left out."""
        if not self.path.exists():
            return []
        with self.path.open(encoding="utf-8", newline="") as stream:
            rows = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(stream)]
        if rows and (absent := [name for name in self.key if name not in rows[0]]):
            raise UserError(f"{self.path}: has no column {', '.join(absent)}: it is another kind of table")
        return rows

    def find(self, **key: Any) -> dict[str, str] | None:
        """The row of a key, or None."""
        return next((row for row in self.rows() if all(row.get(n) == str(v) for n, v in key.items())), None)

    def _key_of(self, row: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(row[name] for name in self.key)


def _to_csv(rows: Iterable[Mapping[str, str]]) -> str:
    rows = list(rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
