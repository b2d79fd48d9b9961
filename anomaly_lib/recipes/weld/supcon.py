"""V4 of the weld system: four frozen encoders, cross-attention fusion, supervised contrast; judged by k-NN."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.data.samplers import BalancedBatchSampler, StratifiedBatchSampler
from anomaly_lib.data.weld.demo import weld_demo_runs
from anomaly_lib.data.weld.manifest import CLASSES, WeldRun, assign_splits, read_manifest, select_runs
from anomaly_lib.data.weld.runs import WeldSettings
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import TrainState, load_checkpoint
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.errors import UserError
from anomaly_lib.losses.contrastive import supcon_loss
from anomaly_lib.losses.supcon_extra import FeatureQueue, mixed_loss, mixup, supcon_with_negatives
from anomaly_lib.models.adapters import add_adapters
from anomaly_lib.models.weld.supcon_quad import QuadModal, check_quad_batch, freeze
from anomaly_lib.models.weld.tasks import MaskedSensors, Reconstruction, two_views
from anomaly_lib.recipes.evaluation.contract import EvaluateArgs, Evaluation
from anomaly_lib.recipes.weld.causal_film import build_features
from anomaly_lib.recipes.weld.causal_film_options import weld_settings
from anomaly_lib.recipes.weld.features import WeldFeatures
from anomaly_lib.recipes.weld.knn import defect_margin, knn_metrics, knn_report, nearest_centroid
from anomaly_lib.recipes.weld.supcon_debug import describe_batch
from anomaly_lib.recipes.weld.supcon_options import Args, quad_config, resolve, tiny
from anomaly_lib.types import Prediction, RunResult

SYSTEM = "weld_supcon"
BEST = "best_model.pth"


class QuadTask(nn.Module):
    """The model and the head of its side task: what is trained and saved."""

    def __init__(self, model: QuadModal, *, reconstruct: bool) -> None:
        super().__init__()
        self.model = model
        self.reconstruction = Reconstruction(model) if reconstruct else None


def open_runs(args: Args) -> list[WeldRun]:
    """Runs with every class in TRAIN; a split made for one-class training is redrawn, configurations kept together."""
    if not args.data_path:
        return weld_demo_runs(
            train=args.demo_train,
            good=args.demo_good,
            per_defect=args.demo_defects,
            supervised=True,
            seed=args.demo_seed,
        )
    runs = read_manifest(args.data_path)
    trained = {run.class_name for run in runs if run.split == "train"}
    return runs if len(trained) > 1 else assign_splits(runs, seed=args.demo_seed, train_ratio=0.8, supervised=True)


def build(args: Args, device: torch.device, *, dims: dict[str, int] | None = None) -> QuadTask:
    """The trainable part of resolved options; `dims` are the encoders' widths (default: the published ones)."""
    model = QuadModal(quad_config(args, dims or {}))
    if args.adapters != "none":
        add_adapters(model, ["fusion.project", "fusion.attend"], kind=args.adapters, rank=args.adapter_rank)
    return QuadTask(model, reconstruct=args.reconstruct_weight > 0).to(device)


def apply_freeze(args: Args, task: QuadTask, epoch: int) -> list[str]:
    """The freeze policy of this epoch; adapters always learn."""
    active = not args.freeze_encoders_epochs or epoch < args.freeze_encoders_epochs
    freeze(task.model, args.freeze if active else "none")
    for name, parameter in task.model.named_parameters():
        if args.adapters != "none" and (".down" in name or ".up" in name):
            parameter.requires_grad_(True)
        elif args.adapters != "none" and ".base." in name:
            parameter.requires_grad_(False)
    return [name for name, parameter in task.named_parameters() if parameter.requires_grad]


def quad_batch(features: WeldFeatures, runs: Sequence[WeldRun]) -> dict[str, Tensor]:
    """Cached tokens as `QuadModal` takes them: one mean vector per photo, branches side by side."""
    batch = features.batch(runs)
    images = torch.cat([branch.mean(2) for branch in batch["images"]], dim=-1)  # [B, V, D]
    named = {**batch, "images": images, "images_mask": batch["views"]}
    return {name: value for name, value in named.items() if name != "views"}


def labels_of(runs: Sequence[WeldRun], device: torch.device) -> Tensor:
    return torch.tensor([run.class_label for run in runs], device=device)


