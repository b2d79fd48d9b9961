"""Causal-FiLM: train on normal welds how the process determines the result, score by the broken prediction.

Frozen encoders run once over the data (`inputs.py`, `features.py`); the loop below then trains on cached rows.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.config import given_options
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.decision import in_words
from anomaly_lib.detect.scores import Scores, sample_remarks, summary
from anomaly_lib.engine import distributed
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import Checkpoint, TrainState, add_to_checkpoint, load_checkpoint
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.ema import Ema
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.engine.resume import resumed
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.metrics import auroc
from anomaly_lib.models.weld.causal_film import Encodings, parameter_report
from anomaly_lib.systems.weld.causal_film.detector import SYSTEM, CausalFiLMDetector, load, run_name
from anomaly_lib.systems.weld.causal_film.explain import fit_normal
from anomaly_lib.systems.weld.causal_film.options import Args
from anomaly_lib.systems.weld.causal_film.report import diagnose, draw_run, single_modality_lines
from anomaly_lib.systems.weld.causal_film.stages import stage_table
from anomaly_lib.systems.weld.causal_film.task import TERMS, CausalFiLMTask, build, measure_runs
from anomaly_lib.systems.weld.causal_film.text import text_vector
from anomaly_lib.systems.weld.costs import encoding_costs, learning_words
from anomaly_lib.systems.weld.cross_validation import cross_validate
from anomaly_lib.systems.weld.data.manifest import WeldRun, select_runs
from anomaly_lib.systems.weld.detector import validation_decision
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.figures import auroc_line
from anomaly_lib.systems.weld.inputs import build_features, data_fingerprint, data_words, open_runs, usable
from anomaly_lib.types import RunResult

BEST = "best_model.pth"


@dataclass
class Learner:
    """The task and what moves its weights."""

    task: CausalFiLMTask
    optimizer: torch.optim.AdamW
    schedule: Any
    scaler: torch.amp.GradScaler
    ema: Ema | None
    stopper: EarlyStopping


@dataclass
class WeldState(TrainState):
    """A checkpoint that also holds the bare weights under the names of the document."""

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        trained = content["model"]
        averaged = trained if content["ema"] is None else content["ema"]["shadow"]
        for name, state in (("model_state_dict", trained), ("ema_state_dict", averaged)):
            content[name] = {key.removeprefix("model."): t for key, t in state.items() if key.startswith("model.")}
        return content  # the tensors are shared with `model` and `ema`: they are stored once


def train(args: Args, *, features: WeldFeatures | None = None) -> RunResult:
    """Train, keep the best epoch by validation AUROC, report on the test split.

    `features` of equal preprocessing and encoders may be handed in, so that several runs share one encoding.
    """
    args, device = resumed(SYSTEM, args), pick_device(args.device)
    if args.folds and not args.fold:
        shared = features or build_features(args, device)
        return cross_validate(
            SYSTEM, args, run_name(args), lambda one: train(one, features=shared),
            lambda path: load(Checkpoint(path, load_checkpoint(path, system=SYSTEM)), features=shared),
        )  # fmt: skip
    runs = open_runs(args)
    data = data_fingerprint(runs, args, args.text_vector)
    opened = Run.open(SYSTEM, args, name=run_name(args), data=data, kept=[BEST])
    with distributed.process_group(device), opened as run:
        if run.finished:
            return run.repeat()
        features = features or build_features(args, device)
        run.opening(
            f"Causal-FiLM ({args.preset}): how the process of a normal weld determines its result",
            weights=features.encoders.weights,
            cost=cost(args, runs, features),
            data=data_words(args),
        )
        for line in stage_table(args) if "preset" in given_options(args) else ():
            run.log.line(line)
        if args.on_error == "skip":
            runs, skipped = features.readable(runs)
            run.note(skipped=skipped)
            run.log.line(f"{len(skipped)} unreadable runs are skipped (listed in run.json)")
        train_runs, val_runs = encode(args, run, runs, features)
        text = run.saved["model"].get("criterion.text") if run.saved else text_vector(args, run.dir, run.log.line)
        seed_everything(args.seed)  # the same initial weights on every rank, whatever was drawn above
        learner = make_learner(args, build(args, features, text=text), device)
        features = features.seen_by(learner.task.tops)
        for line in learning_words(args, features, learner.task.tops, batch_size=args.batch_size):
            run.log.line(line)
        run.log.line(parameter_report(learner.task, features.encoders.parameter_count, fixed=learner.task.fixed))
        run.log.line(f"{len(train_runs)} normal runs to train on, {len(val_runs)} to validate")
        state = WeldState(
            model=learner.task,
            optimizer=learner.optimizer,
            scheduler=learner.schedule,
            scaler=learner.scaler,
            ema=learner.ema,
            early_stop=learner.stopper,
            extra={"sensor_statistics": features.sensor_statistics},
        )
        first = run.restore(state)
        apply_overrides(args, learner)
        if distributed.rank() or first == 0:  # ranks above 0 draw their own noise; rank 0 keeps what was restored
            seed_everything(args.seed + 1 + 7919 * distributed.rank())
        loop(args, run, state, learner, features, train_runs, val_runs, first)
        return finish(args, run, state, features, runs)


def cost(args: Args, runs: list[WeldRun], features: WeldFeatures) -> list[str]:
    """What the run will take, for its opening."""
    frozen = f"three frozen encoders ({features.encoders.parameter_count:,} parameters)"
    if args.cache == "off":
        return [f"{args.epochs} epochs that each encode every weld anew with {frozen}"]
    return [f"{len(runs)} welds to encode once with {frozen}, then {args.epochs} epochs on cached features"]


def encode(
    args: Args, run: Run, runs: list[WeldRun], features: WeldFeatures
) -> tuple[list[WeldRun], list[WeldRun]]:  # fmt: skip
    """The usable normal training runs and validation runs, their features in the store."""
    train_runs, val_runs = select_runs(runs, "train", normal_only=True), select_runs(runs, "val")
    features.read_sensors([*train_runs, *val_runs], run.log.line)
    features.fit_sensors(train_runs, args.sensor_norm)
    everything = [*train_runs, *val_runs, *select_runs(runs, "test")]
    for line in encoding_costs(features, everything, batch_size=args.batch_size):
        run.log.line(f"cost: {line}")
    started = time.monotonic()
    features.prepare([*train_runs, *val_runs])
    run.note(encoding_seconds=round(time.monotonic() - started, 2))
    return usable(train_runs, features, run.log.line), usable(val_runs, features, run.log.line)


def make_learner(args: Args, task: CausalFiLMTask, device: torch.device) -> Learner:
    """AdamW with warm-up and cosine decay, weight averaging, early stopping."""
    groups = param_groups(task, args.weight_decay, no_decay=["A_log"], lr_of={"tops.": args.encoder_lr})
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)
    lowest = min(group["lr"] for group in optimizer.param_groups)
    schedule = make_schedule(
        optimizer,
        "cosine",
        args.epochs,
        warmup=min(args.warmup_epochs, args.epochs // 2),
        warmup_start_lr=min(args.warmup_start_lr, lowest),
        min_lr=min(args.min_lr, lowest),
    )
    ema = Ema(task, args.ema_decay, warmup=args.ema_warmup) if args.ema_decay else None
    return Learner(
        task, optimizer, schedule, make_scaler(device, args.precision), ema, EarlyStopping(args.patience)
    )  # fmt: skip


def apply_overrides(args: Args, learner: Learner) -> None:
    """A resumed optimiser brings its old learning rate and decay along: the options given now win."""
    schedule, tops = learner.schedule, learner.task.tops
    own = set() if tops is None else {id(parameter) for parameter in tops.parameters()}
    for i, group in enumerate(learner.optimizer.param_groups):
        rate = args.encoder_lr if id(group["params"][0]) in own else args.learning_rate
        if group["weight_decay"]:
            group["weight_decay"] = args.weight_decay
        group["initial_lr"] = schedule.base_lrs[i] = rate
        group["lr"] = rate * schedule.lr_lambdas[i](schedule.last_epoch)  # the same bits when nothing has changed


def loop(
    args: Args, run: Run, state: WeldState, learner: Learner, features: WeldFeatures, train_runs: list[WeldRun],
    val_runs: list[WeldRun], first: int,
) -> None:  # fmt: skip
    """The epochs: one step per batch, average, validate raw and averaged weights, keep the best, stop early."""
    task, optimizer, ema, stopper = learner.task, learner.optimizer, learner.ema, learner.stopper
    wrapped = distributed.wrap(task, features.device, find_unused=args.target_mode != "joint")
    guard, seconds = NonFiniteGuard(), []
    for epoch in range(first, args.epochs):
        if stopper.should_stop:
            run.log.line(f"stopping: no better validation AUROC for {args.patience} epochs")
            break
        started = time.monotonic()
        wrapped.train()
        sums: dict[str, float] = dict.fromkeys(TERMS, 0.0)
        scores: list[Tensor] = []
        batches = distributed.epoch_batches(len(train_runs), args.batch_size, seed=args.seed, epoch=epoch)
        for number, (indices, weight) in enumerate(batches, start=1):
            rows = features.read([train_runs[i] for i in indices.tolist()], training=True)
            slow = slow_encodings(args, task, ema, features, rows)
            batch = features.tokens(rows)
            with autocast_for(features.device, args.precision):
                terms = wrapped(batch, slow)
            step(terms["loss"] * weight, optimizer, scaler=learner.scaler, clip=args.grad_clip, guard=guard)
            if ema is not None:
                ema.update(task)
            for name in TERMS:
                sums[name] += distributed.mean_over_ranks(float(terms[name].detach()) * weight) / len(batches)
            scores.append(terms["score"].cpu())
            if number % args.log_every == 0:
                run.log.line(f"batch {number} of epoch {epoch + 1}: loss {sums['loss'] * len(batches) / number:.4g}")
        seconds.append(time.monotonic() - started)
        learning_rate = optimizer.param_groups[0]["lr"]
        learner.schedule.step()
        train_scores = torch.cat(scores)
        row = {
            **sums,
            "lr": learning_rate,
            "train_score": float(train_scores.mean()), "train_score_std": float(train_scores.std()),
            "global_step": float((epoch + 1) * len(batches)),
            **validate(args, task, ema, features, val_runs),
        }  # fmt: skip
        learnt = epoch >= min(args.warmup_epochs, args.epochs // 2)  # an untrained model is no candidate
        better = learnt and stopper.improved(row["val_auroc"], epoch)
        if better:
            state.best = {"epoch": epoch + 1, "val_auroc": row["val_auroc"]}
        run.end_epoch(state, epoch, row, best=BEST if better else None)
    if seconds:
        say_pace(run, features, statistics.median(seconds))


def say_pace(run: Run, features: WeldFeatures, seconds: float) -> None:
    """What encoding and the training part of an epoch took."""
    run.note(epoch_seconds=round(seconds, 3))
    once = f"encoded once in {run.record.get('encoding_seconds', 0.0)} s; "
    how = "every batch encoded anew" if features.cache == "off" else once + "backbones untouched since"
    run.log.line(f"training an epoch took {seconds:.2f} s (median; {how})")


def slow_encodings(
    args: Args, task: CausalFiLMTask, ema: Ema | None, features: WeldFeatures, rows: dict[str, Tensor]
) -> Encodings | None:
    """For ``ema_target``: the averaged model's encodings, the targets of this step."""
    if args.target_mode != "ema_target" or ema is None:
        return None
    with ema.applied(task), torch.no_grad():
        batch = features.tokens(rows)
        with autocast_for(features.device, args.precision):
            return task.model(batch)  # type: ignore[no-any-return]


