"""The engine's helpers, each against values worked out by hand or by torch itself."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from anomaly_lib.engine import distributed
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import TrainState, load_checkpoint, plain, save_checkpoint
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.ema import Ema
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import SCHEDULES, make_schedule
from anomaly_lib.engine.seed import rng_state, seed_everything, set_rng_state
from anomaly_lib.errors import TrainingFailure, UserError
from anomaly_lib.features import MissingFeatures


def problem() -> tuple[nn.Linear, torch.optim.SGD]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_step_clips_true_gradients_and_steps_once() -> None:
    plain_model, plain_opt = problem()
    scaled_model, scaled_opt = problem()
    x = torch.randn(5, 3)
    for model, optimizer, scaler in (
        (plain_model, plain_opt, None),
        (scaled_model, scaled_opt, torch.amp.GradScaler("cpu", init_scale=1024.0)),
    ):
        before = model.weight.detach().clone()
        report = step(model(x).square().sum() * 100, optimizer, scaler=scaler, clip=0.5)
        moved = torch.cat([(model.weight - before).flatten()]).norm()
        assert report.grad_norm > 0.5
        assert moved <= 0.1 * 0.5 + 1e-6  # lr x clipped norm: clipping came after unscaling
        assert model.weight.grad is None
    torch.testing.assert_close(plain_model.weight, scaled_model.weight)


def test_accumulated_parts_equal_the_whole() -> None:
    whole, whole_opt = problem()
    parts, parts_opt = problem()
    x = torch.randn(6, 3)
    step(whole(x).square().mean(), whole_opt)
    step(parts(x[:3]).square().mean() / 2, parts_opt, update=False)
    step(parts(x[3:]).square().mean() / 2, parts_opt)
    torch.testing.assert_close(whole.weight, parts.weight)


def test_non_finite_losses_change_nothing_and_end_in_one_line() -> None:
    model, optimizer = problem()
    before = model.weight.detach().clone()
    guard = NonFiniteGuard(limit=3)
    for _ in range(2):
        assert step(model(torch.ones(1, 3)).sum() * math.nan, optimizer, guard=guard).skipped
    assert torch.equal(model.weight, before)
    step(model(torch.ones(1, 3)).sum(), optimizer, guard=guard)
    assert (guard.total, guard.in_a_row) == (2, 0)
    for _ in range(2):
        step(model(torch.ones(1, 3)).sum() * math.inf, optimizer, guard=guard)
    with pytest.raises(TrainingFailure, match="lower learning_rate="):
        step(model(torch.ones(1, 3)).sum() * math.inf, optimizer, guard=guard)


def test_fp16_scaler_overflow_is_not_a_failure() -> None:
    model, optimizer = problem()
    scaler, guard = torch.amp.GradScaler("cpu", init_scale=2.0**127), NonFiniteGuard(limit=1)
    assert step(model(torch.ones(1, 3)).sum() * 1e3, optimizer, scaler=scaler, guard=guard).skipped
    assert guard.total == 0
    assert scaler.get_scale() < 2.0**127


def test_param_groups_spare_vectors_and_frozen() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    model[2].weight.requires_grad_(False)
    model.register_parameter("text_scale", nn.Parameter(torch.ones(1, 1)))
    groups = param_groups(model, 0.1, lr_of={"text_scale": 0.5})
    by_key = {(g["weight_decay"], g.get("lr")): len(g["params"]) for g in groups}
    assert by_key == {(0.1, None): 1, (0.0, None): 4, (0.1, 0.5): 1}


def test_one_cycle_rises_in_two_steps_where_one_is_asked_for() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, "onecycle", 10, warmup=1)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:2] == pytest.approx([0.04, 1.0])
    assert rates[1:] == sorted(rates[1:], reverse=True)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_resumes_where_it_was(name: str) -> None:
    def make() -> tuple[torch.optim.SGD, object]:
        optimizer = problem()[1]
        return optimizer, make_schedule(optimizer, name, 10, milestones=[4], step_size=3)

    def tick(optimizer: torch.optim.SGD, schedule: object) -> float:
        optimizer.step()
        schedule.step(1.0) if name == "plateau" else schedule.step()  # type: ignore[attr-defined]
        return optimizer.param_groups[0]["lr"]

    straight_opt, straight = make()
    rates = [tick(straight_opt, straight) for _ in range(10)]
    first_opt, first = make()
    for _ in range(5):
        tick(first_opt, first)
    later_opt, later = make()
    later_opt.load_state_dict(first_opt.state_dict())
    later.load_state_dict(first.state_dict())  # type: ignore[attr-defined]
    assert [tick(later_opt, later) for _ in range(5)] == pytest.approx(rates[5:])


def test_warmup_cosine_values() -> None:
    optimizer = problem()[1]
    schedule = make_schedule(optimizer, "cosine", 10, warmup=4, warmup_start_lr=0.02, min_lr=0.01)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(10):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[7] == pytest.approx(0.01 + 0.09 * 0.5)  # half way down
    assert rates[10] == pytest.approx(0.01)
    with pytest.raises(UserError, match="cosine"):
        make_schedule(optimizer, "cosin", 3)


def test_ema_matches_the_formula_and_swaps_back() -> None:
    model = nn.BatchNorm1d(2)
    ema = Ema(model, 0.9, warmup=True)
    expected = model.weight.detach().clone()
    for t in range(1, 5):
        with torch.no_grad():
            model.weight.add_(1.0)
        model.num_batches_tracked += 1
        ema.update(model)
        decay = min(0.9, max(0.0, 1 - (1 + t) ** (-2 / 3)))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(ema.shadow["weight"], expected)
    assert ema.shadow["num_batches_tracked"] == 4
    own = model.weight.detach().clone()
    with ema.applied(model):
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, own)
    other = Ema(nn.BatchNorm1d(2), 0.9)
    other.load_state_dict(ema.state_dict())
    assert other.current_decay() == ema.current_decay()


def test_early_stopping_counts_and_ignores_nan() -> None:
    stopper = EarlyStopping(patience=2)
    improved = [stopper.improved(value, epoch) for epoch, value in enumerate([0.5, math.nan, 0.6, 0.6, 0.55])]
    assert improved == [True, False, True, False, False]
    assert stopper.should_stop
    again = EarlyStopping(patience=2)
    again.load_state_dict(stopper.state_dict())
    assert (again.best, again.best_epoch, again.waited) == (0.6, 2, 2)


def test_rng_state_is_complete_and_plain(tmp_path: Path) -> None:
    import random

    seed_everything(3)
    torch.save(rng_state(), tmp_path / "rng.pt")
    first = (torch.rand(3).tolist(), random.random(), np.random.rand(2).tolist(), np.random.randn())  # noqa: NPY002
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    second = (torch.rand(3).tolist(), random.random(), np.random.rand(2).tolist(), np.random.randn())  # noqa: NPY002
    assert first == second


def test_checkpoint_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    model, optimizer = problem()
    foreign = {"path": tmp_path, "n": np.float64(2.5)}
    good = save_checkpoint(tmp_path / "a.pt", {**TrainState(model, optimizer).to_dict(), **foreign}, system="tiny")
    content = load_checkpoint(good, system="tiny")
    assert (content["path"], content["n"]) == (str(tmp_path), 2.5)
    with pytest.raises(UserError, match="'promptad' was expected"):
        load_checkpoint(good, system="promptad")
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
    whole = good.read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "half.pt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="not a checkpoint of this library"):
        load_checkpoint(tmp_path / "foreign.pt")
    torch.save({**content, "format": 99}, tmp_path / "newer.pt")
    with pytest.raises(UserError, match="newer"):
        load_checkpoint(tmp_path / "newer.pt")
    with pytest.raises(TypeError, match=r"checkpoint\['x'\]\[0\]"):
        plain({"x": [object()]})


def test_disturbed_model_is_restored(tmp_path: Path) -> None:
    model, optimizer = problem()
    step(model(torch.ones(2, 3)).sum(), optimizer)
    path = save_checkpoint(tmp_path / "a.pt", TrainState(model, optimizer).to_dict(), system="tiny")
    weight = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    TrainState(model, optimizer).load_dict(load_checkpoint(path))
    assert torch.equal(model.weight, weight)


def test_epoch_batches_cover_everything_once_and_ranks_share(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = distributed.epoch_batches(11, 4, seed=5, epoch=2)
    assert sorted(torch.cat([b for b, _ in whole]).tolist()) == list(range(11))
    assert [w for _, w in whole] == [1.0, 1.0, 1.0]
    assert not torch.equal(whole[0][0], distributed.epoch_batches(11, 4, seed=5, epoch=3)[0][0])
    monkeypatch.setenv("WORLD_SIZE", "2")
    shards = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        shards.append(distributed.epoch_batches(11, 4, seed=5, epoch=2))
    values = torch.arange(11.0)
    for (full, _), (left, lw), (right, rw) in zip(whole, *shards, strict=True):
        assert sorted(torch.cat([left, right]).tolist()) == sorted(full.tolist())
        ddp_mean = (values[left].mean() * lw + values[right].mean() * rw) / 2
        assert ddp_mean == pytest.approx(float(values[full].mean()))
    assert len(distributed.epoch_batches(11, 4, seed=0, epoch=0, drop_last=True)) == 2


def test_devices_and_precisions() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="device=tpu9"):
        pick_device("tpu9")
    with pytest.raises(UserError, match="CUDA devices"):
        pick_device("cuda:63")
    a = torch.randn(4, 4)
    with autocast_for(torch.device("cpu"), "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with autocast_for(torch.device("cpu"), "fp32"):
        assert (a @ a).dtype == torch.float32
    assert make_scaler(torch.device("cpu"), "fp16").is_enabled()
    assert not make_scaler(torch.device("cpu"), "bf16").is_enabled()


def test_trackers_write_tensorboard_when_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tests.support.tiny_recipe import main

    assert main(["--output-dir", str(tmp_path), "--epochs", "1", "--tensorboard"]) == 0
    assert list((tmp_path / "tensorboard_logs").glob("events*"))
    record = json.loads((tmp_path / "run.json").read_text())
    assert {"torch", "git_commit", "seconds", "argv", "args", "metrics"} <= record.keys()


def test_a_feature_row_damaged_during_a_run_ends_in_one_line(tmp_path: Path) -> None:
    from tests.support.tiny_recipe import Args

    args = Args(output_dir=str(tmp_path))
    run = Run.open("tiny", args, name="tiny")
    with pytest.raises(UserError, match=r"1 of the features .* the same command") as ended, run:
        raise MissingFeatures(["ab" * 32])
    assert "\n" not in str(ended.value)
    assert run.record["status"] == "failed"
    with Run.open("tiny", args, name="tiny") as again:  # the lock is free and the folder can be used
        assert not again.finished
