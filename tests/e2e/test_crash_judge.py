"""Killed at every change on the disk and started again, everything ends as if it had been left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.crashing import MARKS, PAGE, RESULTS, table

ROOT = Path(__file__).resolve().parents[2]
JUDGE = ROOT / "tests" / "support" / "crashing.py"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SYSTEMS = ("promptad", "sowa", "detectors", "hdmap", "causal_film", "video_ae", "weld_supcon", "crystal")
PUBLISH = ["--publish"] if os.environ.get("PUBLISH_COUNTS") else []  # the slow tests then write the manual's table
pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir() or not hasattr(os, "fork"), reason="Linux only")


def judged(*words: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(JUDGE), *words], env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=9000
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for one in found:
        assert one["differences"] == [], (one["case"], one["differences"][:5])
        assert one["kills"] > 0
    return found


def test_the_manual_says_what_the_judge_found() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    assert f"{MARKS[0]}\n{table(rows)}\n{MARKS[1]}" in PAGE.read_text(encoding="utf-8")  # `crashing.py --publish`
    assert all(row["kills"] > 0 and row["differences"] == 0 for row in rows)
    assert {row["case"] for row in rows if row["ranks"] == 1} >= {"tables", "store", "predictions", "engine"}


def test_a_sample_of_all_changes() -> None:
    found = judged("tables", "store", "engine", "video_ae", "--stride", "12", "--more", "60")
    assert {"write", "replace", "fsync", "open"} <= set(found[2]["kinds"])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["tables", "store", "engine", "predictions"])
def test_every_change(case: str) -> None:
    (found,) = judged(case, *PUBLISH)
    writes = found["kinds"]["write"] + found["kinds"].get("more", 0)
    assert found["kills"] == found["changes"] + writes  # before each, and half way through each write


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_systems(system: str) -> None:
    """Every change, and every sixtieth of the writes that go on writing one file."""
    judged(system, "--more", "60", *PUBLISH)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["engine", "detectors"])
def test_two_ranks(case: str) -> None:
    judged(case, "--ranks", "2", "--more", "60", *PUBLISH)