def validate(
    args: Args, task: CausalFiLMTask, ema: Ema | None, features: WeldFeatures, runs: list[WeldRun]
) -> dict[str, float]:
    """Validation figures of the averaged weights (`val_auroc`) and of the raw ones (`val_auroc_raw`)."""
    labels = torch.tensor([run.label for run in runs])

    def measure() -> dict[str, Tensor]:
        return measure_runs(task, features, runs, batch_size=args.batch_size, precision=args.precision)

    raw = measure()
    shown = raw
    if ema is not None:
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


def finish(args: Args, run: Run, state: WeldState, features: WeldFeatures, runs: list[WeldRun]) -> RunResult:
    """Score the test split with the chosen checkpoint, exactly as evaluate.py does, and report."""
    best = run.dir / BEST
    run.save(state, len(state.history))
    if not state.history:  # no epochs: there is no best one, the initial weights are the result
        run.save(state, 0, BEST)
    distributed.barrier()
    final = best if args.select == "val" and best.is_file() else run.checkpoint
    features.prepare(select_runs(runs, "test"))
    metrics: dict[str, float] = {}
    remarks: list[str] = []
    decision = ""
    if distributed.is_main():
        for line in diagnose(state.history):
            run.log.line(line)
        detector = decided(args, final, features, runs)
        decision = in_words(detector.decision, detector.undecided)
        run.log.line(f"{final.name}: {detector.facts.notes[0]}")
        scores = report(run, detector, state.history, runs)
        metrics, remarks = summary(scores, detector.decision), sample_remarks(scores)
    return run.finish(None, metrics, final=final, remarks=remarks, decision=decision)


