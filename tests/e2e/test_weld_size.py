"""V4 and the ladder at the size of the whole data set stay within memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_v4_and_the_ladder_train_on_3231_runs_within_4_gb(tmp_path: Path) -> None:
    out = tmp_path / "size.json"
    words = ["--runs", "3231", "--hidden-dim", "64", "--models", "A", "C-late", "C-mid", "D", "--output", str(out)]
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "bench_weld_size.py"), *words], check=True, cwd=ROOT)
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == {"pool of features", "A", "C-late", "C-mid", "D"}
    assert max(row["peak_mb"] for row in rows.values()) < 4000  # their tokens are 8.5 GB in half precision
