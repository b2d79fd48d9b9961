"""Tables, thresholds and confidence intervals behind evaluate.py, on values worked out by hand or by scikit-learn."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from anomaly_lib.detect.contract import EvaluateArgs, Evaluation
from anomaly_lib.detect.scoring import class_table
from anomaly_lib.detect.tables import Table
from anomaly_lib.detect.thresholds import choose_threshold, false_alarm_threshold
from anomaly_lib.errors import UserError
from anomaly_lib.evaluation.evaluate import find_checkpoints

RNG = np.random.default_rng(0)
ARGS = EvaluateArgs(bootstrap=200)


def evaluation(**changes) -> Evaluation:
    labels = np.tile([0, 0, 1], 40)
    scores = RNG.normal(labels * 1.2, 1.0)
    groups = ["nut" if i < 60 else "bolt" for i in range(120)]
    base = Evaluation("demo", "demo run", {}, scores, labels, [f"{i}.png" for i in range(120)], groups)
    return replace(base, **changes)


def test_rows_are_the_metrics_of_each_class_and_their_mean() -> None:
    one = evaluation()
    table = class_table([(one, None)], ARGS)
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
    table = class_table([(evaluation(), None), (better, None)], ARGS, sets=["a.pt", "b.pt"])
    assert [row["run"] for row in table.rows] == ["demo run"] * 2 + ["better"] * 2 + ["a.pt", "b.pt"]
    assert table.rows[-1]["auroc"] == 1.0


def test_pixel_columns_and_regression() -> None:
    masks = np.zeros((120, 8, 8), dtype=bool)
    masks[2::3, 2:5, 2:5] = True
    row = class_table([(evaluation(maps=masks.astype(np.float32), masks=masks), None)], ARGS).rows[0]
    assert row["pixel_auroc"] == row["pixel_aupro"] == row["pixel_auroc_low"] == row["pixel_aupro_high"] == 1.0
    noisy = masks * 0.5 + RNG.normal(size=masks.shape)
    table = class_table([(evaluation(maps=noisy, masks=masks), None)], ARGS)
    for row in table.rows[:2]:
        assert row["pixel_ap_low"] < row["pixel_ap"] < row["pixel_ap_high"]
    assert f"{table.rows[0]['pixel_ap']:.3f} [{table.rows[0]['pixel_ap_low']:.3f}, " in table.text()
    assert "pixel_ap_low" not in table.rows[-1]  # an interval of the mean is not the mean of intervals
    target = RNG.normal(size=120)
    table = class_table([(evaluation(kind="regression", scores=target + 0.5, labels=target), None)], ARGS)
    assert table.rows[0]["mae"] == pytest.approx(0.5)
    assert table.rows[0]["mae_low"] == pytest.approx(0.5)


def test_threshold_policies() -> None:
    normal = np.arange(100.0)
    one = evaluation(threshold=0.7, normal_scores=normal)
    stored = choose_threshold(one, ARGS)
    assert (stored.value, stored.oracle) == (0.7, False)
    assert choose_threshold(replace(one, threshold=None), ARGS) is None
    quantile = choose_threshold(one, replace(ARGS, policy="support-quantile", support_quantile=0.5))
    assert quantile.value == 49.5
    alarms = choose_threshold(one, replace(ARGS, policy="false-alarms", false_alarms=0.05))
    assert (normal >= alarms.value).sum() == 5
    assert not alarms.oracle
    for policy in ("f1", "youden", "false-alarms"):
        assert choose_threshold(evaluation(), replace(ARGS, policy=policy)).oracle, policy
    fair = choose_threshold(evaluation(validation=([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1])), replace(ARGS, policy="f1"))
    assert (fair.value, fair.oracle) == (2.0, False)
    with pytest.raises(UserError, match="support-quantile"):
        choose_threshold(evaluation(), replace(ARGS, policy="support-quantile"))
    with pytest.raises(UserError, match="one label only"):
        choose_threshold(evaluation(labels=np.zeros(120)), replace(ARGS, policy="youden"))


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.33, 1.0])
def test_false_alarm_rate_is_kept_with_ties(rate: float) -> None:
    scores = np.round(RNG.random(97), 1)
    threshold = false_alarm_threshold(scores, rate)
    assert (scores >= threshold).mean() <= rate
    below = np.unique(scores[scores < threshold])
    assert not below.size or (scores >= below[-1]).mean() > rate  # no lower threshold would do


def test_oracle_is_said_in_the_notes() -> None:
    args = replace(ARGS, policy="f1")
    one = evaluation(notes=["transductive: scaled over the test set"])
    notes = "\n".join(class_table([(one, choose_threshold(one, args))], args).notes)
    assert "oracle" in notes
    assert "transductive" in notes


def test_one_class_only_is_not_available_never_zero() -> None:
    text = class_table([(evaluation(labels=np.zeros(120, dtype=int)), None)], ARGS).text()
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
    with pytest.raises(UserError, match=r"--checkpoint .*nothing"):
        find_checkpoints(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="is needed"):
        find_checkpoints(None)
