"""The ladder's table and scores, on numbers small enough to check by hand."""

from types import SimpleNamespace

import pytest
import torch

from anomaly_lib.systems.weld.data.manifest import CLASSES
from scripts.weld.studies.baselines import Fitted, Pool, combine, one_class, standardised
from scripts.weld.studies.ladder import row_of, table


def pool_of(classes: list[int], present: list[bool] | None = None) -> Pool:
    runs = [SimpleNamespace(label=int(c > 0), class_label=c, class_name=CLASSES[c]) for c in classes]
    there = torch.tensor([[True, True, p, True] for p in present or [True] * len(classes)])
    splits = ("train", "val", "test")
    return Pool(None, dict.fromkeys(splits, runs), dict.fromkeys(splits, there), {}, {})  # type: ignore[arg-type]


def test_scores_are_standardised_by_good_runs_and_an_absent_modality_says_nothing() -> None:
    pool = pool_of([0, 0, 5, 0], present=[True, True, True, False])
    scores = {split: torch.tensor([1.0, 3.0, 8.0, 100.0]) for split in ("train", "val", "test")}
    assert standardised(pool, scores, "audio")["test"].tolist() == [-1.0, 1.0, 6.0, 0.0]
    assert standardised(pool, scores, "video")["test"][3] > 1


def test_fusion_weights_are_searched_on_validation_only() -> None:
    pool = pool_of([0, 0, 4, 4])
    good, bad = torch.tensor([0.0, 1.0, 5.0, 6.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    right = {"train": good, "val": good, "test": bad}
    wrong = {"train": good, "val": bad, "test": good}
    fused = combine(pool, [right, wrong], ("audio", "video"), 7)
    assert fused.note == "audio 1.00, video 0.00" or fused.scores["val"][2:].min() > fused.scores["val"][:2].max()
    assert fused.parameters == 7


def test_a_row_and_the_table_by_hand() -> None:
    pool = pool_of([0, 0, 4, 9])
    scores = {split: torch.tensor([0.1, 0.3, 0.9, 0.2]) for split in ("train", "val", "test")}
    fitted = Fitted(scores, 1234, classes=torch.tensor([0, 0, 4, 0]))
    row = row_of(pool, fitted, model="D", seed=0, seconds=2.0, peak_mb=10.0)
    assert row["auroc"] == 0.75
    assert row["per_defect"] == {CLASSES[4]: 1.0, CLASSES[9]: 0.5}
    assert row["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2, abs=1e-4)  # Youden: everything from 0.9 on is a defect
    base = {**row, "model": "A", "auroc": 0.5, "class_f1": None}
    lines = table([base, row, {**row, "seed": 1, "auroc": 0.85}])
    assert lines[2].startswith("| A | 0.500 ± 0.000 ")
    assert "| - | +0.000 | 1,234 | 2.0 | 10 |" in lines[2]
    assert lines[3].startswith("| D | 0.800 ± 0.050 ")
    assert "+0.300" in lines[3]
    assert f"| {CLASSES[9]} | 0.500 ± 0.000 | 0.500 ± 0.000 |" in lines


def test_one_class_learns_good_runs() -> None:
    torch.manual_seed(0)
    basis = torch.randn(3, 24)
    good, strange = torch.randn(64, 3) @ basis, torch.randn(64, 24) * 1.7
    head = one_class(good)
    assert float(head(strange).mean()) > 2 * float(head(good).mean())
