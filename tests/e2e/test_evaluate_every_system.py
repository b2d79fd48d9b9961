"""In a new process evaluate.py reaches, for every system's checkpoint, the numbers that training recorded."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.types import RunResult

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
DRAEM = {"epochs": 1, "repair_width": 8, "segment_width": 8}
SMALL_DETECTORS: dict[str, dict[str, Any]] = {
    "patchcore": {},
    "padim": {"features": 20},
    "reverse_distillation": {"epochs": 1},
    "draem": DRAEM,
    "draem_sevnet": DRAEM | {"patch_width_range": [8, 24]},
}


def small(system: str, **changes: Any) -> Callable[[Path], RunResult]:
    """Train this system at tiny size into a folder."""

    def run(folder: Path) -> RunResult:
        return SYSTEMS[system].train(SYSTEMS[system].tiny(output_dir=str(folder), **changes))

    return run


RUNS = {
    "promptad image": small("promptad", task="cls"),
    "promptad pixel": small("promptad", task="seg"),
    "sowa": small("sowa"),
    "causal film": small("causal_film"),
    "video autoencoder": small("video_ae"),
    "supcon": small("weld_supcon"),
    "crystal": small("crystal"),
    "crystal ema": small("crystal", ema_decay=0.9, select="last"),
    "hdmap": small("hdmap"),
    **{name: small("detectors", model=name, **changes) for name, changes in SMALL_DETECTORS.items()},
}


@dataclass(frozen=True)
class Pair:
    """A run and what a new process makes of it."""

    trained: RunResult
    printed: str  # by training
    entry: dict[str, Any]  # of metrics.json
    said: str  # by evaluate.py, about all runs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Every system trained here, all checkpoints evaluated by one new process."""
    folder = tmp_path_factory.mktemp("every")
    trained = {name: run(folder / "runs" / name.replace(" ", "_")) for name, run in RUNS.items()}
    command = [sys.executable, str(ROOT / "evaluate.py"), "--checkpoint", str(folder / "runs"), "--no-figures"]
    done = subprocess.run(
        [*command, "--output", str(folder / "out"), "--bootstrap", "20", "--device", "cpu"],
        capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    entries = json.loads((folder / "out" / "metrics.json").read_text())["runs"]
    table = json.loads((folder / "out" / "table.json").read_text())["rows"]
    assert {row["run"] for row in table} >= {entry["name"] for entry in entries}
    found = {}
    for name, result in trained.items():
        (entry,) = [one for one in entries if Path(one["checkpoint"]).is_relative_to(result.run_dir)]
        found[name] = Pair(result, (result.run_dir / "log.txt").read_text(encoding="utf-8"), entry, done.stdout)
    return found


def test_no_system_is_left_out(pairs: dict[str, Pair]) -> None:
    assert {pair.entry["system"] for pair in pairs.values()} == set(SYSTEMS)
    said = next(iter(pairs.values())).said
    assert "differs from what training recorded" not in said
    assert said.count("equals what training recorded") == len(RUNS)


@pytest.mark.parametrize("name", list(RUNS))
def test_numbers_are_those_of_training(pairs: dict[str, Pair], name: str) -> None:
    want, found = pairs[name].trained.metrics, pairs[name].entry["metrics"]
    shared = set(want) & set(found)
    assert shared, (sorted(want), sorted(found))
    for metric in shared:
        assert found[metric] == pytest.approx(want[metric], rel=0, abs=1e-9), metric
    # SOWA prints per cent with one digit, the others three or four digits
    texts = {metric: [f"{want[metric]:.3f}", f"{want[metric]:.4f}", f"{100 * want[metric]:.1f}"] for metric in shared}
    assert any(text in pairs[name].printed for options in texts.values() for text in options)
