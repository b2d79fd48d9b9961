"""What moves the weights of the crystal model: learning rates, the scale's own rate, the contrastive loss."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anomaly_lib.files import read_json
from anomaly_lib.losses import info_nce_loss
from anomaly_lib.models.crystal import CrystalFusionModel, CrystalOutput, batch_graphs
from anomaly_lib.systems.crystal import train as crystal
from anomaly_lib.systems.crystal.data.dataset import CrystalTable
from anomaly_lib.systems.crystal.data.demo import demo_table
from anomaly_lib.systems.crystal.data.graph import GraphBuilder
from anomaly_lib.systems.crystal.detector import network
from anomaly_lib.systems.crystal.options import Args, tiny
from anomaly_lib.systems.crystal.train import loss_of, make_learner, scales_of

CPU = torch.device("cpu")


def rates_of(args: Args, steps: int) -> dict[str, list[float]]:
    """Learning rate of the scale and of everything else at each step of a run of ten epochs."""
    model = network(args, text_features=8)
    learner = make_learner(model, args, steps, CPU)
    scale = model.get_parameter("middle_fusion_modules.layer_1.text_scale")
    groups = learner.optimizer.param_groups
    own = next(g for g in groups if any(p is scale for p in g["params"]))
    assert own["weight_decay"] == 0
    found: dict[str, list[float]] = {"scale": [], "rest": []}
    for _ in range(steps * args.epochs):
        found["scale"].append(own["lr"])
        found["rest"].append(groups[0]["lr"])
        learner.optimizer.step()
        learner.scheduler.step()
    return found


def test_warmup_steps_and_the_scales_own_rate() -> None:
    args = tiny(epochs=10, warmup_steps=20, learning_rate=1e-3)
    rates = rates_of(args, 20)
    peak = max(range(200), key=rates["rest"].__getitem__)
    assert abs(peak - 20) <= 1
    assert rates["rest"][peak] == pytest.approx(1e-3)
    assert rates["scale"][peak] == pytest.approx(20e-3)
    assert rates["rest"][0] < 1e-4
    assert rates["rest"][-1] < 1e-5
    most = rates_of(replace(args, warmup_steps=2000), 20)["rest"]  # never more than 30 % of the run
    assert abs(max(range(200), key=most.__getitem__) - 60) <= 1
    paper = rates_of(tiny(epochs=10, warmup_steps=20, protocol="paper"), 20)
    assert abs(max(range(200), key=paper["rest"].__getitem__) - 60) <= 1  # as published: ignored
    assert paper["scale"] == pytest.approx(paper["rest"])
    assert max(rates_of(replace(args, scale_learning_rate=0.5), 20)["scale"]) == pytest.approx(0.5)


def test_contrastive_loss_is_added_as_weighted() -> None:
    args = tiny(use_contrastive=True, contrastive_weight=0.3, contrastive_temperature=0.2)
    graph, text, target = torch.randn(5, 6), torch.randn(5, 6), torch.randn(5)
    output = CrystalOutput(torch.zeros(5), graph, text)
    want = target.square().mean() + 0.3 * info_nce_loss(graph, text, temperature=0.2)
    loss, contrast = loss_of(output, target, args)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(contrast, info_nce_loss(graph, text, temperature=0.2))  # logged before its weight
    alone, none = loss_of(output, target, replace(args, use_contrastive=False))
    torch.testing.assert_close(alone, target.square().mean())
    assert none is None


def test_contrastive_vectors_are_graph_and_text_not_what_was_fused() -> None:
    """As published the graph vector had been overwritten by the fused one; here it knows nothing of the text."""
    graph = batch_graphs([GraphBuilder()(row.source) for row in demo_table(count=4, seed=5).rows])
    model = CrystalFusionModel(
        alignn_layers=1, gcn_layers=1, hidden_features=8, text_features=6, use_cross_modal=False
    ).eval()
    with torch.no_grad():
        one, other = model(graph, torch.randn(4, 6)), model(graph, torch.randn(4, 6))
    assert not torch.allclose(one.prediction, other.prediction)
    assert torch.equal(one.graph, other.graph)
    assert not torch.allclose(one.text, other.text)


def test_scales_are_named_by_module() -> None:
    model = network(tiny(middle_fusion_initial_scale=12.0), text_features=8)
    assert scales_of(model) == {"text_scale_layer_1": 12.0}


@pytest.mark.parametrize("classes", [False, True])
def test_histories_hold_the_error_and_each_term_of_the_loss(classes: bool, tmp_path: Path) -> None:
    if classes:
        rows = [replace(row, target=float(row.target > 0)) for row in demo_table(seed=0).rows]
        monkey = pytest.MonkeyPatch()
        monkey.setattr(crystal, "data_table", lambda _: CrystalTable(rows))
    args = tiny(output_dir=str(tmp_path), device="cpu", use_contrastive=True, classification=classes)
    folder = crystal.train(args).run_dir
    if classes:
        monkey.undo()
    own = "accuracy" if classes else "mae"
    trained, chosen = (read_json(folder / f"history_{part}.json") for part in ("train", "val"))
    assert list(trained) == ["loss", own, "contrastive"]
    assert {"loss", own} <= set(chosen)
    assert all(len(values) == args.epochs for values in [*trained.values(), *chosen.values()])
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["train_contrastive"] for row in logged] == trained["contrastive"]
    assert min(trained["contrastive"]) > 0
    if not classes:
        scale = torch.load(folder / "checkpoint.pt", weights_only=True)["extra"]["target_scale"]
        assert chosen["loss"][-1] == pytest.approx((chosen["rmse"][-1] / scale["std"]) ** 2, rel=1e-4)
        # the error is that of the property, not of the standardised target: squared and rescaled it is below the loss
        assert trained["mae"][-1] / scale["std"] < (trained["loss"][-1]) ** 0.5
