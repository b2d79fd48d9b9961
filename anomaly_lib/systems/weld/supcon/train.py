"""V4 of the weld system: four frozen encoders, cross-attention fusion, supervised contrast; judged by k-NN."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.data.samplers import BalancedBatchSampler, StratifiedBatchSampler
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.decision import in_words
from anomaly_lib.detect.figures import draw_maps
from anomaly_lib.detect.scores import sample_remarks, summary
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import Checkpoint, TrainState, add_to_checkpoint, load_checkpoint
from anomaly_lib.engine.distributed import single_process_only
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.engine.resume import resumed
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.errors import UserError
from anomaly_lib.losses.contrastive import supcon_loss
from anomaly_lib.losses.supcon_extra import FeatureQueue
from anomaly_lib.systems.weld.costs import encoding_costs, learning_words
from anomaly_lib.systems.weld.cross_validation import cross_validate
from anomaly_lib.systems.weld.data.augment import augment_weld
from anomaly_lib.systems.weld.data.drawn import IMITATED, drawn_defects
from anomaly_lib.systems.weld.data.manifest import WeldRun, select_runs
from anomaly_lib.systems.weld.detector import validation_decision
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.figures import auroc_line
from anomaly_lib.systems.weld.inputs import build_features, data_fingerprint, data_name, data_words
from anomaly_lib.systems.weld.supcon.debug import describe_batch
from anomaly_lib.systems.weld.supcon.detector import SYSTEM, load
from anomaly_lib.systems.weld.supcon.knn import Bank, nearest_centroid
from anomaly_lib.systems.weld.supcon.options import Args
from anomaly_lib.systems.weld.supcon.pretraining import pretrain
from anomaly_lib.systems.weld.supcon.task import (
    QuadTask,
    apply_freeze,
    build,
    classes_of,
    encode_runs,
    fit_scale,
    objective,
    open_runs,
    quad_batch,
)
from anomaly_lib.types import RunResult
from anomaly_lib.viz import save_figure, training_lines

BEST = "best_model.pth"


@dataclass
class Splits:
    """The runs of a training."""

    train: list[WeldRun]
    val: list[WeldRun]
    drawn: list[WeldRun] = field(default_factory=list)  # learnt from beside `train`, but neighbours of nobody


@dataclass
class Learner:
    """What learns, and with what."""

    task: QuadTask
    optimizer: torch.optim.Optimizer
    schedule: Any
    scaler: torch.amp.GradScaler
    stopper: EarlyStopping
    queue: FeatureQueue | None

    @classmethod
    def of(cls, args: Args, task: QuadTask, device: torch.device) -> "Learner":
        groups = param_groups(task, args.weight_decay, lr_of={"tops.": args.encoder_lr})
        optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)
        lowest = min(group.get("lr", args.learning_rate) for group in optimizer.param_groups)
        schedule = make_schedule(
            optimizer, "cosine", args.epochs, warmup=min(args.warmup_epochs, args.epochs // 2),
            warmup_start_lr=min(args.warmup_start_lr, lowest), min_lr=min(args.min_lr, lowest),
        )  # fmt: skip
        queue = FeatureQueue(args.queue) if args.queue else None
        return cls(task, optimizer, schedule, make_scaler(device, args.precision), EarlyStopping(args.patience), queue)

    def state(self, **extra: Any) -> TrainState:
        return TrainState(self.task, self.optimizer, self.schedule, self.scaler, early_stop=self.stopper, extra=extra)


def train(args: Args, *, features: WeldFeatures | None = None) -> RunResult:
    """Train, keep the best epoch on the validation split, report k-NN results on the test split.

    `features` of equal preprocessing and encoders may be handed in, so that several runs share one encoding.
    """
    single_process_only("the V4 weld model", "its trained part is small; start it without torchrun")
    args = resumed(SYSTEM, args)
    if args.folds and not args.fold:
        shared = features or build_features(args, pick_device(args.device))
        return cross_validate(
            SYSTEM, args, data_name(args), lambda one: train(one, features=shared),
            lambda path: load(Checkpoint(path, load_checkpoint(path, system=SYSTEM)), features=shared),
        )  # fmt: skip
    runs = open_runs(args)
    with Run.open(SYSTEM, args, name=data_name(args), data=data_fingerprint(runs, args), kept=[BEST]) as run:
        if run.finished:
            return run.repeat()
        features = features or build_features(args, pick_device(args.device))
        features.augment, features.disturb = augment_weld if args.augment else None, args.disturb  # may be shared
        splits = opening(run, args, runs, features)
        features.read_sensors([*splits.train, *splits.val], run.log.line)
        features.fit_sensors(splits.train, args.sensor_norm)
        for line in encoding_costs(features, [*splits.train, *splits.val], batch_size=args.batch_size):
            run.log.line(f"cost: {line}")
        features.prepare([*splits.train, *splits.val, *splits.drawn])
        seed_everything(args.seed)
        learner = Learner.of(args, build(args, features), features.device)
        features = features.seen_by(learner.task.tops)
        for line in learning_words(args, features, learner.task.tops, batch_size=args.batch_size):
            run.log.line(line)
        if args.scale_tokens:
            fit_scale(learner.task, features, splits.train)
        state = learner.state(sensor_statistics=features.sensor_statistics)
        first = run.restore(state)
        if first == 0 and args.pretrain != "none":
            pretrain_or_go_on(args, run, state, learner.task, features, splits.train)
        loop(args, run, state, learner, features, splits, first)
        return finish(args, run, state, learner.task, features, splits)


def pretrain_or_go_on(
    args: Args, run: Run, state: TrainState, task: QuadTask, features: WeldFeatures, runs: list[WeldRun]
) -> None:
    """Pre-train, from where the checkpoint has left it; its epochs are those before the first one."""

    def keep(progress: dict[str, Any]) -> None:
        state.extra["pretraining"] = progress
        run.save(state, 0)

    done = state.extra.get("pretraining")
    pretrain(args, task, features, runs, make_sampler(args, runs), run.log.line, done=done, keep=keep)


def opening(run: Run, args: Args, runs: list[WeldRun], features: WeldFeatures) -> Splits:
    """Say what is to be trained, leave out what cannot be read where that is wished, and split."""
    splits = Splits(select_runs(runs, "train"), select_runs(runs, "val"))
    select_runs(runs, "test")  # is scored at the end: that there is none is said before the epochs, not after them
    if len({one.class_name for one in splits.train}) < 2:
        raise UserError("contrastive training needs at least two classes in the training split")
    frozen, counts = (
        features.encoders.parameter_count,
        f"{len(splits.train)} runs to train on, {len(splits.val)} to validate",
    )
    run.opening(
        f"V4, supervised contrast of four modalities: {counts}",
        weights=features.encoders.weights,
        data=data_words(args),
        cost=[f"{len(runs)} runs through three frozen encoders of {frozen:,} parameters, once"],
    )
    if args.on_error == "skip":
        readable, skipped = features.readable(runs)
        run.note(skipped=skipped)
        run.log.line(f"{len(skipped)} unreadable runs are skipped (listed in run.json)")
        splits = Splits(select_runs(readable, "train"), select_runs(readable, "val"))
    if args.drawn_defects:
        good = [one for one in splits.train if not one.label]
        splits.drawn = drawn_defects(good, args, each=args.drawn_defects, seed=args.seed)
        run.log.line(f"{len(splits.drawn)} training runs with drawn defects: {', '.join(IMITATED.values())}")
    if args.disturb and not (args.augment or args.cache == "off"):
        run.log.line("--disturb acts on the sensors; with --augment or --cache off on the sound, too")
    if args.accumulate > 1 and not args.queue:
        run.log.line("--accumulate does not enlarge the contrastive batch: add --queue N for that")
    return splits


def make_sampler(args: Args, runs: Sequence[WeldRun]) -> StratifiedBatchSampler | BalancedBatchSampler:
    """Batches of indices into `runs` with several runs of each class."""
    labels, size = [run.class_label for run in runs], args.batch_size
    if args.sampler == "balanced":
        classes = min(len(set(labels)), max(1, size // 2))
        return BalancedBatchSampler(
            labels, classes_per_batch=classes, per_class=max(2, size // classes),
            batches=max(1, len(labels) // size), seed=args.seed,
        )  # fmt: skip
    return StratifiedBatchSampler(labels, size, seed=args.seed)


def loop(
    args: Args, run: Run, state: TrainState, learner: Learner, features: WeldFeatures, splits: Splits, first: int
) -> None:
    """The epochs: accumulate, step, validate by nearest centroid and k-NN, keep the best, stop early."""
    task, optimizer, stopper, queue = learner.task, learner.optimizer, learner.stopper, learner.queue
    learnt_from = [*splits.train, *splits.drawn]
    sampler, guard = make_sampler(args, learnt_from), NonFiniteGuard()
    if queue is not None and state.extra.get("queue"):
        queue.load_state_dict(state.extra["queue"])  # so that a resumed run continues bit for bit
    for epoch in range(first, args.epochs):
        if stopper.should_stop:
            break
        apply_freeze(args, task, epoch)
        sampler.set_epoch(epoch)
        task.train()
        row: dict[str, float] = {}
        batches = list(sampler)
        for number, indices in enumerate(batches, start=1):
            chosen = [learnt_from[i] for i in indices]
            batch, labels = quad_batch(features, chosen, training=True), classes_of(chosen, features.device)
            with autocast_for(features.device, args.precision):
                terms = objective(args, task, batch, labels, queue)
            if args.debug and epoch == first and number == 1:
                for line in describe_batch(task, batch, labels, terms["loss"], temperature=args.temperature):
                    run.log.line(line)
            last = number % args.accumulate == 0 or number == len(batches)
            part = terms["loss"] / args.accumulate
            step(part, optimizer, scaler=learner.scaler, clip=args.grad_clip, guard=guard, update=last)
            for name, term in terms.items():
                row[name] = row.get(name, 0.0) + float(term.detach()) / len(batches)
            if number % args.log_every == 0:
                run.log.line(f"batch {number} of epoch {epoch + 1}: loss {float(terms['loss'].detach()):.4f}")
        row["lr"] = optimizer.param_groups[0]["lr"]
        learner.schedule.step()
        bank = bank_of(args, task, features, splits.train)
        row |= validate(args, task, features, bank, splits.val)
        value = row["val_centroid_accuracy"] if args.stop_on == "accuracy" else -row["val_loss"]
        learnt = epoch >= min(args.warmup_epochs, args.epochs // 2)  # an untrained model is no candidate
        better = learnt and stopper.improved(value, epoch)
        if better:
            state.best = {"epoch": epoch + 1, **{name: row[name] for name in ("val_centroid_accuracy", "val_loss")}}
        state.extra |= {"bank": bank._asdict(), "queue": None if queue is None else queue.state_dict()}
        run.end_epoch(state, epoch, row, best=BEST if better else None)


def bank_of(args: Args, task: QuadTask, features: WeldFeatures, runs: Sequence[WeldRun]) -> Bank:
    """Features and classes of the training runs, as the model sees them now."""
    found = encode_runs(task, features, runs, batch_size=args.batch_size, precision=args.precision)
    return Bank(found["features"], classes_of(runs))


def validate(
    args: Args, task: QuadTask, features: WeldFeatures, bank: Bank, runs: Sequence[WeldRun]
) -> dict[str, float]:
    """Loss on stratified validation batches (class-sorted ones would say nothing) and nearest-centroid accuracy."""
    found, labels = bank_of(args, task, features, runs)

    def share(queries: Tensor, truth: Tensor) -> float:
        return float((nearest_centroid(bank, queries) == truth).float().mean())

    size = max(2, min(args.batch_size, len(labels)))
    losses = [
        supcon_loss(found[i], labels[i], temperature=args.temperature, skip_anchors_without_positives=True)
        for i in map(torch.tensor, StratifiedBatchSampler(labels.tolist(), size))
    ]
    return {
        "val_loss": float(torch.stack(losses).mean()),
        "train_centroid_accuracy": share(*bank),
        "val_centroid_accuracy": share(found, labels),
    }


def finish(
    args: Args, run: Run, state: TrainState, task: QuadTask, features: WeldFeatures, splits: Splits
) -> RunResult:
    """k-NN results of the chosen epoch on the test split, by the detector that evaluate.py makes."""
    if not state.history:  # no epoch was asked for: the untrained model is the result
        state.extra["bank"] = bank_of(args, task, features, splits.train)._asdict()
    run.save(state, len(state.history))
    final = run.dir / BEST if args.select == "val" and (run.dir / BEST).is_file() else run.checkpoint
    detector = load(Checkpoint(final, load_checkpoint(final, system=SYSTEM)), features=features)
    decision = detector.decision = validation_decision(detector, splits.val, args)
    add_to_checkpoint(final, system=SYSTEM, decision=None if decision is None else decision.plain())
    scores = detector.score(detector.items(Choice(on_error=args.on_error)))
    for line in [*scores.notes, auroc_line(scores)]:
        run.log.line(line)
    scores.tables["classes"].write(run.dir / "classes")
    if args.figures:
        draw_maps(run.dir, scores, decision)
        if state.history:
            curves = {
                name: [row[name] for row in state.history] for name in ("loss", "val_loss", "val_centroid_accuracy")
            }
            save_figure(training_lines(curves), run.dir / "training")
    return run.finish(
        None,
        summary(scores, decision),
        final=final,
        remarks=sample_remarks(scores),
        decision=in_words(decision, detector.undecided),
    )
