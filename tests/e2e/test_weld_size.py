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


@pytest.mark.slow
def test_a_step_of_v4_with_encoders_that_learn_fits_3_gb(tmp_path: Path) -> None:
    out, page = tmp_path / "step.json", tmp_path / "page.md"
    page.write_text("before\n<!-- bench_weld_step begins --><!-- bench_weld_step ends -->\nafter\n", encoding="utf-8")
    words = ["--sizes", "V4's", "--repeats", "1", "--output", str(out), "--page", str(page)]
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "bench_weld_step.py"), *words], check=True, cwd=ROOT)
    rows = json.loads(out.read_text())["rows"]
    assert [row["recompute"] for row in rows] == [False, True]
    for row in rows:
        assert row["tokens"] == {"video": [784], "state": [5, 257], "audio": [659]}
        assert row["learning"] == 12_596_224 + 2_048 + 7_089_408 + 7_087_872 + 1_536  # DINOv2 scales its layers
        assert row["peak_mb"] < 3000
    assert page.read_text().count("| V4's: 8 frames of 224 px, photos of 224 px | 784, 5 x 257, 659 |") == 2