def objective(
    args: Args, task: QuadTask, batch: dict[str, Tensor], labels: Tensor, queue: FeatureQueue | None
) -> dict[str, Tensor]:
    """Every term by name and their weighted sum `loss`."""
    model = task.model
    out = model(batch)
    order, weight = torch.arange(len(labels), device=labels.device), 1.0
    if args.mixup > 0:
        mixed, order, weight = mixup(out["embedding"], args.mixup)
        out = {**out, **model.heads(mixed)}

    def contrast(y: Tensor) -> Tensor:
        return supcon_with_negatives(
            out["features"],
            y,
            temperature=args.temperature,
            queue=queue,
            hard_negatives=args.hard_negatives,
            hardness=args.hardness,
        )

    terms = {"supcon": mixed_loss(contrast, labels, order, weight)}
    total = args.supcon_weight * terms["supcon"]
    if args.loss_type == "combined":
        terms["ce"] = mixed_loss(lambda y: F.cross_entropy(out["logits"], y), labels, order, weight)
        terms["score"] = mixed_loss(
            lambda y: F.binary_cross_entropy_with_logits(out["anomaly_score"], (y != 0).float()), labels, order, weight
        )
        total = total + args.ce_weight * terms["ce"] + args.score_weight * terms["score"]
    if task.reconstruction is not None:
        terms["reconstruct"] = task.reconstruction(out["embedding"], batch)
        total = total + args.reconstruct_weight * terms["reconstruct"]
    if queue is not None:
        queue.push(out["features"], labels)
    return {**terms, "loss": total}


