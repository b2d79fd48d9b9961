"""One table, five ways to write it down."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from anomaly_lib.files import write_json, write_text

Cell = Union[str, int, float, None]
LATEX_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}


@dataclass
class Table:
    """Rows of named cells. A cell that does not exist (None, nan) is shown as n/a and written as empty."""

    columns: list[str]
    rows: list[dict[str, Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # e.g. "oracle: ...": printed under every form of the table

    def shown_columns(self) -> list[str]:
        """Columns for people: the ends of an interval are shown within its value's cell."""
        ends = {f"{name}{end}" for name in self.columns for end in ("_low", "_high")}
        return [name for name in self.columns if name not in ends]

    def cells(self, digits: int) -> list[list[str]]:
        return [[self._shown(row, name, digits) for name in self.shown_columns()] for row in self.rows]

    def _shown(self, row: dict[str, Cell], name: str, digits: int) -> str:
        ends = [row.get(f"{name}_low"), row.get(f"{name}_high")]
        interval = "" if any(map(_absent, ends)) else f" [{', '.join(format_cell(end, digits) for end in ends)}]"
        return format_cell(row.get(name), digits) + interval

    def text(self, digits: int = 3) -> str:
        """Aligned columns for a terminal: the first to the left, figures to the right."""
        lines = [self.shown_columns(), *self.cells(digits)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        parts = [
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        return "\n".join([parts[0], "-" * len(parts[0]), *parts[1:], *self.notes])

    def csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.rows:
            writer.writerow(["" if _absent(row.get(name)) else row[name] for name in self.columns])
        return out.getvalue()

    def markdown(self, digits: int = 3) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(map(markdown_escape, cells)) + " |"

        rule = "| --- |" + " ---: |" * (len(self.columns) - 1)
        return (
            "\n".join(
                [line(self.columns), rule, *map(line, self.cells(digits)), *(f"\n{one_line(n)}" for n in self.notes)]
            )
            + "\n"
        )

    def latex(self, digits: int = 3) -> str:
        """A booktabs tabular."""

        def line(cells: Sequence[str]) -> str:
            return " & ".join(latex_escape(cell) for cell in cells) + r" \\"

        body = [line(cells) for cells in self.cells(digits)]
        head = [
            rf"\begin{{tabular}}{{l{'r' * (len(self.shown_columns()) - 1)}}}",
            r"\toprule",
            line(self.shown_columns()),
            r"\midrule",
        ]
        notes = [f"% {one_line(note)}" for note in self.notes]
        return "\n".join([*head, *body, r"\bottomrule", r"\end{tabular}", *notes]) + "\n"

    def write(self, stem: Path) -> list[Path]:
        """`stem`.csv, .json, .md and .tex."""
        for suffix, text in ((".csv", self.csv()), (".md", self.markdown()), (".tex", self.latex())):
            write_text(stem.with_suffix(suffix), text)
        rows = [{name: plain(row.get(name)) for name in self.columns} for row in self.rows]
        write_json(stem.with_suffix(".json"), {"columns": self.columns, "rows": rows, "notes": self.notes})
        return [stem.with_suffix(suffix) for suffix in (".csv", ".json", ".md", ".tex")]


def _absent(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def plain(cell: Any) -> Any:
    """JSON has no nan."""
    return None if _absent(cell) else cell


def format_cell(cell: Cell, digits: int) -> str:
    if _absent(cell):
        return "n/a"
    return f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)


def latex_escape(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(sign, sign) for sign in one_line(text))


def markdown_escape(text: str) -> str:
    """A name as it is read in a cell: no column, markup or line of its own."""
    return "".join(f"\\{sign}" if sign in "\\|<>`*" else sign for sign in one_line(text))


def one_line(text: str) -> str:
    return " ".join(text.splitlines())
