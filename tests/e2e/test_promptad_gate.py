"""Gate experiments and the comparison of baselines on a small sweep: every figure measured, oracle labelled."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anomaly_lib.data.demo.items import write_demo
from anomaly_lib.systems.promptad.comparison import compare, read_results

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--backbone", "tiny-clip", "--weights", "random", "--no-figures", "--resolution", "64", "--cache", "ram"]


def script(name: str) -> Any:
    return runpy.run_path(str(ROOT / name))["main"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(data, result): cls and seg checkpoints for k = 1, 2 in the document's tree."""
    root, result = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("work") / "result"
    write_demo(root, categories=["grid"], size=64, train=4, test_good=5, per_defect=1)
    for task, k in (("cls", 1), ("cls", 2), ("seg", 1)):
        target = result / "harmonic_baseline" / "mvtec" / f"k_{k}" / "grid" / f"{task}_checkpoint.pth"
        command = ["--dataset", "mvtec", "--data-path", str(root), "--obj", "grid", "--shot", str(k), "--epoch", "2"]
        assert script(f"train_{task}.py")([*command, *TINY, "--save-path", str(target)]) == 0
    return root, result


def gate(sweep: tuple[Path, Path], branch: str, *more: str) -> list[dict[str, str]]:
    data, result = sweep
    command = ["--checkpoint-dir", str(result / "harmonic_baseline"), "--branch", branch, "--output", str(result)]
    command += ["--dataset", "mvtec", "--data-path", str(data), *more]
    assert script("scripts/promptad/run_gate_experiment.py")(command) == 0
    with (result / branch / "analysis" / "full_results.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_full_results_are_measured(sweep: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = gate(sweep, "gate_harmonic")
    assert len(rows) == 3 * 5
    assert list(rows[0])[:6] == ["dataset", "class", "k_shot", "task", "mode", "auroc"]
    out = capsys.readouterr().out
    assert "oracle chooses the better branch with the label" in out
    assert "scored with fusion max, trained with harmonic: the contexts do not depend on it" in out
    by_mode = {row["mode"]: row for row in rows if row["task"] == "cls" and row["k_shot"] == "2"}
    trained = json.loads(
        next((sweep[1] / "harmonic_baseline").glob("mvtec/k_2/grid/cls_checkpoint/run.json")).read_text()
    )
    for mode, metric in (("harmonic", "image_auroc"), ("semantic", "textual_auroc"), ("memory", "visual_auroc")):
        assert float(by_mode[mode]["auroc"]) == pytest.approx(100 * trained["metrics"][metric], abs=1e-6)
    best = max(float(by_mode[mode]["auroc"]) for mode in ("semantic", "memory"))
    assert float(by_mode["max"]["gap"]) == pytest.approx(float(by_mode["max"]["auroc"]) - best)
    assert float(by_mode["oracle"]["auroc"]) >= best
    ratios = [float(by_mode["oracle"][f"oracle_{name}_ratio"]) for name in ("semantic", "memory")]
    assert sum(ratios) == pytest.approx(100)
    seg = {row["mode"]: float(row["auroc"]) for row in rows if row["task"] == "seg"}
    trained = json.loads(
        next((sweep[1] / "harmonic_baseline").glob("mvtec/k_1/grid/seg_checkpoint/run.json")).read_text()
    )
    assert seg["semantic"] == pytest.approx(100 * trained["metrics"]["textual_pixel_auroc"], abs=1e-6)
    assert seg["harmonic"] == pytest.approx(100 * trained["metrics"]["pixel_auroc"], abs=1e-6)


def test_per_sample_signals(sweep: tuple[Path, Path]) -> None:
    gate(sweep, "gate_signals", "--task", "cls", "--shot", "1")
    path = sweep[1] / "gate_signals" / "mvtec" / "k_1" / "per_sample" / "cls" / "grid_seed111_per_sample.json"
    samples = json.loads(path.read_text())
    assert len(samples) == 11
    for one in samples:
        larger_is_memory = one["memory_score"] > one["semantic_score"]
        assert one["oracle_choice"] == int(larger_is_memory == bool(one["gt_label"]))
        assert 0 < one["r_mem_entropy"] <= 1
        assert one["r_mem_margin"] >= 0
        assert one["r_sem_extremity"] == pytest.approx(2 * abs(one["semantic_score"] - 0.5), abs=1e-6)
    assert np.std([one["r_sem_prompt_var"] for one in samples]) > 0


def test_measured_checkpoints_are_not_measured_again(
    sweep: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    gate(sweep, "gate_twice", "--task", "cls")
    assert capsys.readouterr().out.count("] mvtec grid") == 2
    first = (sweep[1] / "gate_twice" / "analysis" / "full_results.csv").read_text()
    gate(sweep, "gate_twice", "--task", "cls")
    assert "] mvtec grid" not in capsys.readouterr().out
    assert (sweep[1] / "gate_twice" / "analysis" / "full_results.csv").read_text() == first


def test_originals_tree_is_recognised(sweep: tuple[Path, Path], tmp_path: Path) -> None:
    data, result = sweep
    content = torch.load(result / "harmonic_baseline/mvtec/k_1/grid/cls_checkpoint.pth", weights_only=True)
    folder = tmp_path / "old" / "mvtec" / "k_1" / "checkpoint"
    folder.mkdir(parents=True)
    torch.save(content, folder / "CLS-Seed_111-grid-check_point.pt")
    rows = gate((data, tmp_path), "g", "--checkpoint-dir", str(tmp_path / "old"))
    assert {row["class"] for row in rows} == {"grid"}


def test_run_gate_all_and_comparison(sweep: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    result = sweep[1]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "scripts/promptad/run_gate_all.sh"), str(result / "harmonic_baseline"), "gate"]
    done = subprocess.run(
        [*command, "--output", str(result), "--task", "cls", "--no-figures"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    gate(sweep, "gate_b", "--task", "cls", "--no-figures")
    path = result / "gate_b" / "analysis" / "full_results.csv"
    rows = read_results(path)
    for row in rows:
        if row["mode"] == "harmonic" and row["k_shot"] == "1":
            row["auroc"] = str(float(row["auroc"]) + 3.0)
    comparison = compare(read_results(result / "gate"), rows)
    assert [row["improvement"] for row in comparison.table.rows] == pytest.approx([3.0, 0.0])
    assert "mean improvement: +1.50" in comparison.summary[1]
    assert "max improvement: +3.00 (mvtec grid 1 cls)" in comparison.summary
    assert "1 of these score differently: other images or another memory" in comparison.summary
    capsys.readouterr()
    assert script("scripts/promptad/compare_baselines.py")([str(result / "gate"), str(result / "gate_b")]) == 0
    out = capsys.readouterr().out
    assert "mean improvement: +0.00" in out
    assert "differs, neither: 2 of 2" in out
    assert "the difference is zero by construction" in out


@pytest.mark.slow
def test_the_pair_is_trained_and_compared(sweep: tuple[Path, Path], tmp_path: Path) -> None:
    """B12: max against harmonic under the paper's protocol, and each fusion with itself in the loss."""
    flags = " ".join(TINY)
    common = ["--datasets", "mvtec", "--data-path", str(sweep[0]), "--classes", "grid", "--epochs", "4"]
    common += ["--seeds", "1", "2", "--train-flags", f"{flags} --lr 0.5", "--output", str(tmp_path)]
    compared = script("scripts/promptad/compare_fusions.py")
    assert compared(common) == 0
    table = json.loads((tmp_path / "max_to_harmonic_scored_harmonic.json").read_text())
    assert [(row["data set"], row["task"]) for row in table["rows"]] == [("mvtec", "cls"), ("mvtec", "seg")]
    with (tmp_path / "max_to_harmonic_scored_harmonic_rows.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["task"], row["seed"]) for row in rows] == [("cls", "1"), ("cls", "2"), ("seg", "1"), ("seg", "2")]
    for row in rows:
        kept = [
            json.loads((tmp_path / f"seed_{row['seed']}" / f"gate_{name}" / "mvtec" / "k_1" / "gate_results" /
                        f"grid_{row['task']}.json").read_text())
            for name in ("max", "harmonic")
        ]  # fmt: skip
        gain = kept[1]["modes"]["harmonic"]["auroc"] - kept[0]["modes"]["harmonic"]["auroc"]
        assert float(row["improvement"]) == pytest.approx(gain)
        assert row["differs"] == ("neither" if kept[0]["epoch"] == kept[1]["epoch"] else "epoch")
        assert (kept[0]["contexts"] == kept[1]["contexts"]) == (row["differs"] == "neither")
    other = ["--protocol", "clean", "--fusion-in-loss", "--tasks", "cls", "--seeds", "1"]
    assert compared([*common, *other]) == 2  # where a comparison under another protocol lies
    assert compared([*common, *other, "--output", str(tmp_path / "clean")]) == 0
    for name in ("max", "harmonic"):
        rows = json.loads((tmp_path / "clean" / f"{name}_in_loss_rows.json").read_text())["rows"]
        assert [row["differs"] for row in rows] == ["contexts"]


@pytest.mark.parametrize("command", [[], ["--checkpoint-dir", "nowhere"], ["--checkpoint-dir", ".", "--obj", "spoon"]])
def test_mistakes_cost_one_line(command: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert script("scripts/promptad/run_gate_experiment.py")(command) == 2
    assert "--checkpoint-dir" in capsys.readouterr().err
    assert script("scripts/promptad/compare_baselines.py")(["a", "b"]) == 2
    assert "analysis/full_results.csv" in capsys.readouterr().err
    assert script("scripts/promptad/compare_baselines.py")(["--mode", "max", "a"]) == 2
    assert "name two experiments" in capsys.readouterr().err
