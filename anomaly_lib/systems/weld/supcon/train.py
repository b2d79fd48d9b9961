"""V4 of the weld system: four frozen encoders, cross-attention fusion, supervised contrast; judged by k-NN."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from anomaly_lib.data.samplers import BalancedBatchSampler, StratifiedBatchSampler
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import TrainState
from anomaly_lib.engine.distributed import single_process_only
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.errors import UserError
from anomaly_lib.losses.contrastive import supcon_loss
from anomaly_lib.losses.supcon_extra import FeatureQueue
from anomaly_lib.models.weld.supcon_quad import check_quad_batch
from anomaly_lib.models.weld.tasks import MaskedSensors, two_views
from anomaly_lib.systems.weld.data.manifest import WeldRun, select_runs
from anomaly_lib.systems.weld.ending import already_done, chosen_checkpoint, told
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.inputs import build_features, weld_settings
from anomaly_lib.systems.weld.supcon.debug import describe_batch
from anomaly_lib.systems.weld.supcon.detector import SYSTEM, evaluate, load_detector, predict
from anomaly_lib.systems.weld.supcon.knn import knn_metrics, knn_report, nearest_centroid
from anomaly_lib.systems.weld.supcon.options import Args, resolve, tiny
from anomaly_lib.systems.weld.supcon.task import (
    QuadTask,
    apply_freeze,
    build,
    encode_runs,
    fit_scale,
    labels_of,
    objective,
    open_runs,
    quad_batch,
)
from anomaly_lib.types import RunResult

BEST = "best_model.pth"


def make_sampler(args: Args, runs: Sequence[WeldRun]) -> StratifiedBatchSampler | BalancedBatchSampler:
    labels, size = [run.class_label for run in runs], int(args.batch_size or 2)
    if args.sampler == "balanced":
        classes = min(len(set(labels)), max(1, size // 2))
        return BalancedBatchSampler(
            labels, classes_per_batch=classes, per_class=max(2, size // classes),
            batches=max(1, len(labels) // size), seed=args.seed,
        )  # fmt: skip
    return StratifiedBatchSampler(labels, size, seed=args.seed)


def train(args: Args, *, features: WeldFeatures | None = None) -> RunResult:
    """Train, keep the best epoch on the validation split, report k-NN results on the test split.

    `features` of equal preprocessing and encoders may be handed in, so that several runs share one encoding.
    """
    args = resolve(args)
    single_process_only("the V4 weld model", "its trained part is small; start it without torchrun")
    device = pick_device(args.device)
    with Run.open(SYSTEM, args, name="demo" if not args.data_path else Path(args.data_path).name) as run:
        if run.finished:
            return already_done(run)
        settings = weld_settings(args)
        runs = open_runs(args)
        train_runs, val_runs = select_runs(runs, "train"), select_runs(runs, "val")
        if len({run.class_name for run in train_runs}) < 2:
            raise UserError("contrastive training needs at least two classes in the training split")
        features = features or build_features(args, device, settings)
        run.note(weights=features.encoders.weights)
        features.prepare([*train_runs, *val_runs])
        seed_everything(args.seed)
        task = build(args, device, dims=features.dims())
        count = sum(p.numel() for p in task.parameters())
        frozen = features.encoders.parameter_count
        run.log.line(f"{count:,} parameters on top of {frozen:,} frozen ones; {len(train_runs)} runs to train on")
        if args.accumulate > 1 and not args.queue:
            run.log.line("--accumulate does not enlarge the contrastive batch: add --queue N for that")
        optimizer = torch.optim.AdamW(param_groups(task, args.weight_decay), lr=float(args.learning_rate or 0.0))
        epochs = int(args.epochs or 0)
        schedule = make_schedule(
            optimizer, "cosine", epochs, warmup=min(args.warmup_epochs, epochs // 2),
            warmup_start_lr=args.warmup_start_lr, min_lr=min(args.min_lr, float(args.learning_rate or 0.0)),
        )  # fmt: skip
        state = TrainState(
            model=task,
            optimizer=optimizer,
            scheduler=schedule,
            scaler=make_scaler(device, args.precision),
            early_stop=EarlyStopping(int(args.patience or 0)),
            extra={"settings": settings.to_dict(), "dims": features.dims()},
        )
        if args.scale_tokens:
            fit_scale(task, features, train_runs)
        first = run.restore(state, best_name=BEST)
        if first == 0 and args.pretrain != "none":
            pretrain(args, run, task, features, train_runs)
        loop(args, run, state, features, train_runs, val_runs, first)
        return finish(args, run, state, features, runs)


def pretrain(args: Args, run: Run, task: QuadTask, features: WeldFeatures, runs: Sequence[WeldRun]) -> None:
    """Without labels: SimCLR on two noisy views of a run, or masked sensor steps."""
    masked = MaskedSensors(task.model.sensor).to(features.device)
    learner: nn.Module = masked if args.pretrain == "masked" else task.model
    optimizer = torch.optim.AdamW(learner.parameters(), lr=float(args.learning_rate or 1e-3))
    sampler = make_sampler(args, runs)
    learner.train()
    for epoch in range(args.pretrain_epochs):
        sampler.set_epoch(epoch)
        total, count = 0.0, 0
        for indices in sampler:
            batch = quad_batch(features, [runs[i] for i in indices])
            if args.pretrain == "masked":
                loss = masked(batch["sensors"])
            else:
                views = torch.stack([task.model(view)["features"] for view in two_views(batch)], dim=1)  # [B, 2, D]
                loss = supcon_loss(views, temperature=args.temperature)
            step(loss, optimizer, clip=args.grad_clip)
            total, count = total + float(loss.detach()), count + 1
        run.log.line(f"{args.pretrain} epoch {epoch + 1}: loss {total / count:.4f}")


def loop(
    args: Args, run: Run, state: TrainState, features: WeldFeatures, train_runs: list[WeldRun],
    val_runs: list[WeldRun], first: int,
) -> None:  # fmt: skip
    """The epochs: accumulate, step, validate by nearest centroid and k-NN, keep the best, stop early."""
    task, stopper = cast(QuadTask, state.model), cast(EarlyStopping, state.early_stop)
    optimizer = cast(torch.optim.Optimizer, state.optimizer)
    device = next(task.parameters()).device
    sampler, guard = make_sampler(args, train_runs), NonFiniteGuard()
    queue = FeatureQueue(args.queue) if args.queue else None
    if queue is not None and state.extra.get("queue"):
        queue.load_state_dict(state.extra["queue"])  # so that a resumed run continues bit for bit
    for epoch in range(first, int(args.epochs or 0)):
        if stopper.should_stop:
            break
        apply_freeze(args, task, epoch)
        sampler.set_epoch(epoch)
        task.train()
        sums: dict[str, float] = {}
        batches = list(sampler)
        for number, indices in enumerate(batches):
            chosen = [train_runs[i] for i in indices]
            batch, labels = check_quad_batch(quad_batch(features, chosen), task.model.config), labels_of(chosen, device)
            with autocast_for(device, args.precision):
                terms = objective(args, task, batch, labels, queue)
            last = (number + 1) % args.accumulate == 0 or number + 1 == len(batches)
            if args.debug and epoch == first and number == 0:
                for line in describe_batch(
                    task, task.model, batch, labels, terms["loss"], temperature=args.temperature
                ):
                    run.log.line(line)
            scaler = cast(torch.amp.GradScaler, state.scaler)
            part = terms["loss"] / args.accumulate
            step(part, optimizer, scaler=scaler, clip=args.grad_clip, guard=guard, update=last)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach()) / len(batches)
            if (number + 1) % args.log_every == 0:
                run.log.line(f"epoch {epoch + 1} batch {number + 1}: loss {float(terms['loss'].detach()):.4f}")
        row = {**sums, "lr": optimizer.param_groups[0]["lr"]}
        state.scheduler.step()  # type: ignore[union-attr]
        row |= validate(args, task, features, train_runs, val_runs)
        value = row["val_centroid_accuracy"] if args.stop_on == "accuracy" else -row["val_loss"]
        learnt = epoch >= min(args.warmup_epochs, int(args.epochs or 0) // 2)  # an untrained model is no candidate
        better = learnt and stopper.improved(value, epoch)
        if better:
            state.best = {"epoch": epoch + 1, **{name: row[name] for name in ("val_centroid_accuracy", "val_loss")}}
        run.log.line(
            f"epoch {epoch + 1}: loss {row['loss']:.4f}, val loss {row['val_loss']:.4f}, centroid accuracy train "
            f"{row['train_centroid_accuracy']:.3f} val {row['val_centroid_accuracy']:.3f}{' *' if better else ''}"
        )
        if queue is not None:
            state.extra["queue"] = queue.state_dict()
        run.end_epoch(state, epoch, row, best=BEST if better else None)


def validate(
    args: Args, task: QuadTask, features: WeldFeatures, train_runs: Sequence[WeldRun], val_runs: Sequence[WeldRun]
) -> dict[str, float]:
    """Loss on stratified validation batches (class-sorted ones would say nothing) and nearest-centroid accuracy."""
    size = int(args.batch_size or 2)
    bank, found = (encode_runs(task, features, runs, batch_size=size, precision=args.precision) for runs in (train_runs, val_runs))  # fmt: skip  # noqa: E501
    bank_labels, labels = (torch.tensor([run.class_label for run in runs]) for runs in (train_runs, val_runs))

    def share(queries: Tensor, truth: Tensor) -> float:
        return float((nearest_centroid(bank["features"], bank_labels, queries) == truth).float().mean())

    losses = [
        supcon_loss(found["features"][i], labels[i], temperature=args.temperature, skip_anchors_without_positives=True)
        for i in map(torch.tensor, StratifiedBatchSampler(labels.tolist(), max(2, min(size, len(labels)))))
    ]
    return {
        "val_loss": float(torch.stack(losses).mean()),
        "train_centroid_accuracy": share(bank["features"], bank_labels),
        "val_centroid_accuracy": share(found["features"], labels),
    }


def finish(args: Args, run: Run, state: TrainState, features: WeldFeatures, runs: list[WeldRun]) -> RunResult:
    """k-NN results of the chosen epoch on the test split."""
    run.save(state, len(state.history))
    final = chosen_checkpoint(run, args.select, BEST)
    detector = load_detector(final, features=features)
    test_runs = select_runs(runs, "test")
    bank, bank_labels = detector.bank(runs)
    found, labels = detector.encode(test_runs)["features"], torch.tensor([one.class_label for one in test_runs])
    metrics = knn_metrics(bank, bank_labels, found, labels, k=args.k, metric=args.metric)
    for line in knn_report(bank, bank_labels, found, labels, k=args.k, metric=args.metric):
        run.log.line(line)
    return told(run, run.finish(state, metrics, final=final))


__all__ = ["Args", "build", "evaluate", "load_detector", "predict", "tiny", "train"]
