"""The rows of a study on disk, written one by one as they are done, so that an interrupted study goes on."""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from anomaly_lib.config import result_options
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_json, write_text
from scripts.weld.studies.options import TrainingsArgs

VARIED = ("models", "variants", "seeds", "results")
Row = dict[str, Any]


class StudyRows:
    """`folder/rows.json` and, at the end, `folder/table.md`; `column` names what is varied.

    Rows of other options than `args` are refused, unless it says ``fresh``.
    """

    def __init__(self, folder: Path, column: str, args: TrainingsArgs) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = args.fresh
        self._keep_options(folder / "options.json", args)
        self.folder, self.column, self._path = folder, column, folder / "rows.json"
        self.rows: list[Row] = json.loads(self._path.read_text()) if self._path.is_file() and not fresh else []
        self._done = {(row[column], row["seed"]) for row in self.rows}

    @staticmethod
    def _keep_options(path: Path, args: TrainingsArgs) -> None:
        """What all rows must agree in."""
        now = {name: value for name, value in result_options(args).items() if name not in VARIED}
        before = now if args.fresh or not path.is_file() else read_json(path)
        other = [f"{name}={before.get(name)} -> {value}" for name, value in now.items() if before.get(name) != value]
        if other:
            raise UserError(
                f"{path.parent}: holds rows of other options ({'; '.join(other[:3])}): give fresh=True or "
                "another results="
            )
        write_json(path, now)

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
