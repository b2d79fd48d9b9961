"""scripts/promptad/train_harmonic.sh: the document's sweep, restartable, with its environment overrides."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import torch

from anomaly_lib.data.demo.items import write_demo
from anomaly_lib.errors import UserError
from anomaly_lib.systems.promptad.options import SweepArgs
from anomaly_lib.systems.promptad.sweep import CLASSES, sweep_jobs

ROOT = Path(__file__).resolve().parents[2]


def sweep(folder: Path, *more: str, **environment: str) -> str:
    known = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OUTPUT": str(folder), "EPOCHS": "1"}
    env = {**os.environ, **known, **environment}
    command = ["bash", str(ROOT / "scripts/promptad/train_harmonic.sh"), *more]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_sweep_runs_skips_and_tabulates(tmp_path: Path) -> None:
    write_demo(tmp_path / "data", categories=["grid"], size=64, train=4, test_good=4, per_defect=1)
    settings = {
        "DATA_PATH": str(tmp_path / "data"), "DATASETS": "mvtec", "CLASSES": "grid", "K_SHOTS": "1",
        "FUSION_MODE": "max", "TRAIN_FLAGS": "--backbone tiny-clip --weights random --no-figures --resolution 64",
    }  # fmt: skip
    assert "2 done, 0 done before, 0 failed" in sweep(tmp_path, **settings)
    for task in ("cls", "seg"):
        saved = tmp_path / "mvtec" / "k_1" / "grid" / f"{task}_checkpoint.pth"
        assert torch.load(saved, weights_only=True)["args"]["fusion_mode"] == "max"
        assert "fusion max" in (saved.parent / f"{task}_train.log").read_text()
    with (tmp_path / "sweep" / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["class"], row["task"], row["status"]) for row in rows] == [
        ("grid", t, "finished") for t in ("cls", "seg")
    ]
    assert "0 done, 2 done before, 0 failed" in sweep(tmp_path, **settings)


@pytest.mark.slow
def test_sweep_runs_on_a_local_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    write_demo(tmp_path / "data", categories=["grid"], size=64, train=4, test_good=4, per_defect=1)
    settings = {
        "DATA_PATH": str(tmp_path / "data"), "DATASETS": "mvtec", "CLASSES": "grid", "K_SHOTS": "1", "EPOCHS": "1",
        "TRAIN_FLAGS": "--backbone tiny-clip --weights random --no-figures --resolution 64",
    }  # fmt: skip
    flags = ["--launcher", "ray", "--parallel", "2", "--retries", "1"]
    assert "2 done, 0 done before, 0 failed" in sweep(tmp_path, *flags, **settings)
    for task in ("cls", "seg"):
        saved = tmp_path / "mvtec" / "k_1" / "grid" / f"{task}_checkpoint.pth"
        assert torch.load(saved, weights_only=True)["args"]["task"] == task
        assert "fusion harmonic" in (saved.parent / f"{task}_train.log").read_text()
    assert "0 done, 2 done before, 0 failed" in sweep(tmp_path, **settings)  # the local launcher knows what Ray did


@pytest.mark.slow
def test_sweep_in_the_originals_tree(tmp_path: Path) -> None:
    """B11: run_cls.py and run_seg.py as one command: all classes below one --root-dir, one table for each k."""
    write_demo(tmp_path / "data", categories=["grid", "woven"], size=64, train=4, test_good=4, per_defect=1)
    settings = {
        "DATA_PATH": str(tmp_path / "data"), "DATASETS": "mvtec", "CLASSES": "grid woven", "K_SHOTS": "2",
        "TRAIN_FLAGS": "--backbone tiny-clip --weights random --no-figures --resolution 64 --seed 7", "TASKS": "cls",
    }  # fmt: skip
    assert "2 done, 0 done before, 0 failed" in sweep(tmp_path, "--root-dir", "result", **settings)
    folder = tmp_path / "result" / "mvtec" / "k_2"
    table = pandas.read_csv(folder / "csv" / "Seed_7-results.csv", index_col=0)  # as the original reads its own
    assert list(table.index) == ["mvtec-grid", "mvtec-woven"]
    for name in ("grid", "woven"):
        assert (folder / "checkpoint" / f"CLS-Seed_7-{name}-check_point.pt").is_file()
        metrics = json.loads((folder / name / "CLS-Seed_7" / "run.json").read_text())["metrics"]
        assert table.loc[f"mvtec-{name}", "i_roc"] == pytest.approx(100 * metrics["image_auroc"], abs=0.005)
    assert "0 done, 2 done before, 0 failed" in sweep(tmp_path, "--root-dir", "result", **settings)


def test_dry_run_prints_the_documents_short_list(tmp_path: Path) -> None:
    (tmp_path / "visa").mkdir()
    (tmp_path / "mvtec").mkdir()
    out = sweep(tmp_path, "--dry-run", DATA_PATH=str(tmp_path), CLASSES="key", EPOCHS="100")
    assert len(out.splitlines()) == 36
    assert "--obj pipe_fryum --shot 4 --epoch 100 --fusion-mode harmonic" in out


def test_full_sweep_is_162_runs(tmp_path: Path) -> None:
    for name in ("mvtec", "visa"):
        (tmp_path / name).mkdir()
    assert len(sweep_jobs(SweepArgs(data_path=str(tmp_path)), ROOT)) == 162
    assert len(sweep_jobs(SweepArgs(), ROOT)) == len(CLASSES["demo"]) * 6
    with pytest.raises(UserError, match="must hold the folder mvtec/"):
        sweep_jobs(SweepArgs(data_path=str(tmp_path / "visa")), ROOT)
    with pytest.raises(UserError, match="give data_path= the folder of visa"):
        sweep_jobs(SweepArgs(datasets=["visa"]), ROOT)
