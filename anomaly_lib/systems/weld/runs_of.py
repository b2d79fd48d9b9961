"""What a user hands to ``predict`` as weld runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly_lib.errors import UserError
from anomaly_lib.files import check_name
from anomaly_lib.systems.weld.data.folder import find_recordings, holds_recordings
from anomaly_lib.systems.weld.data.manifest import WeldRun, read_manifest

EXPECTED = "give a run folder (video, sound, sensor table, images/), a WeldRun or a list of these"


def runs_of(inputs: Any) -> list[WeldRun]:
    """One or many run folders or runs as a list of runs; those of a folder have the class name "unknown"."""
    single = isinstance(inputs, (str, Path, WeldRun))
    if (not single and not isinstance(inputs, Sequence)) or isinstance(inputs, bytes):
        raise UserError(f"cannot score {type(inputs).__name__}: {EXPECTED}")
    runs = [_run_of(one) for one in ([inputs] if single else inputs)]
    if not runs:
        raise UserError(f"predict() got no runs: {EXPECTED}")
    return runs


def _run_of(one: Any) -> WeldRun:
    if isinstance(one, WeldRun):
        return one
    if not isinstance(one, (str, Path)) or not str(one):
        raise UserError(f"cannot score {type(one).__name__}: {EXPECTED}")
    check_name(one)
    folder = Path(one)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {EXPECTED}")
    find_recordings(folder)
    return WeldRun(folder.name, "unknown", "", folder)


def normal_runs_below(folder: Path) -> list[WeldRun]:
    """The good runs of a folder with a manifest; without one, every run folder in or below it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {EXPECTED}")
    if any((folder / name).is_file() for name in ("manifest.csv", "runs.csv")):
        found = [run for run in read_manifest(folder) if not run.label]
    else:
        inner = sorted(path for path in (folder, *folder.rglob("*")) if path.is_dir())
        found = [_run_of(path) for path in inner if holds_recordings(path)]
    if not found:
        raise UserError(f"{folder}: no normal weld run in or below it; {EXPECTED}")
    return found
