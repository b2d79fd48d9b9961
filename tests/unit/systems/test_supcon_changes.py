"""What V4 changes in its training data and learns beforehand: disturbances, drawn defects, pre-training."""

from collections.abc import Iterator

import pytest
import torch

from anomaly_lib.engine.checkpoint import load_checkpoint
from anomaly_lib.models.weld.tasks import MaskedSensors, MaskedTokens
from anomaly_lib.systems.weld.data.augment import augment_weld
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.inputs import build_features
from anomaly_lib.systems.weld.supcon import task as supcon_task
from anomaly_lib.systems.weld.supcon.options import tiny
from anomaly_lib.systems.weld.supcon.pretraining import masked_tasks, pretrain
from anomaly_lib.systems.weld.supcon.task import build, objective, open_runs, quad_batch
from anomaly_lib.systems.weld.supcon.train import make_sampler, train


@pytest.fixture(scope="module")
def shared() -> WeldFeatures:
    return build_features(tiny(), torch.device("cpu"))


@pytest.fixture
def features(shared: WeldFeatures) -> Iterator[WeldFeatures]:
    yield shared
    shared.augment, shared.disturb = None, 0.0


def test_disturbances_reach_training_batches_alone_and_repeat_by_seed(features: WeldFeatures) -> None:
    runs = open_runs(tiny())[:6]
    features.prepare(runs)
    plain = quad_batch(features, runs, training=True)
    features.disturb = 0.5
    torch.manual_seed(0)
    changed = quad_batch(features, runs, training=True)
    torch.manual_seed(0)
    again = quad_batch(features, runs, training=True)
    moved = [not torch.equal(a, b) for a, b in zip(plain["sensors"], changed["sensors"], strict=True)]
    assert any(moved)
    assert not all(moved)
    assert changed["sensors"].shape == plain["sensors"].shape
    assert torch.equal(changed["sensors"], again["sensors"])
    assert torch.equal(changed["audio"], plain["audio"])  # its tokens are stored
    assert torch.equal(quad_batch(features, runs)["sensors"], plain["sensors"])  # not what validates and tests


def test_sound_is_disturbed_where_it_is_encoded_anew(features: WeldFeatures) -> None:
    (run,) = open_runs(tiny())[:1]
    plain, disturbed = (features.load_part(run, "audio", seed)["audio"] for seed in (None, 3))
    assert disturbed.shape == plain.shape
    assert not torch.equal(disturbed, plain)
    assert torch.equal(features.load_part(run, "audio", 3)["audio"], disturbed)
    features.prepare([run])
    stored = quad_batch(features, [run])
    features.augment = augment_weld  # with the cache on
    torch.manual_seed(0)
    first, second = (quad_batch(features, [run], training=True) for _ in range(2))
    for name in ("video", "audio", "images"):
        assert not torch.equal(first[name], second[name])
        assert torch.equal(quad_batch(features, [run])[name], stored[name])


def test_drawn_defects_are_learnt_from_but_are_nobodys_neighbours(shared: WeldFeatures, tmp_path) -> None:
    plain, drawn = (
        load_checkpoint(
            train(tiny(epochs=1, output_dir=str(tmp_path / str(each)), drawn_defects=each), features=shared).checkpoint
        )
        for each in (0, 2)
    )
    assert len(plain["extra"]["bank"]["classes"]) == len(drawn["extra"]["bank"]["classes"]) == 14
    name = "model.fusion.project.images.weight"
    assert not torch.equal(plain["model"][name], drawn["model"][name])
    assert torch.equal(plain["model"]["model.scale.images.mean"], drawn["model"]["model.scale.images.mean"])
    assert "8 training runs with drawn defects" in (tmp_path / "2" / "log.txt").read_text()


def test_mixed_features_are_learnt_with_both_labels(shared: WeldFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = open_runs(tiny())[:4]
    shared.prepare(runs)
    batch, labels = quad_batch(shared, runs), torch.tensor([0, 1, 2, 3])
    args = tiny(mixup=0.2)
    task = build(args, shared).eval()

    def halves(features: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor, float]:
        assert alpha == 0.2
        return features.flip(0), torch.tensor([3, 2, 1, 0]), 0.25

    monkeypatch.setattr(supcon_task, "mixup", halves)
    found = objective(args, task, batch, labels, None)["ce"]
    logits = task.model.heads(task.model(batch)["embedding"].flip(0))["logits"]
    ce = torch.nn.functional.cross_entropy
    torch.testing.assert_close(found, 0.25 * ce(logits, labels) + 0.75 * ce(logits, labels.flip(0)))


@pytest.mark.parametrize(("names", "kinds"), [
    (["sensors"], [MaskedSensors]),
    (["video", "audio"], [MaskedTokens]),
    (["images", "sensors"], [MaskedSensors, MaskedTokens]),
])  # fmt: skip
def test_each_modality_has_its_masked_task(shared: WeldFeatures, names: list[str], kinds: list[type]) -> None:
    args = tiny(pretrain="masked", pretrain_on=names, pretrain_epochs=2)
    torch.manual_seed(0)
    task, said = build(args, shared), []
    assert [type(one) for one in masked_tasks(task, names)] == kinds
    runs = [run for run in open_runs(args) if run.split == "train"]
    shared.prepare(runs)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    pretrain(args, task, shared, runs, make_sampler(args, runs), said.append)
    moved = {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}
    assert ("model.sensor.embed.weight" in moved) == ("sensors" in names or MaskedTokens in kinds)
    assert ("model.fusion.mix.0.weight" in moved) == (MaskedTokens in kinds)
    assert not any(name.startswith("model.classifier") for name in moved)
    assert len(said) == 2
    assert said[0].startswith(f"masked ({', '.join(names)}) epoch 1: loss ")
