"""V4 and the baseline ladder through their scripts, at demo scale: the user's commands 28 to 32."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anomaly_lib.engine.checkpoint import load_checkpoint
from anomaly_lib.engine.run import Run
from anomaly_lib.systems.weld.data.demo import write_weld_demo
from anomaly_lib.systems.weld.inputs import build_features, weld_settings
from anomaly_lib.systems.weld.supcon import train as weld_supcon
from anomaly_lib.systems.weld.supcon.task import open_runs
from scripts.weld.studies.study import missing_study

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--demo-train", "3", "--demo-good", "2", "--demo-defects", "2", "--video-frames", "4", "--video-size", "32"]
SMALL += ["--image-size", "32", "--views", "2", "--hidden-dim", "16", "--sensor-dim", "16", "--sensor-layers", "1"]


def script(name):
    spec = importlib.util.spec_from_file_location(f"weld_{name}", ROOT / "scripts" / "weld" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def shell(name, *words, **variables):
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **variables}
    command = ["bash", f"scripts/weld/{name}", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory):
    """Encode the demo runs once for the whole file."""
    before = os.environ.get("ANOMALY_LIB_CACHE")
    os.environ["ANOMALY_LIB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        os.environ.pop("ANOMALY_LIB_CACHE")
    else:
        os.environ["ANOMALY_LIB_CACHE"] = before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v4")
    assert (
        script("train_supcon").main(
            [*SMALL, "--quick-test", "--debug", "--mixed-precision", "--output-dir", str(folder)]
        )
        == 0
    )
    return folder


def test_quick_test_trains_three_epochs_and_describes_the_first_batch(trained):
    log = (trained / "log.txt").read_text()
    for part in ("labels:", "cosine:", "positive pairs", "parameters have a gradient", "batch 1: loss"):
        assert part in log
    saved = load_checkpoint(trained / "checkpoint.pt", system="weld_supcon")
    assert saved["epoch"] == 3
    assert saved["args"]["batch_size"] == 4


def test_evaluation_repeats_the_numbers_of_training(trained):
    record = json.loads((trained / "run.json").read_text())["metrics"]
    flags = ["--output-dir", str(trained / "evaluation"), "--bootstrap", "0"]
    out = shell("evaluate.sh", str(trained / "best_model.pth"), *flags)
    assert out.returncode == 0, out.stderr
    assert f"{record['knn_accuracy']:.4f}" in out.stdout


def test_other_neighbours_and_distances(trained, tmp_path, capsys):
    main, record = script("evaluate_knn").main, json.loads((trained / "run.json").read_text())["metrics"]
    best = ["--checkpoint", str(trained / "best_model.pth"), "--output", str(tmp_path / "knn.json")]
    assert main([*best, "--k", "1"]) == 0
    assert json.loads((tmp_path / "knn.json").read_text())["metrics"]["knn_accuracy"] == record["knn_accuracy"]
    assert main([*best, "--k", "3", "--metric", "manhattan", "--split", "val"]) == 0
    assert "confusion" in capsys.readouterr().out
    assert main([]) == 2


def test_missing_modalities_never_break_the_model(trained):
    detector = weld_supcon.load_detector(trained / "best_model.pth")
    rows = missing_study([detector], open_runs(detector.args))
    assert len(rows) == 15
    assert all(0 <= row["auroc"] <= 1 for row in rows)


@pytest.mark.slow
def test_every_option_of_the_objective_runs_and_resumes(tmp_path):
    flags = [
        *SMALL,
        "--batch-size",
        "12",
        "--mixup",
        "0.2",
        "--queue",
        "24",
        "--accumulate",
        "2",
        "--hard-negatives",
        "0.5",
    ]
    flags += [
        "--reconstruct-weight",
        "0.1",
        "--freeze",
        "heads",
        "--adapters",
        "lora",
        "--missing",
        "embedding",
        "--k",
        "1",
    ]
    flags += ["--activation-checkpointing", "--pretrain", "simclr", "--pretrain-epochs", "1", "--sampler", "balanced"]
    main = script("train_supcon").main
    assert main([*flags, "--num-epochs", "1", "--output-dir", str(tmp_path)]) == 0
    before = load_checkpoint(tmp_path / "checkpoint.pt")["model"]
    assert main([*flags, "--num-epochs", "2", "--output-dir", str(tmp_path), "--resume", "latest"]) == 0
    after = load_checkpoint(tmp_path / "checkpoint.pt")["model"]
    frozen = [name for name in before if "attend" in name and ".base." in name]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    moved = [name for name in before if "attend" in name and name.endswith(".up")]
    assert any(not torch.equal(before[name], after[name]) for name in moved)


def test_ladder_fills_one_table_and_never_repeats_a_row(tmp_path, capsys):
    main = script("run_baselines").main
    flags = [
        *SMALL,
        "--baseline-epochs",
        "2",
        "--results",
        str(tmp_path),
        "--num-epochs",
        "1",
        "--k",
        "1",
        "--batch-size",
        "12",
    ]
    assert main([*flags, "--models", "A", "B-sensors", "--seeds", "0"]) == 0
    first = json.loads((tmp_path / "rows.json").read_text())
    assert main([*flags, "--seeds", "0"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[:2] == first
    assert [row["model"] for row in rows] == [
        "A",
        "B-sensors",
        "B-video",
        "B-images",
        "B-audio",
        "C-late",
        "C-mid",
        "D",
    ]
    assert "gain over A" in capsys.readouterr().out
    assert main([*flags, "--models", "E"]) == 2


def test_extensions_fill_one_table_and_never_repeat_a_row(tmp_path, capsys):
    main = script("run_extensions").main
    flags = [*SMALL, "--results", str(tmp_path), "--num-epochs", "1", "--k", "1", "--batch-size", "12", "--seeds", "0"]
    assert main([*flags, "--variants", "plain"]) == 0
    first = json.loads((tmp_path / "rows.json").read_text())
    assert main([*flags, "--variants", "plain", "lora", "frozen-attention"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[:1] == first
    learnt = {row["variant"]: row["trained_parameters"] for row in rows}
    assert learnt["frozen-attention"] < learnt["lora"] < learnt["plain"]
    assert "k-NN accuracy" in capsys.readouterr().out
    assert main([*flags, "--variants", "magic"]) == 2


def test_resume_is_bit_exact_with_the_feature_queue(tmp_path, monkeypatch):
    def asked(name):
        return replace(weld_supcon.tiny(), epochs=3, queue=20, mixup=0.2, output_dir=str(tmp_path / name))

    ready = weld_supcon.resolve(asked("whole"))
    features = build_features(ready, torch.device("cpu"), weld_settings(ready))
    weld_supcon.train(asked("whole"), features=features)
    calls, original = [], Run.end_epoch

    def broken(*args, **more):
        original(*args, **more)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt("killed")

    monkeypatch.setattr(Run, "end_epoch", broken)
    with pytest.raises(KeyboardInterrupt):
        weld_supcon.train(asked("cut"), features=features)
    monkeypatch.undo()
    weld_supcon.train(asked("cut"), features=features)
    whole, cut = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    whole["queue"], cut["queue"] = whole["extra"]["queue"], cut["extra"]["queue"]
    assert len(whole["queue"]["labels"]) == 20
    for key in ("model", "optimizer", "history", "best", "early_stop", "queue"):
        torch.testing.assert_close(whole[key], cut[key], rtol=0, atol=0, equal_nan=True)


def test_label_check_counts_and_warns(tmp_path, capsys):
    root = write_weld_demo(tmp_path / "data", train=4, good=1, per_defect=1)
    assert script("check_labels").main([str(root)]) == 0
    text = capsys.readouterr().out
    assert "train has one class" in text
    assert script("check_labels").main([str(tmp_path)]) == 2


@pytest.mark.slow
def test_test_server_script(tmp_path):
    out = shell("test_server.sh", OUTPUT=str(tmp_path / "quick"))
    assert out.returncode == 0, out.stderr
    assert "knn_accuracy" in out.stdout


def test_recipe_refuses_what_cannot_work():
    with pytest.raises(Exception, match="--adapters"):
        weld_supcon.resolve(weld_supcon.Args(adapters="lora"))
