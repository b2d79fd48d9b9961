"""The table of measured false-alarm rates in docs/manual/decisions.md, from benchmarks/results/false_alarms.json.

    python scripts/pages/false_alarm_table.py

Run it after benchmarks/false_alarms.py.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.files import read_json, write_between

ROOT = Path(__file__).resolve().parents[2]
MARKS = ("<!-- false-alarms:begin -->", "<!-- false-alarms:end -->")
SHOWN = 0.05  # the asked rate at which spread and detection are shown


def exceeds(row: dict[str, Any]) -> bool:
    """Is the measured rate above the promise by more than two standard errors?"""
    return bool(row["false_alarms"] > row["promised"] + 2 * row["standard_error"])


def cell(row: dict[str, Any]) -> str:
    """``promised: measured ± standard error``, in per cent; bold where the promise is broken."""
    measured = f"{100 * row['false_alarms']:.1f} ± {100 * row['standard_error']:.1f}"
    return f"{100 * row['promised']:.1f}: " + (f"**{measured}**" if exceeds(row) else measured)


def line(rows: Sequence[dict[str, Any]]) -> str:
    """One (detector, data) of the table, from its rows of all asked rates."""
    shown = next(row for row in rows if row["asked"] == SHOWN)
    region = shown.get("region_false_alarms")
    cells = [
        shown["detector"], shown["data"], f"{shown['known']}, {shown['new']}, {shown['splits']}",
        *(cell(row) for row in sorted(rows, key=lambda row: row["asked"])),
        f"{100 * shown['deviation']:.1f}",
        "-" if region is None else f"{100 * region:.1f}",
        f"{100 * shown['found']:.0f}",
        f"{100 * shown['oracle_found']:.0f} ({100 * shown['oracle_false_alarms']:.0f})",
        f"{shown['shift']:+.2f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each detector and data set, and how many promises hold."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["detector"], row["data"]), []).append(row)
    names = [
        "detector", "data", "known, new, splits", "asked 1 %", "5 %", "10 %", "spread", "region", "found",
        "F1 oracle", "shift",
    ]  # fmt: skip
    head = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    broken = sum(map(exceeds, rows))
    count = f"{len(rows) - broken} of {len(rows)} promises hold within two standard errors" + (
        f"; the other {broken} are bold." if broken else "."
    )
    return "\n".join([*head, *(line(groups[key]) for key in sorted(groups)), "", count])


@dataclass
class Args(Options):
    """The table of false alarms."""

    rows: str = arg("benchmarks/results/false_alarms.json", "JSON file of the benchmark")


def run(args: Args) -> None:
    write_between(ROOT / "docs" / "manual" / "decisions.md", MARKS, table(read_json(ROOT / args.rows)["rows"]))


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, run, argv, prog="false_alarm_table.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
