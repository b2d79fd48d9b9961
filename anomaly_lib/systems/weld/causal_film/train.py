"""Causal-FiLM: train on normal welds how the process determines the result, score by the broken prediction.

Frozen encoders run once over the data (`inputs.py`, `features.py`); the loop below then trains on cached rows.
"""

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.engine import distributed
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import TrainState, save_checkpoint
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.ema import Ema
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.metrics import auroc
from anomaly_lib.models.weld.causal_film import Encodings, parameter_report
from anomaly_lib.systems.weld.causal_film.detector import (
    SYSTEM,
    evaluate,
    load_detector,
    predict,
    report_checkpoint,
    run_name,
)
from anomaly_lib.systems.weld.causal_film.options import Args, resolve, tiny
from anomaly_lib.systems.weld.causal_film.report import diagnose
from anomaly_lib.systems.weld.causal_film.task import TERMS, CausalFiLMTask, build, score_runs
from anomaly_lib.systems.weld.data.manifest import WeldRun, select_runs
from anomaly_lib.systems.weld.ending import already_done, chosen_checkpoint, told
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.inputs import (
    build_features,
    open_runs,
    usable,
    usable_of,
    weld_settings,
    with_sensor_statistics,
)
from anomaly_lib.types import RunResult

BEST = "best_model.pth"


