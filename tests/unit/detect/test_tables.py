"""Tables, thresholds and confidence intervals behind evaluate.py, on values worked out by hand or by scikit-learn."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Evaluated, Scores, sample_remarks, summary
from anomaly_lib.detect.scoring import class_table, prediction_rows
from anomaly_lib.detect.tables import Table
from anomaly_lib.detect.thresholds import choose_decision, false_alarm_threshold
from anomaly_lib.errors import UserError
from anomaly_lib.evaluation.checkpoints import find_checkpoints
from anomaly_lib.evaluation.report import write_evaluation_report
from anomaly_lib.types import Prediction

RNG = np.random.default_rng(0)


def evaluation(**changes) -> Scores:
    labels = np.tile([0, 0, 1], 40)
    scores = RNG.normal(labels * 1.2, 1.0)
    groups = ["nut" if i < 60 else "bolt" for i in range(120)]
    base = Scores("demo", "demo run", scores, labels, [f"{i}.png" for i in range(120)], groups)
    return replace(base, **changes)


def evaluated(scores: Scores, decision: Decision | None = None) -> Evaluated:
    return Evaluated(Path("x.pt"), scores, decision, {}, scores.notes)


def table_of(scores: Scores, decision: Decision | None = None) -> Table:
    return class_table([evaluated(scores, decision)], bootstrap=200)


def choose(scores: Scores, policy: str, stored: Decision | None = None, **numbers: Any) -> Decision | None:
    return choose_decision(scores, stored, policy, **({"false_alarms": None, "support_quantile": 0.99} | numbers))


def test_rows_are_the_metrics_of_each_class_and_their_mean() -> None:
    one = evaluation()
    table = table_of(one)
    bolt, nut, mean = table.rows
    rows = np.array([g == "nut" for g in one.groups])
    assert nut["auroc"] == pytest.approx(roc_auc_score(one.labels[rows], one.scores[rows]), abs=1e-9)
    assert mean["auroc"] == pytest.approx((bolt["auroc"] + nut["auroc"]) / 2)
    assert nut["auroc_low"] < nut["auroc"] < nut["auroc_high"]
    assert (nut["images"], nut["anomalous"]) == (60, 20)
    assert "auroc_low" not in mean
    assert "run" not in table.columns


def test_compared_sets_get_a_mean_each() -> None:
    better = evaluation(scores=np.tile([0, 0, 1], 40).astype(float), name="better")
    table = class_table([evaluated(evaluation()), evaluated(better)], bootstrap=200, sets=["a.pt", "b.pt"])
    assert [row["run"] for row in table.rows] == ["demo run"] * 2 + ["better"] * 2 + ["a.pt", "b.pt"]
    assert table.rows[-1]["auroc"] == 1.0


def test_pixel_columns_and_regression() -> None:
    masks = np.zeros((120, 8, 8), dtype=bool)
    masks[2::3, 2:5, 2:5] = True
    row = table_of(evaluation(maps=masks.astype(np.float32), masks=masks)).rows[0]
    assert row["pixel_auroc"] == row["pixel_aupro"] == row["pixel_auroc_low"] == row["pixel_aupro_high"] == 1.0
    noisy = masks * 0.5 + RNG.normal(size=masks.shape)
    table = table_of(evaluation(maps=noisy, masks=masks))
    for row in table.rows[:2]:
        assert row["pixel_ap_low"] < row["pixel_ap"] < row["pixel_ap_high"]
    assert f"{table.rows[0]['pixel_ap']:.3f} [{table.rows[0]['pixel_ap_low']:.3f}, " in table.text()
    assert "pixel_ap_low" not in table.rows[-1]  # an interval of the mean is not the mean of intervals
    target = RNG.normal(size=120)
    table = table_of(evaluation(kind="regression", scores=target + 0.5, labels=target))
    assert table.rows[0]["mae"] == pytest.approx(0.5)
    assert table.rows[0]["mae_low"] == pytest.approx(0.5)


def test_threshold_policies() -> None:
    normal = np.arange(100.0)
    one, stored = evaluation(), Decision(0.7, "stored in training", tuple(normal))
    assert choose(one, "stored", stored) is stored
    assert choose(one, "stored") is None
    assert choose(one, "support-quantile", stored, support_quantile=0.5).threshold == 49.5
    alarms = choose(one, "false-alarms", stored, false_alarms=0.05)
    assert (normal >= alarms.threshold).sum() == 4  # of 100: the 96th of 101 places is the first that keeps 5 %
    assert not alarms.oracle
    for policy in ("f1", "youden", "false-alarms"):
        assert choose(evaluation(), policy).oracle, policy
    fair = choose(evaluation(validation=([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1])), "f1")
    assert (fair.threshold, fair.oracle) == (2.0, False)
    with pytest.raises(UserError, match="support-quantile"):
        choose(evaluation(), "support-quantile")
    with pytest.raises(UserError, match="one label only"):
        choose(evaluation(labels=np.zeros(120)), "youden")


def test_a_decision_counts_normal_scores_at_or_above_and_the_new_one() -> None:
    decision = Decision.of(2.0, "by hand", [3.0, 1.0, 2.0])
    prediction = decision.decide(Prediction(torch.tensor([0.0, 2.0, 2.5, 9.0])))
    assert prediction.anomalous.tolist() == [False, True, True, True]
    assert prediction.p_value.tolist() == [1.0, 0.75, 0.5, 0.25]
    assert Decision.from_plain(decision.plain()) == decision
    assert Decision.of(float("nan"), "no normal data") is None


def test_summary_is_over_all_or_the_mean_of_the_classes() -> None:
    one = evaluation(parts={"text": RNG.random(120)})
    pooled, mean = summary(one), summary(replace(one, averaged=True))
    assert pooled["image_auroc"] == pytest.approx(roc_auc_score(one.labels, one.scores))
    assert pooled["text_auroc"] == pytest.approx(roc_auc_score(one.labels, one.parts["text"]))
    each = [roc_auc_score(one.labels[rows], one.scores[rows]) for rows in (np.arange(60), np.arange(60, 120))]
    assert mean["image_auroc"] == pytest.approx(np.mean(each))
    assert "image_accuracy" not in pooled
    decided = summary(one, Decision(0.5, "by hand"))
    assert decided["image_accuracy"] == pytest.approx(((one.scores >= 0.5) == one.labels).mean())
    found = summary(evaluation(kind="regression", scores=np.array(one.scores) + 0.5, labels=one.scores))
    assert found["test_mae"] == pytest.approx(0.5)


def test_rows_of_predictions_name_the_defect_and_the_decision() -> None:
    one = evaluation(defects=["hole" if label else "good" for label in np.tile([0, 0, 1], 40)])
    rows = prediction_rows(evaluated(one, Decision(0.5, "by hand")))
    assert [row["defect"] for row in rows[:3]] == ["good", "good", "hole"]
    assert all(row["anomalous"] == (row["score"] >= 0.5) for row in rows)
    assert {row["threshold"] for row in rows} == {0.5}
    assert not any({"p_value", "area"} & set(row) for row in rows)  # no column that would stay empty
    maps = np.zeros((120, 4, 4)) + np.asarray(one.scores)[:, None, None]
    promised = Decision.promising(np.linspace(0, 1, 19), 0.05, of="scores", maxima=np.linspace(0, 1, 19))
    rows = prediction_rows(evaluated(replace(one, maps=maps), promised))
    assert all(float(row["area"]) == row["anomalous"] for row in rows)
    assert all(0.05 <= float(row["p_value"]) <= 1 for row in rows)
    assert "threshold" not in prediction_rows(evaluated(one, None))[0]


def test_another_rate_moves_image_and_region() -> None:
    normal = np.linspace(0, 1, 99)
    stored = Decision.promising(normal, 0.05, of="left-out images", maxima=2 * normal)
    asked = choose(evaluation(), "stored", stored, false_alarms=0.1)
    assert (asked.threshold, asked.map_threshold) < (stored.threshold, stored.map_threshold)
    assert asked.source == "at most 10.00% false alarms, from 99 left-out images"
    assert choose(evaluation(), "false-alarms", stored, false_alarms=0.1) == asked
    short = choose(evaluation(), "stored", stored, false_alarms=0.001)
    assert short.short_of(0.001) == [
        "false_alarms=0.001: 99 scores of normal data can promise 1.00% at least, which is used (999 are needed)"
    ]
    assert short.false_alarms == 0.01
    assert asked.short_of(0.1) == []
    with pytest.raises(UserError, match=r"false_alarms=0.1: this detector has no scores of normal data.*calibrate"):
        choose(evaluation(), "stored", Decision(1.0, "by hand"), false_alarms=0.1)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.33, 1.0])
def test_false_alarm_rate_is_kept_with_ties(rate: float) -> None:
    scores = np.round(RNG.random(97), 1)
    threshold = false_alarm_threshold(scores, rate)
    assert (scores >= threshold).mean() <= rate
    below = np.unique(scores[scores < threshold])
    assert not below.size or (scores >= below[-1]).mean() > rate  # no lower threshold would do


def test_oracle_is_said_in_the_notes() -> None:
    one = evaluation(notes=["transductive: scaled over the test set"])
    notes = "\n".join(table_of(one, choose(one, "f1")).notes)
    assert "oracle" in notes
    assert "transductive" in notes


def test_one_class_only_is_not_available_never_zero() -> None:
    text = table_of(evaluation(labels=np.zeros(120, dtype=int))).text()
    assert "n/a" in text
    assert "0.000" not in text


def test_every_form_of_a_table() -> None:
    rows = [
        {"class": "a|b_1 & c", "n": 3, "auroc": 0.98765, "auroc_low": 0.9, "auroc_high": 1.0},
        {"class": "d", "auroc": float("nan")},
    ]
    table = Table(["class", "n", "auroc", "auroc_low", "auroc_high"], rows, ["oracle: yes"])
    assert table.text().splitlines()[2].split() == ["a|b_1", "&", "c", "3", "0.988", "[0.900,", "1.000]"]
    parsed = list(csv.DictReader(io.StringIO(table.csv())))
    assert parsed[0]["auroc"] == "0.98765"
    assert parsed[1] == {"class": "d", "n": "", "auroc": "", "auroc_low": "", "auroc_high": ""}
    assert r"| a\|b_1 & c | 3 | 0.988 [0.900, 1.000] |" in table.markdown()
    assert r"a|b\_1 \& c & 3 & 0.988 [0.900, 1.000] \\" in table.latex()
    assert "oracle: yes" in table.text() + table.markdown() + table.latex()


def test_written_json_has_no_nan(tmp_path: Path) -> None:
    Table(["a"], [{"a": float("nan")}]).write(tmp_path / "t")
    assert json.loads((tmp_path / "t.json").read_text())["rows"] == [{"a": None}]


def test_checkpoints_by_file_folder_and_pattern(tmp_path: Path) -> None:
    for name in ("a/checkpoint.pt", "a/best_model.pt", "b/deep/checkpoint.pt", "c/x.pth", "c/y.pth"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    short = [path.relative_to(tmp_path).as_posix() for path in find_checkpoints(str(tmp_path))]
    assert short == ["a/best_model.pt", "b/deep/checkpoint.pt", "c/x.pth", "c/y.pth"]
    assert find_checkpoints(str(tmp_path / "a/checkpoint.pt")) == [tmp_path / "a/checkpoint.pt"]
    assert len(find_checkpoints(str(tmp_path / "*/*.pth"))) == 2
    assert find_checkpoints(str(tmp_path / "**/checkpoint.pt")) == [
        tmp_path / "a/checkpoint.pt", tmp_path / "b/deep/checkpoint.pt"
    ]  # fmt: skip
    (tmp_path / "a/run.json").write_text(json.dumps({"checkpoint": "elsewhere/checkpoint.pt"}))
    assert find_checkpoints(str(tmp_path / "a")) == [tmp_path / "a/checkpoint.pt"]
    with pytest.raises(UserError, match=r"checkpoint=.*nothing"):
        find_checkpoints(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="is needed"):
        find_checkpoints(None)


def test_names_are_no_markup_of_a_table() -> None:
    table = Table(["class", "auroc"], [{"class": "a|b <i>*x*\nnext & 5%", "auroc": 0.5}], ["two\nlines"])
    markdown = table.markdown().splitlines()
    assert markdown[2] == r"| a\|b \<i\>\*x\* next & 5% | 0.500 |"
    assert markdown[4] == "two lines"
    assert r"a|b <i>*x* next \& 5\% & 0.500 \\" in table.latex()
    assert table.latex().splitlines()[-1] == "% two lines"


def test_few_samples_of_a_kind_are_said() -> None:
    labels = np.array([0] * 12 + [1] * 3)
    one = evaluation(scores=labels * 1.0, labels=labels, paths=[str(i) for i in range(15)], groups=["nut"] * 15)
    assert sample_remarks(one) == ["only 3 anomalous samples"]
    assert sample_remarks(replace(one, labels=labels * 0)) == ["only 0 anomalous samples"]
    assert sample_remarks(evaluation()) == []


def test_a_mean_over_classes_says_which_class_is_small() -> None:
    labels = np.array(([0] * 12 + [1] * 12) * 2 + [0] * 4 + [1] * 12)
    groups = ["bolt"] * 24 + ["nut"] * 24 + ["ring"] * 16
    scores = Scores("demo", "run", labels * 1.0, labels, [str(i) for i in range(64)], groups, averaged=True)
    assert sample_remarks(scores) == ["only 4 normal samples of ring"]
    assert sample_remarks(replace(scores, averaged=False)) == []


def test_a_report_says_nothing_of_the_machine(tmp_path: Path) -> None:
    labels = np.array([0, 1] * 12)
    paths = [(tmp_path / "data" / "nut" / ("good" if i % 2 else "hole") / f"{i}.png").as_posix() for i in range(24)]
    scores = Scores("demo", "run", labels * 1.0, labels, paths, ["nut"] * 24)
    table = class_table([evaluated(scores)], bootstrap=0)
    table.notes.append(f"skipped {paths[0]}: unreadable image")
    page = write_evaluation_report(tmp_path / "report", [evaluated(scores)], table).read_text()
    assert str(tmp_path) not in page
    assert "hole/0.png" in page
    assert "skipped hole/0.png: unreadable image" in page