def decided(args: Args, final: Path, features: WeldFeatures, runs: list[WeldRun]) -> CausalFiLMDetector:
    """The detector of the final checkpoint, which gets the decision that normal validation runs set and what is usual
    of the training runs."""
    detector = load(Checkpoint(final, load_checkpoint(final, system=SYSTEM)), features=features)
    normal = [run for run in runs if run.split == "val" and not run.label]
    decision = validation_decision(detector, detector.usable(normal) if normal else [], args)
    trained_on = select_runs(runs, "train", normal_only=True) if features.cache != "off" else []
    usual = fit_normal(detector.task, features, detector.usable(trained_on)) if trained_on else {}
    plain = None if decision is None else decision.plain()
    content = add_to_checkpoint(final, system=SYSTEM, decision=plain, normal=usual)
    return load(Checkpoint(final, content), features=features)


def report(run: Run, detector: CausalFiLMDetector, history: list[dict[str, Any]], runs: list[WeldRun]) -> Scores:
    """Scores of the test split; tables into the log, drawings into the run folder."""
    selection = detector.select(runs, Choice())
    scores = detector.score(selection)
    normal = [one for one in runs if one.split == "train" and not one.label]
    alone = single_modality_lines(detector.features, normal, selection.items, scores)
    for line in [*scores.notes, *scores.tables["classes"].text().splitlines(), *alone, auroc_line(scores)]:
        run.log.line(line)
    scores.tables["classes"].write(run.dir / "classes")
    if run.args.figures:
        run.note(figures=draw_run(run.dir, scores, selection.items, history))
    return scores
