"""docs/manual/results.md: what run folders and benchmark files say, each with its commit."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.engine.record import WHOLE, read_record
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json
from scripts.pages import beside_peer

SHOWN = 6  # metrics of a table row
RATIO_WORDS = ("ratio", "times faster", "against")
REAL_DATA = "real_detectors.json"


@dataclass
class FinishedRun:
    folder: Path
    record: dict[str, Any]
    figures: list[Path] = field(default_factory=list)

    @property
    def system(self) -> str:
        return str(self.record["system"])


def finished_runs(root: Path) -> list[FinishedRun]:
    """Every finished run below `root`, by system and folder name."""
    if not root.is_dir():
        raise UserError(f"runs={root}: no such folder; train something first, for instance python train_cls.py")
    records = [(path.parent, read_record(path, WHOLE)) for path in sorted(root.rglob("run.json"))]
    runs = [FinishedRun(folder, record) for folder, record in records if _has_ended(record)]
    if not runs:
        raise UserError(f"runs={root}: holds no finished run")
    return sorted(runs, key=lambda run: (run.system, run.folder.name))


def _has_ended(record: Mapping[str, Any]) -> bool:
    """Only the record of a run that has ended says what must stand beside its result."""
    return record.get("status") == "finished" and "remarks" in record


def result_table(runs: Sequence[FinishedRun]) -> Table:
    """A row for each run of one system: what came out, then what is needed to repeat it."""
    rows: list[dict[str, Cell]] = []
    for run in runs:
        record = run.record
        metrics = {name: float(value) for name, value in record["metrics"].items() if name != "threshold"}
        rows.append(
            {
                "run": run.folder.name,
                **dict(list(metrics.items())[:SHOWN]),
                "remarks": ", ".join(record["remarks"]) or "-",
                "seed": record["seed"],
                "seconds": round(record["seconds"]),
                "machine": record.get("gpu") or f"{record.get('machine')}, {record.get('threads')} threads",
                "commit": record.get("git_commit") or "unknown",
            }
        )
    last = ["remarks", "seed", "seconds", "machine", "commit"]
    names = dict.fromkeys(name for row in rows for name in row)
    return Table([*(name for name in names if name not in last), *last], rows)


def benchmark_table(folder: Path) -> Table:
    """Every ratio in the benchmarks' JSON files, under the name of its file."""
    rows: list[dict[str, Cell]] = []
    for path in sorted(folder.glob("*.json")):
        if path.name == REAL_DATA:
            continue
        report = read_json(path)
        commit = (report.get("machine") or report).get("commit", "unknown")
        for name, value in _ratios(report):
            rows.append({"benchmark": path.stem, "ratio": name, "value": round(value, 2), "commit": commit})
    return Table(["benchmark", "ratio", "value", "commit"], rows)


def _ratios(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """Numbers below keys that call themselves a ratio, in file order."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _ratios(value, (*path, str(key)))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _ratios(value, (*path, str(number)))
    elif isinstance(node, (int, float)) and path and any(word in path[-1].lower() for word in RATIO_WORDS):
        yield " / ".join(part.replace("_", " ") for part in path), float(node)


def results_page(runs: Sequence[FinishedRun], folder: Path, benchmarks: Path) -> str:
    """The page results.md, which lies in `folder`."""
    parts = [
        "# Measured results\n\nWritten by `python scripts/make_figures.py` from run folders; do not edit. Demo data are"
        " procedural: the numbers say that a system works, not how it compares on a published benchmark.\n"
    ]
    for system in dict.fromkeys(run.system for run in runs):
        own = [run for run in runs if run.system == system]
        parts.append(f"## {system}\n\n{result_table(own).markdown()}")
        for run in own:
            shown = "\n".join(
                f"![{path.stem}]({Path(os.path.relpath(path, folder)).as_posix()})" for path in run.figures
            )
            parts.append(f"**{run.folder.name}**: `{options_of(run)}`\n\n{shown}\n" if shown else "")
    if (benchmarks / REAL_DATA).is_file():
        parts.append(
            "## Real categories beside anomalib\n\nResNet-18 with ImageNet weights, 224 x 224 where a row says no other"
            " size, same images and metrics; `scripts/check_real_detectors.py`, read in [hdmap.md](hdmap.md#measured)."
            "\n\n" + beside_peer.table(read_json(benchmarks / REAL_DATA)["rows"])
        )
    table = benchmark_table(benchmarks)
    if table.rows:
        parts.append(
            "## Benchmarks\n\nRatios to the peer measured in the same run: how many times faster or smaller, and behind"
            ' "against" the share of the peer\'s. What is compared stands at the head of `benchmarks/bench_<name>.py`.'
            "\n\n" + table.markdown(digits=2)
        )
    return "\n".join(part for part in parts if part)


def options_of(run: FinishedRun) -> str:
    """The options the run was started with, without the places of this machine."""
    words = run.record.get("argv", [])
    kept, skip = [], False
    for word in words:
        if skip or word.split("=")[0] in ("--output-dir", "--output", "--save-path", "--data-path", "--cache-dir"):
            skip = not skip and "=" not in word
            continue
        kept.append(word)
    return " ".join(kept) or "no options: built-in data and defaults"
