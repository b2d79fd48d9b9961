"""Scores of any two detectors added up: z-scores, ranks, p-values by Fisher; samples are matched by name."""

from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import combine_pvalues

from anomaly_lib.detect.decision import Decision
from anomaly_lib.errors import UserError
from anomaly_lib.fusion.evidence import EVIDENCE
from anomaly_lib.fusion.names import EVIDENCES
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld import late_fusion
from anomaly_lib.systems.weld.late_fusion import fuse_any, fuse_welds
from anomaly_lib.systems.weld.video_ae.options import FusionArgs

NORMAL = [1.0, 2.0, 3.0, 4.0]


class Fake:
    """A detector of samples by name."""

    honours: frozenset[str] = frozenset()

    def __init__(self, system: str, scores: dict[str, float], normal: list[float] | None = NORMAL) -> None:
        self.system, self.found = system, scores
        self.decision = None if normal is None else Decision.promising(normal, 0.2, of="good welds")

    def items(self, choice: Any) -> Any:
        return choice

    def score(self, _: Any) -> Any:
        labels = [int(name.startswith("bad")) for name in self.found]
        return SimpleNamespace(paths=list(self.found), scores=np.array(list(self.found.values())), labels=labels)


def fused(method: str, *detectors: Fake) -> Any:
    args = FusionArgs(checkpoints=[f"{i}.pt" for i in range(len(detectors))], method=method)
    return fuse_any(args, detectors)  # type: ignore[arg-type]


def test_evidence_on_one_scale() -> None:
    assert tuple(EVIDENCE) == EVIDENCES
    normal, asked = torch.tensor(NORMAL), torch.tensor([0.5, 2.0, 2.5, 9.0])
    spread = torch.tensor(NORMAL).double().std(correction=0)
    torch.testing.assert_close(EVIDENCE["z-score"](normal)(asked.double()), (asked.double() - 2.5) / spread)
    ranks = EVIDENCE["rank"](normal)(asked.double())
    assert ranks.tolist() == sorted(ranks.tolist())
    assert 0 < ranks.min() < ranks.max() < 1
    p = torch.tensor([5 / 5, 4 / 5, 3 / 5, 1 / 5]).double()  # ties count as at or above
    torch.testing.assert_close(EVIDENCE["fisher"](normal)(asked), -2 * p.log())


def test_fishers_sum_is_scipys_statistic() -> None:
    one, other = Fake("a", {"bad": 3.5, "ok": 0.0}), Fake("b", {"bad": 9.0, "ok": 2.5})
    found = fused("fisher", one, other)
    expected = combine_pvalues([2 / 5, 1 / 5], method="fisher").statistic
    assert found.scores["fusion"][0] == pytest.approx(expected)
    assert found.scores["fusion"][1] == pytest.approx(-2 * log(1) - 2 * log(3 / 5))
    assert found.metrics == {"a_auroc": 1.0, "b_auroc": 1.0, "fusion_auroc": 1.0}


@pytest.mark.parametrize("method", EVIDENCES)
def test_samples_are_matched_by_name_whatever_their_order(method: str) -> None:
    one = Fake("film", {"bad1": 3.0, "ok1": 1.0, "bad2": 1.0, "blind": 7.0})
    other = Fake("film", {"ok1": 1.0, "bad2": 4.5, "bad1": 2.0})
    found = fused(method, one, other)
    assert found.ids == ["bad1", "ok1", "bad2"]
    assert found.labels == [1, 0, 1]
    assert found.notes == ["1 samples are left out, not every detector scores them"]
    assert set(found.metrics) == {"film1_auroc", "film2_auroc", "fusion_auroc"}
    assert found.metrics["fusion_auroc"] == 1.0
    assert found.scores["fusion"] == pytest.approx(np.add(found.scores["film1"], found.scores["film2"]).tolist())


def test_what_cannot_be_fused_is_refused() -> None:
    with pytest.raises(UserError, match=r"1\.pt: has no scores of normal data"):
        fused("rank", Fake("a", {"x": 1.0}), Fake("b", {"x": 1.0}, normal=None))
    with pytest.raises(UserError, match="have no sample in common"):
        fused("rank", Fake("a", {"x": 1.0}), Fake("b", {"y": 1.0}))
    for options, said in (
        ({"checkpoints": ["a"]}, "checkpoints=a: fusion needs two or more"),
        ({"checkpoints": ["a", "b"], "causal_checkpoint": "c"}, "causal_checkpoint=c: has no effect beside"),
        ({"checkpoints": ["a", "b"], "statistics": "train"}, "statistics=train: has no effect"),
    ):
        with pytest.raises(UserError, match=said):
            FusionArgs(**options)


def test_two_folds_are_not_fused_since_one_knows_the_others_test_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(folds: int, fold: int) -> Any:
        return lambda *_, **__: SimpleNamespace(args=SimpleNamespace(folds=folds, fold=fold), system="any")

    monkeypatch.setattr(late_fusion, "_checkpoint", lambda *_: None)
    monkeypatch.setattr(late_fusion.causal_film, "load", opened(4, 1))
    for other, told in (((4, 2), "fold 2 of 4"), ((5, 1), "fold 1 of 5"), ((0, 0), "the data's own splits")):
        monkeypatch.setattr(late_fusion.video_ae, "load", opened(*other))
        with pytest.raises(
            UserError, match=f"video_checkpoint=v.pt: trained on {told}, causal_checkpoint= on fold 1 of 4"
        ):
            fuse_welds(FusionArgs(causal_checkpoint="c.pth", video_checkpoint="v.pt"))


@pytest.mark.slow
def test_scores_of_one_fold_are_fused_on_its_own_test_runs(tmp_path: Path) -> None:
    small: dict[str, Any] = {"demo_train": 6, "demo_good": 2, "epochs": 1, "folds": 3}
    best = {}
    for system in ("causal_film", "video_ae"):
        folder = tmp_path / system
        found = SYSTEMS[system].train(SYSTEMS[system].tiny(**small, fold=2, output_dir=str(folder)))
        best[system] = str(found.checkpoint)
    tested = [run.run_id for run in SYSTEMS.load(best["video_ae"]).items().items]
    pair = FusionArgs(causal_checkpoint=best["causal_film"], video_checkpoint=best["video_ae"])
    found = fuse_welds(pair)
    assert found.ids == tested
    assert len(tested) < 8 + 22
    named = fuse_any(FusionArgs(checkpoints=list(best.values())), [SYSTEMS.load(path) for path in best.values()])
    assert named.labels == found.labels
