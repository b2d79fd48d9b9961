"""--fusion-in-loss: the loss by hand, what counts as normal and as a defect, and that it teaches."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from anomaly_lib.data.demo.items import write_demo
from anomaly_lib.errors import UserError
from anomaly_lib.models.promptad.config import ScoreConfig
from anomaly_lib.models.promptad.model import PromptAD
from anomaly_lib.models.promptad.scores import Scoring
from anomaly_lib.systems.promptad.data import open_task, synthetic_anomalies
from anomaly_lib.systems.promptad.features import Towers
from anomaly_lib.systems.promptad.fusion_loss import PASTED_PER_IMAGE, FusedRanking, fused_ranking
from anomaly_lib.systems.promptad.options import Args, tiny
from anomaly_lib.systems.promptad.train import train
from anomaly_lib.systems.registry import SYSTEMS


@pytest.mark.parametrize("mode", ["harmonic", "max"])
def test_ranking_by_hand(mode: str) -> None:
    torch.manual_seed(0)
    features, prototypes = F.normalize(torch.randn(5, 8), dim=-1), F.normalize(torch.randn(2, 8), dim=-1)
    visual = torch.rand(5)
    pasted, normal = torch.tensor([0, 0, 1, 1, 0]).bool(), torch.tensor([1, 1, 0, 0, 0]).bool()
    ranking = FusedRanking(features, visual, pasted, normal, Scoring(ScoreConfig(fusion_mode=mode)))
    fused = []
    for feature, seen in zip(features, visual.tolist(), strict=True):
        said = float((4.6 * prototypes @ feature).softmax(0)[1])
        fused.append(max(said, seen) if mode == "max" else 1 / (1 / said + 1 / seen))
    spread = float(torch.tensor(fused[:4]).std())  # the fifth is neither
    pairs = [math.log1p(math.exp(-(fused[a] - fused[n]) / spread)) for a in (2, 3) for n in (0, 1)]
    assert float(ranking(prototypes, torch.tensor(4.6))) == pytest.approx(sum(pairs) / 4, rel=1e-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_demo(root, categories=["grid"], size=64, train=4, test_good=3, per_defect=1)
    return root


@pytest.mark.parametrize("task", ["cls", "seg"])
def test_every_image_is_judged_without_itself(task: str, data: Path) -> None:
    args = tiny(task=task, shot=2, dataset="mvtec", data_path=str(data), fusion_in_loss=True)
    task_data, towers = open_task(args), Towers(args, torch.device("cpu"))
    model = PromptAD(args, towers=towers, class_name="grid")
    support = towers.features(task_data.support, test=False)
    model.remember(support.gallery_rows())
    ranking = fused_ranking(args, task_data, towers, model, support)
    items = synthetic_anomalies(task_data.support, PASTED_PER_IMAGE, args.seed + 1)
    copies = towers.features(items, test=False)
    second = model.branches(support[[1]], galleries=support[[0]].gallery_rows()).visual
    copy = model.branches(copies[[PASTED_PER_IMAGE]], galleries=support[[0]].gallery_rows()).visual  # of the second
    assert ranking.visual.shape[0] == 2 + 2 * PASTED_PER_IMAGE
    torch.testing.assert_close(ranking.visual[1], second[0].flatten() if task == "seg" else second[0])
    torch.testing.assert_close(ranking.visual[2 + PASTED_PER_IMAGE], copy[0].flatten() if task == "seg" else copy[0])
    assert not (ranking.pasted & ranking.normal).any()
    assert ranking.normal[:2].all()
    assert not ranking.normal[2:].any()
    assert ranking.pasted[2:].reshape(len(items), -1).any(1).all()
    if task == "seg":  # by hand; untouched patches of pasted images are neither normal nor defects
        for found, item in zip(ranking.pasted[2:], items, strict=True):
            covered = torch.as_tensor(item.mask).float().unfold(0, 16, 16).unfold(1, 16, 16).mean((2, 3)).flatten()
            assert found.tolist() == (covered >= min(0.5, float(covered.max()))).tolist()


def test_it_teaches_the_fusion_that_scores(data: Path, tmp_path: Path) -> None:
    common = {"dataset": "mvtec", "data_path": str(data), "obj": "grid", "shot": 2, "learning_rate": 0.05, "epochs": 4}
    contexts = {}
    for name, more in {
        "plain": {}, "harmonic": {"fusion_in_loss": True}, "max": {"fusion_in_loss": True, "fusion_mode": "max"}
    }.items():  # fmt: skip
        result = train(tiny(**common, **more, output_dir=str(tmp_path / name)))
        contexts[name] = torch.load(result.checkpoint, weights_only=True)["model"]["learner.normal_ctx"]
        history = torch.load(result.checkpoint, weights_only=True)["history"]
        assert ("fusion" in history[0]) == ("fusion_in_loss" in more)
        if more:
            assert history[-1]["fusion"] < history[0]["fusion"]
    assert not torch.equal(contexts["plain"], contexts["harmonic"])
    assert not torch.equal(contexts["harmonic"], contexts["max"])
    detector = SYSTEMS.load(tmp_path / "max" / "checkpoint.pt", device="cpu")
    assert "extension: the fused score of pasted defects was a part of the loss" in detector.facts.notes
    assert any("its contexts were trained for that fusion" in note for note in detector.with_fusion("mean").facts.notes)


def test_scores_that_cannot_be_learned_are_refused() -> None:
    with pytest.raises(UserError, match="fusion_mode=rank is no differentiable score"):
        Args(fusion_in_loss=True, fusion_mode="rank")
    with pytest.raises(UserError, match="fusion_in_loss=True: has no effect without calibration=none"):
        Args(fusion_in_loss=True, calibration="z-score")