def make_sampler(args: Args, runs: Sequence[WeldRun]) -> StratifiedBatchSampler | BalancedBatchSampler:
    labels, size = [run.class_label for run in runs], int(args.batch_size or 2)
    if args.sampler == "balanced":
        classes = min(len(set(labels)), max(1, size // 2))
        return BalancedBatchSampler(
            labels, classes_per_batch=classes, per_class=max(2, size // classes),
            batches=max(1, len(labels) // size), seed=args.seed,
        )  # fmt: skip
    return StratifiedBatchSampler(labels, size, seed=args.seed)


def train(args: Args) -> RunResult:
    """Train, keep the best epoch on the validation split, report k-NN results on the test split."""
    args = resolve(args)
    device = pick_device(args.device)
    with Run.open(SYSTEM, args, name="demo" if not args.data_path else Path(args.data_path).name) as run:
        if run.finished:
            run.log.line(f"{run.dir} is done (--fresh starts over)")
            return run.result()
        settings = weld_settings(cast(Any, args))
        runs = open_runs(args)
        train_runs, val_runs = select_runs(runs, "train"), select_runs(runs, "val")
        if len({run.class_name for run in train_runs}) < 2:
            raise UserError("contrastive training needs at least two classes in the training split")
        features = build_features(cast(Any, args), device, settings)
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
            early_stop=EarlyStopping(args.patience),
            extra={"settings": settings.to_dict(), "dims": features.dims()},
        )
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
            run.stop.check()
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
    for epoch in range(first, int(args.epochs or 0)):
        if stopper.should_stop:
            break
        apply_freeze(args, task, epoch)
        sampler.set_epoch(epoch)
        task.train()
        sums: dict[str, float] = {}
        batches = list(sampler)
        for number, indices in enumerate(batches):
            run.stop.check()
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
        better = stopper.improved(value, epoch)
        if better:
            state.best = {"epoch": epoch + 1, **{name: row[name] for name in ("val_centroid_accuracy", "val_loss")}}
        run.log.line(
            f"epoch {epoch + 1}: loss {row['loss']:.4f}, val loss {row['val_loss']:.4f}, centroid accuracy train "
            f"{row['train_centroid_accuracy']:.3f} val {row['val_centroid_accuracy']:.3f}{' *' if better else ''}"
        )
        run.end_epoch(state, epoch, row)
        if better:
            run.save(state, epoch + 1, BEST)


@torch.no_grad()
def encode_runs(
    task: QuadTask, features: WeldFeatures, runs: Sequence[WeldRun], *, batch_size: int, precision: str = "fp32"
) -> dict[str, Tensor]:
    """`features`, `logits`, `anomaly_score` of runs in eval mode, on the CPU."""
    was_training = task.training
    task.eval()
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(runs), batch_size):
        batch = quad_batch(features, runs[start : start + batch_size])
        with autocast_for(features.device, precision):
            out = task.model(batch)
        parts.append({name: out[name].float().cpu() for name in ("features", "logits", "anomaly_score")})
    task.train(was_training)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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
    best = run.dir / BEST
    final = best if args.select == "val" and best.is_file() else run.checkpoint
    detector = load_detector(final, features=features)
    test_runs = select_runs(runs, "test")
    bank, bank_labels = detector.bank(runs)
    found, labels = detector.encode(test_runs)["features"], torch.tensor([one.class_label for one in test_runs])
    metrics = knn_metrics(bank, bank_labels, found, labels, k=args.k, metric=args.metric)
    for line in knn_report(bank, bank_labels, found, labels, k=args.k, metric=args.metric):
        run.log.line(line)
    return run.finish(state, metrics, final=final)


# -- trained models -------------------------------------------------------------------------------------------------


@dataclass
class QuadDetector:
    """A trained QuadModal with its encoders; `predict` scores whole runs."""

    task: QuadTask
    features: WeldFeatures
    args: Args
    epoch: int
    threshold: float | None = None

    def encode(self, runs: Sequence[WeldRun]) -> dict[str, Tensor]:
        self.features.prepare(runs)
        return encode_runs(
            self.task, self.features, runs, batch_size=int(self.args.batch_size or 2), precision=self.args.precision
        )

    def bank(self, runs: Iterable[WeldRun]) -> tuple[Tensor, Tensor]:
        """Features and classes of the training split."""
        chosen = select_runs(list(runs), "train")
        return self.encode(chosen)["features"], torch.tensor([run.class_label for run in chosen])

    def predict(self, runs: Sequence[WeldRun]) -> Prediction:
        return predict(self, runs)


def predict(model: QuadDetector, batch: Sequence[WeldRun]) -> Prediction:
    """The score head's answer and, as parts, the probability of each class."""
    out = model.encode(batch)
    probabilities = out["logits"].softmax(1)
    parts = {f"class {name}": probabilities[:, i] for i, name in enumerate(CLASSES)}
    return Prediction(score=out["anomaly_score"], parts=parts)


def load_detector(path: str | Path, *, device: str = "auto", features: WeldFeatures | None = None) -> QuadDetector:
    """The model of a checkpoint with its own preprocessing."""
    saved = load_checkpoint(path, system=SYSTEM)
    args = Args(**{name: value for name, value in saved["args"].items() if name in Args.__dataclass_fields__})
    where = pick_device(device)
    if features is None:
        features = build_features(cast(Any, args), where, WeldSettings.from_dict(saved["extra"]["settings"]))
    task = build(args, features.device, dims=dict(saved["extra"]["dims"]))
    task.load_state_dict(saved["model"])
    return QuadDetector(task.eval(), features, args, int(saved["epoch"]))


def evaluate(checkpoint: Path, args: EvaluateArgs) -> Evaluation:
    """The k-NN protocol on a split: the bank is the training split."""
    detector = load_detector(checkpoint, device=args.device)
    own = detector.args
    runs = open_runs(own if args.data_path is None else Args(**{**own.__dict__, "data_path": args.data_path}))
    chosen = select_runs(runs, args.split)
    bank, bank_labels = detector.bank(runs)
    found, labels = detector.encode(chosen)["features"], torch.tensor([one.class_label for one in chosen])
    return Evaluation(
        system=SYSTEM,
        name=f"k-NN k={own.k} {own.metric}",
        metrics=knn_metrics(bank, bank_labels, found, labels, k=own.k, metric=own.metric),
        scores=defect_margin(bank, bank_labels, found).numpy(),
        labels=[run.label for run in chosen],
        paths=[str(run.folder) for run in chosen],
        groups=["weld"] * len(chosen),
        defects=[run.class_name for run in chosen],
        notes=knn_report(bank, bank_labels, found, labels, k=own.k, metric=own.metric),
        facts={"epoch": detector.epoch, "seed": own.seed},
    )


__all__ = ["Args", "build", "evaluate", "load_detector", "predict", "tiny", "train"]