def train(args: Args, *, features: WeldFeatures | None = None) -> RunResult:
    """Train, keep the best epoch by validation AUROC, report on the test split.

    `features` of equal preprocessing and encoders may be handed in, so that several runs share one encoding.
    """
    args = resolve(args)
    device = pick_device(args.device)
    with distributed.process_group(device), Run.open(SYSTEM, args, name=run_name(args)) as run:
        if run.finished:
            return already_done(run)
        settings = weld_settings(args)
        runs = open_runs(args)
        train_runs = select_runs(runs, "train", normal_only=True)
        val_runs = select_runs(runs, "val")
        features = features or build_features(args, device, settings)
        run.note(weights=features.encoders.weights)
        if args.on_error == "skip":
            runs, skipped = features.readable(runs)
            run.note(skipped=skipped)
            train_runs, val_runs = select_runs(runs, "train", normal_only=True), select_runs(runs, "val")
            run.log.line(f"{len(skipped)} unreadable runs are skipped (listed in run.json)")
        settings = with_sensor_statistics(settings, features, train_runs)
        features.settings = settings
        started = time.monotonic()
        features.prepare([*train_runs, *val_runs])
        run.note(encoding_seconds=round(time.monotonic() - started, 2))
        train_runs, val_runs = usable(train_runs, features, run.log.line), usable(val_runs, features, run.log.line)

        seed_everything(args.seed)  # the same initial weights on every rank, whatever was drawn above
        task = build(args, device, dims=features.dims())
        run.log.line(parameter_report(task, features.encoders.parameter_count))
        run.log.line(f"{len(train_runs)} normal runs to train on, {len(val_runs)} to validate")
        if args.text_vector is None and task.criterion.config.lambda_text:
            run.log.line("no --text-vector: the text term is off")
        groups = param_groups(task, args.weight_decay, no_decay=["A_log"])
        optimizer = torch.optim.AdamW(groups, lr=float(args.learning_rate or 0.0))
        schedule = make_schedule(
            optimizer,
            "cosine",
            int(args.epochs or 0),
            warmup=min(args.warmup_epochs, int(args.epochs or 0) // 2),
            warmup_start_lr=min(args.warmup_start_lr, float(args.learning_rate or 0.0)),
            min_lr=min(args.min_lr, float(args.learning_rate or 0.0)),
        )
        state = TrainState(
            model=task,
            optimizer=optimizer,
            scheduler=schedule,
            scaler=make_scaler(device, args.precision),
            ema=Ema(task, args.ema_decay, warmup=args.ema_warmup) if args.ema_decay else None,
            early_stop=EarlyStopping(args.patience),
            extra={"settings": settings.to_dict(), "model_config": task.model.config.to_dict()},
        )
        first = run.restore(state, best_name=BEST)
        apply_overrides(args, optimizer, schedule)
        seed_everything_for_rank(args.seed, first)
        loop(args, run, state, features, train_runs, val_runs, first)
        return finish(args, run, state, features, runs)


def apply_overrides(args: Args, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    """A resumed optimiser brings its old learning rate and decay along: the options given now win."""
    rate = float(args.learning_rate or 0.0)
    for i, group in enumerate(optimizer.param_groups):
        if group["weight_decay"]:
            group["weight_decay"] = args.weight_decay
        group["initial_lr"] = schedule.base_lrs[i] = rate
        group["lr"] = rate * schedule.lr_lambdas[i](schedule.last_epoch)  # the same bits when nothing has changed


def seed_everything_for_rank(seed: int, first_epoch: int) -> None:
    """Ranks above 0 draw their own dropout noise; rank 0 keeps what a resumed checkpoint restored."""
    if distributed.rank() or first_epoch == 0:
        seed_everything(seed + 1 + 7919 * distributed.rank())


def loop(
    args: Args, run: Run, state: TrainState, features: WeldFeatures, train_runs: list[WeldRun], val_runs: list[WeldRun],
    first: int,
) -> None:  # fmt: skip
    """The epochs: one step per batch, average, validate raw and averaged weights, keep the best, stop early."""
    task, optimizer, ema, stopper = state.model, state.optimizer, state.ema, state.early_stop
    assert isinstance(task, CausalFiLMTask) and isinstance(stopper, EarlyStopping)  # noqa: PT018
    assert isinstance(optimizer, torch.optim.Optimizer)
    device = next(task.parameters()).device
    wrapped = distributed.wrap(task, device, find_unused=task.model.config.target_mode != "joint")
    guard, seconds = NonFiniteGuard(), []
    for epoch in range(first, int(args.epochs or 0)):
        if stopper.should_stop:
            break
        started = time.monotonic()
        wrapped.train()
        sums: dict[str, float] = dict.fromkeys((*TERMS, "score"), 0.0)
        scores: list[Tensor] = []
        batches = distributed.epoch_batches(len(train_runs), args.batch_size, seed=args.seed, epoch=epoch)
        for number, (indices, weight) in enumerate(batches):
            batch = features.batch([train_runs[i] for i in indices.tolist()], training=True)
            with autocast_for(device, args.precision):
                terms = wrapped(batch, slow_encodings(args, task, ema, batch))
            step(terms["loss"] * weight, optimizer, scaler=state.scaler, clip=args.grad_clip, guard=guard)  # type: ignore[arg-type]
            if isinstance(ema, Ema):
                ema.update(task)
            for name in TERMS:
                sums[name] += distributed.mean_over_ranks(float(terms[name].detach()) * weight) / len(batches)
            scores.append(terms["score"].cpu())
            if (number + 1) % args.log_every == 0:
                run.log.line(f"epoch {epoch + 1} batch {number + 1}: " + spell(sums, len(batches) / (number + 1)))
        seconds.append(time.monotonic() - started)
        learning_rate = optimizer.param_groups[0]["lr"]
        state.scheduler.step()  # type: ignore[union-attr]
        train_scores = torch.cat(scores)
        row = {name: sums[name] for name in TERMS} | {
            "lr": learning_rate,
            "train_score": float(train_scores.mean()), "train_score_std": float(train_scores.std()),
            "global_step": float((epoch + 1) * len(batches)),
        }  # fmt: skip
        row |= validate(args, task, ema, features, val_runs)
        better = stopper.improved(row["val_auroc"], epoch)
        if better:
            state.best = {"epoch": epoch + 1, "val_auroc": row["val_auroc"]}
        run.log.line(f"epoch {epoch + 1}: {spell(row)} ({seconds[-1]:.2f} s){' *' if better else ''}")
        if better:  # before end_epoch: a kill in between repeats the epoch, and no best epoch is ever lost
            save_best(run, state, epoch + 1, row)
        run.end_epoch(state, epoch, row)
    if seconds:
        run.note(epoch_seconds=round(statistics.median(seconds), 3))
        once = f"encoded once in {run.record.get('encoding_seconds', 0.0)} s; "
        how = "every batch encoded anew" if features.cache == "off" else once + "backbones untouched since"
        run.log.line(f"training an epoch took {statistics.median(seconds):.2f} s (median; {how})")


def slow_encodings(args: Args, task: CausalFiLMTask, ema: Any, batch: dict[str, Any]) -> Encodings | None:
    if args.target_mode != "ema_target" or not isinstance(ema, Ema):
        return None
    with ema.applied(task), torch.no_grad():
        return task.model(batch)  # type: ignore[no-any-return]


def spell(values: dict[str, float], scale: float = 1.0) -> str:
    shown = [name for name in ("loss", "cos", "l1", "text", "lr", "val_auroc", "val_auroc_raw") if name in values]
    return ", ".join(f"{name} {values[name] * (scale if name in TERMS else 1):.4g}" for name in shown)


def validate(
    args: Args, task: CausalFiLMTask, ema: Any, features: WeldFeatures, runs: list[WeldRun]
) -> dict[str, float]:
    """Validation figures of the averaged weights (`val_auroc`) and of the raw ones (`val_auroc_raw`)."""
    labels = torch.tensor([run.label for run in runs])

    def measure() -> dict[str, Tensor]:
        return score_runs(task, features, runs, batch_size=args.batch_size, precision=args.precision)

    raw = measure()
    shown = raw
    if isinstance(ema, Ema):
        with ema.applied(task):
            shown = measure()
    score = shown["score"]
    return {
        **{f"val_{name}": float(shown[name]) for name in TERMS},
        "val_auroc": auroc(score, labels),
        "val_auroc_raw": auroc(raw["score"], labels),
        "val_score": float(score.mean()),
        "val_score_std": float(score.std()),
        "val_score_min": float(score.min()),
        "val_score_max": float(score.max()),
        "collapse": float(shown["collapse"]),
    }


def save_best(run: Run, state: TrainState, epochs_done: int, row: dict[str, float] | None = None) -> None:
    """best_model.pth: everything a checkpoint has, and the bare weights under the names the original uses."""
    if not distributed.is_main():
        return
    task, ema = state.model, state.ema
    assert isinstance(task, CausalFiLMTask)
    own = task.model.state_dict()
    averaged = ema.shadow if isinstance(ema, Ema) else task.state_dict()
    payload = {
        **run.payload(state, epochs_done),
        "history": state.history + ([{"epoch": epochs_done - 1, **row}] if row else []),
        "model_state_dict": own,  # tensors shared with `model`: they are stored once
        "ema_state_dict": {name: averaged[f"model.{name}"] for name in own},
    }
    save_checkpoint(run.dir / BEST, payload, system=SYSTEM)


def finish(args: Args, run: Run, state: TrainState, features: WeldFeatures, runs: list[WeldRun]) -> RunResult:
    """Report the chosen checkpoint on validation and test, raw beside averaged."""
    if not state.history:  # --epochs 0: there is no best epoch, the initial weights are the result
        save_best(run, state, 0)
    distributed.barrier()
    run.save(state, len(state.history))
    distributed.barrier()
    final = chosen_checkpoint(run, args.select, BEST)
    test_runs = usable_of(runs, features, "test", run.log.line)
    metrics: dict[str, float] = {}
    if distributed.is_main():
        for line in diagnose(state.history):
            run.log.line(line)
        metrics = report_checkpoint(run, features, final, test_runs, runs)
    return told(run, run.finish(state, metrics, final=final))


__all__ = ["Args", "build", "evaluate", "load_detector", "predict", "tiny", "train"]
