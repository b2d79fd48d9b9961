"""Causal-FiLM's report: partial areas, per-class tables and hints, on numbers small enough to check by hand."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from anomaly_lib.detect.scores import Scores, summary
from anomaly_lib.systems.weld.causal_film.report import against_the_best, class_hints, diagnose, report_lines
from anomaly_lib.systems.weld.data.demo import weld_demo_runs
from anomaly_lib.systems.weld.figures import auroc_line, class_table, own_figures, partial_auroc


def runs_of(names: list[str]) -> list:
    pool = weld_demo_runs(train=1, good=1, per_defect=1)
    return [next(run for run in pool if run.class_name == name) for name in names]


def test_partial_area_equals_the_whole_at_limit_1_and_a_step_by_hand() -> None:
    scores, labels = torch.rand(60), torch.randint(0, 2, (60,))
    assert partial_auroc(scores, labels, 1.0) == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    # One false alarm above the first of two defects: TPR is 0.5 up to FPR 0.5, then rises to 1 behind it.
    scores, labels = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1, 0, 1, 0])
    assert partial_auroc(scores, labels, 0.5) == pytest.approx(0.5)
    assert partial_auroc(scores, labels, 0.1) == pytest.approx(0.5)
    assert partial_auroc(torch.ones(4), labels, 0.3) == pytest.approx(0.15)  # all tied: the diagonal


def test_per_class_table_uses_classes_not_the_binary_label() -> None:
    runs = runs_of(["good", "good", "warping", "overlap", "overlap"])
    scores = torch.tensor([1.0, 3.0, 2.0, 4.0, 5.0])
    table = class_table(scores, runs)
    good, warping, overlap = table.rows
    assert good == {"class": "good", "n": 2, "mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0}
    assert warping["auroc"] == 0.5
    assert overlap == {"class": "overlap", "n": 2, "mean": 4.5, "std": 0.5, "min": 4.0, "max": 5.0, "auroc": 1.0}
    assert table.csv().splitlines()[2] == "warping,1,2.0,0.0,2.0,2.0,0.5"
    assert [line.split(":")[1].split(";")[0].strip() for line in class_hints(scores, runs)] == [
        "warping has AUROC 0.50"
    ]


def test_metrics_and_base_rates() -> None:
    runs = runs_of(["good", "good", "overlap", "crater_cracks"])
    scores = torch.tensor([0.1, 0.3, 0.9, 0.2])
    labels = torch.tensor([run.label for run in runs])
    names = [run.run_id for run in runs]
    found = Scores("causal_film", "", scores, labels, names, ["weld"] * 4, own=own_figures(scores, runs))
    metrics = summary(found)
    assert metrics["image_auroc"] == pytest.approx(0.75)
    assert metrics["mismatch_auroc"] == 1.0
    lines = report_lines(found, runs)
    assert "gives F1 0.6667, AP 0.5000" in lines[0]
    assert "of these very runs (oracle): tp 1, fp 0, fn 1, tn 2" in lines[1]
    validation = torch.tensor([0.0, 0.15, 0.2]), torch.tensor([0, 0, 1])
    found = replace(found, own=own_figures(scores, runs, validation), validation=validation)
    assert found.own["youden_threshold"] == pytest.approx(0.2)
    assert found.own["recall"] == 1.0
    assert "of the validation runs: tp 2, fp 1, fn 0, tn 1" in report_lines(found, runs)[1]
    on_disk = [replace(run, render=None) for run in runs]
    assert "mismatch_auroc" not in own_figures(scores, on_disk)


def test_hints_name_the_knob() -> None:
    row = {"loss": 1.0, "val_score_min": 1.0, "train_score": 1.0, "collapse": 0.01, "val_auroc": 0.8}
    assert any("--target-mode" in line for line in diagnose([row] * 12))
    assert any("--learning-rate" in line for line in diagnose([row] * 12))
    falling = [{**row, "loss": 1 / (i + 1), "collapse": 1.0, "val_score_min": 3.0} for i in range(12)]
    assert diagnose(falling) == [
        "hint: even the best validation weld scores 3.0 x the training mean: overfitting; raise --weight-decay or "
        "--feature-mask-ratio"
    ]
    flat = [{**row, "loss": 1 / (i + 1), "collapse": 1.0} for i in range(30)]
    assert any("since epoch 20" in line for line in diagnose(flat))


def test_an_auroc_comes_with_its_interval_and_counts() -> None:
    scores, labels = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 0, 1, 1])
    found = Scores("causal_film", "", scores, labels, ["a"] * 4, ["weld"] * 4)
    assert (
        auroc_line(found) == "test AUROC 1.000 [1.000, 1.000]: 95 % of 1000 resamples of 2 good and 2 defective welds"
    )
    alone = replace(found, labels=torch.zeros(4))
    assert auroc_line(alone) == "test AUROC: none, there are 4 good and 0 defective welds"


def test_the_model_is_held_against_its_best_single_modality() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    noise = torch.randn(60, generator=generator)
    weak, strong = noise, labels + 0.3 * noise
    (line,) = against_the_best({"video only": -noise, "audio only": weak, "model": strong}, labels)
    assert line.startswith("model beats the best single modality, ")
    (line,) = against_the_best({"audio only": strong, "model": weak}, labels)
    assert line.startswith("model is behind the best single modality, audio only: AUROC ")
    (line,) = against_the_best({"audio only": weak, "model": weak + 0.001}, labels)
    assert "model is level with" in line
    assert line.endswith("difference 0.000 [0.000, 0.000] (95 %)")
    assert against_the_best({"audio only": weak, "model": weak}, torch.zeros(60)) == []
