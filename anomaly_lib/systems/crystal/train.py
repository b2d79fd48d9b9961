"""Crystal graph + text: the training loop, selection on validation, one test, baselines.

ALIGNN encodes structure, a frozen text encoder is run once; what is trained is ALIGNN and the fusion of both.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.config import to_plain
from anomaly_lib.detect.decision import in_words
from anomaly_lib.detect.scores import sample_remarks, summary
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import Checkpoint, TrainState, load_checkpoint
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.ema import Ema
from anomaly_lib.engine.log import progress
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.engine.resume import CHECKPOINT, resumed
from anomaly_lib.engine.run import Run, default_folder
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.files import write_json
from anomaly_lib.losses import info_nce_loss
from anomaly_lib.metrics import mae
from anomaly_lib.models.crystal.config import CrystalFusionConfig
from anomaly_lib.models.crystal.fusion import CrystalOutput
from anomaly_lib.systems.crystal.data.dataset import CrystalTable
from anomaly_lib.systems.crystal.data.settings import property_name
from anomaly_lib.systems.crystal.detector import SYSTEM, CrystalDetector, forward, load_parameters, network
from anomaly_lib.systems.crystal.inputs import (
    CrystalData,
    TargetScale,
    data_fingerprint,
    data_table,
    load_data,
    text_encoder,
)
from anomaly_lib.systems.crystal.options import Args
from anomaly_lib.systems.crystal.published import property_folder, with_resume, without_meaning
from anomaly_lib.systems.crystal.report import draw, figures, published_lines, scored, write_histories, write_scores
from anomaly_lib.types import RunResult

SCALES = ("text_scale", "node_scale")
BEST, BEST_ORACLE = "best_model.pt", "best_test_model.pt"


def train(args: Args) -> RunResult:
    """Train, select on validation, test once. The same command continues an unfinished run."""
    args = with_resume(args, run_folder(args) / CHECKPOINT)
    args = resumed(SYSTEM, args, run_folder(args))
    table, device = data_table(args), pick_device(args.device)
    kept = [BEST, BEST_ORACLE] if args.select == "best-on-test" else [BEST]
    with Run(SYSTEM, args, run_folder(args), data_fingerprint(table, args), kept) as run:
        if run.finished:
            return run.repeat()
        data, detector = _opening(run, args, table, device)
        model, scale = detector.model, detector.scale
        learner = make_learner(model, args, len(data.split.train) // batch_size_of(args, data), device)
        watched = "val_accuracy" if args.classification else "val_mae"
        stopper = EarlyStopping(args.early_stopping_patience, higher_is_better=args.classification)
        state = TrainState(model, learner.optimizer, learner.scheduler, learner.scaler, learner.ema, stopper)
        state.extra = {"text_features": data.text_features, "target_scale": asdict(scale), "data": data.facts}
        for epoch in range(run.restore(state), args.epochs):
            if stopper.should_stop:
                run.log.line(f"stopping: no better {watched} for {stopper.waited} epochs")
                break
            values = train_epoch(learner, data, args, scale, device)
            values["lr"] = learner.optimizer.param_groups[0]["lr"]
            with averaged(model, learner.ema):
                values |= figures(detector, data, "val")
                if args.select == "best-on-test":
                    values |= figures(detector, data, "test")
            values |= scales_of(model)
            better = stopper.improved(values[watched], epoch)
            if better:
                state.best = {"epoch": epoch, **{k: v for k, v in values.items() if k.startswith("val_")}}
            if args.select == "best-on-test" and _is_best(
                [*state.history, values], "oracle_test" + watched.removeprefix("val"), args
            ):
                run.save(state, epoch + 1, BEST_ORACLE)
            run.end_epoch(state, epoch, values, best=BEST if better else None)
        return _finish(run, state, detector, data)


def run_folder(args: Args) -> Path:
    """Where the run lies."""
    where = "demo" if args.data_path is None else args.dataset
    return property_folder(args) or default_folder(SYSTEM, args, f"{where}-{property_name(args.property)}")


def _opening(
    run: Run, args: Args, table: CrystalTable, device: torch.device
) -> tuple[CrystalData, CrystalDetector]:  # fmt: skip
    """Say what will be done and what it costs, then do what comes before training: graphs, texts, the network."""
    encoder = text_encoder(args)
    texts = "" if encoder is None else f", {len({row.text for row in table.rows})} texts to encode"
    run.opening(
        f"crystal {property_name(args.property)}: {args.modality}, {table.report()}",
        weights=weights_of(encoder),
        cost=[
            f"{len(table.rows)} structures to make graphs of{texts}; what is cached is not done again",
            *([f"{2 * args.epochs} more epochs for the baselines"] if args.compare else []),
        ],
    )
    for line in without_meaning(args):
        run.log.line(line)
    data = load_data(args, table, encoder, device, say=run.log.line, track=progress)
    run.note(data=data.facts)
    seed_everything(args.seed)  # the weights do not depend on how much was cached
    model = network(args, text_features=data.text_features).to(device)
    if args.compile:
        model.compile(dynamic=True)  # batches differ in atoms, bonds and angles; the state dict keeps its names
    sizes = {f.name: getattr(args, f.name) for f in fields(CrystalFusionConfig)}
    write_json(run.dir / "config.json", {**to_plain(args), "model": sizes})
    steps = len(data.split.train) // batch_size_of(args, data)
    run.log.line(f"{model}, {steps} steps an epoch")
    return data, CrystalDetector(
        args, model, fit_scale(data, args), device, weights=weights_of(encoder), encoder=encoder
    )


# -- learning -------------------------------------------------------------------------------------------------------


def loss_of(output: CrystalOutput, target: Tensor, args: Args) -> tuple[Tensor, Tensor | None]:
    """Squared error (or cross-entropy), plus InfoNCE between each crystal's graph and text vectors if asked for.

    The sum, and the InfoNCE term before its weight, where there is one.
    """
    if args.classification:
        loss = nn.functional.binary_cross_entropy_with_logits(output.prediction.float(), target)
    else:
        loss = nn.functional.mse_loss(output.prediction.float(), target)
    if args.use_contrastive and output.graph is not None and output.text is not None and len(target) > 1:
        contrast = info_nce_loss(output.graph, output.text, temperature=args.contrastive_temperature)
        return loss + args.contrastive_weight * contrast, contrast
    return loss, None


@dataclass
class Learner:
    """A network and what moves its weights."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    guard: NonFiniteGuard
    ema: Ema | None


def make_learner(model: nn.Module, args: Args, steps_per_epoch: int, device: torch.device) -> Learner:
    """AdamW with a one-cycle rate per step; learned scales have a rate of their own."""
    paper, own_rate = args.protocol == "paper", args.scale_learning_rate
    rate = args.learning_rate * (1 if paper else 20) if own_rate is None else own_rate
    groups = param_groups(model, args.weight_decay, lr_of=dict.fromkeys(SCALES, rate))
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)
    warmup = 0 if paper else args.warmup_steps
    scheduler = make_schedule(optimizer, "onecycle", steps_per_epoch * args.epochs, warmup=warmup)
    ema = Ema(model, args.ema_decay) if args.ema_decay > 0 else None
    return Learner(model, optimizer, scheduler, make_scaler(device, args.precision), NonFiniteGuard(), ema)


def train_epoch(
    learner: Learner, data: CrystalData, args: Args, scale: TargetScale, device: torch.device
) -> dict[str, float]:
    """One pass over the training crystals in random order (whole batches only).

    The means over its steps of the loss, of the error (or accuracy) while it learned, and of the contrastive term.
    """
    rows, size = data.split.train, batch_size_of(args, data)
    learner.model.train()
    order = torch.randperm(len(rows)).tolist()
    seen: dict[str, list[Tensor]] = {}
    for first in range(0, len(rows) - size + 1, size):
        batch = data.batch([rows[i] for i in order[first : first + size]]).to(device)
        with autocast_for(device, args.precision):
            output = forward(learner.model, batch)
            loss, contrast = loss_of(output, scale.to_model(batch.target), args)
        step(loss, learner.optimizer, scaler=learner.scaler, clip=args.grad_clip, guard=learner.guard)
        learner.scheduler.step()
        if learner.ema is not None:
            learner.ema.update(learner.model)
        terms = {"loss": loss, **fit_of(output.prediction, batch.target, args, scale), "contrastive": contrast}
        for name, value in terms.items():
            if value is not None:
                seen.setdefault(f"train_{name}", []).append(value.detach())
    return {name: float(torch.stack(values).mean()) for name, values in seen.items()}


@torch.no_grad()
def fit_of(prediction: Tensor, target: Tensor, args: Args, scale: TargetScale) -> dict[str, Tensor]:
    """The mean absolute error of a batch, in the property's unit; of classes the share that is right."""
    if args.classification:
        positive = prediction.float().sigmoid() >= args.classification_threshold
        return {"accuracy": (positive == (target > 0.5)).float().mean()}
    return {"mae": (scale.to_property(prediction.float()) - target).abs().mean()}


def batch_size_of(args: Args, data: CrystalData) -> int:
    """--batch_size, or all training crystals where there are fewer."""
    return min(args.batch_size, len(data.split.train))


def fit_scale(data: CrystalData, args: Args) -> TargetScale:
    """The target scale of the training part."""
    return TargetScale.of(data.targets[data.split.train], active=args.standardize)


@contextmanager
def averaged(model: nn.Module, ema: Any) -> Iterator[None]:
    """Inside the block the model has its averaged weights, where there are any."""
    if ema is None:
        yield
        return
    with ema.applied(model):
        yield


def scales_of(model: nn.Module) -> dict[str, float]:
    """Every learned scale by name: text_scale_layer_2, node_scale_layer_2."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        f"{name.split('.')[-1]}_{name.split('.')[-2]}": float(value.detach())
        for name, value in tensors
        if name.split(".")[-1] in SCALES
    }


# -- the end --------------------------------------------------------------------------------------------------------


def _is_best(history: list[dict[str, Any]], name: str, args: Args) -> bool:
    """Is the last epoch the best so far?"""
    values = [row[name] for row in history]
    return values[-1] == (max(values) if args.classification else min(values))


def _finish(run: Run, state: TrainState, detector: CrystalDetector, data: CrystalData) -> RunResult:
    """Test the selected weights, write what users of the published program look for, compare with baselines."""
    args, model, history = detector.args, detector.model, state.history
    write_histories(run.dir, history)
    run.save(state, len(history))
    with averaged(model, state.ema):
        for name in ("val", "test"):
            write_scores(run.dir / f"predictions_last_epoch_{name}.csv", detector, data, name)
    chosen = {"last": run.checkpoint, "val": run.dir / BEST, "best-on-test": run.dir / BEST_ORACLE}[args.select]
    chosen = chosen if chosen.is_file() else run.checkpoint
    if (run.dir / BEST).is_file():
        shutil.copyfile(run.dir / BEST, run.dir / "best_val_model.pt")
    load_parameters(model, Checkpoint(chosen, load_checkpoint(chosen, system=SYSTEM)))
    metrics: dict[str, float] = {}
    remarks = list(detector.facts.notes)
    for name in ("val", "test"):
        path = run.dir / f"predictions_best_val_model_{name}.csv"
        scores = write_scores(path, detector, data, name)
        shutil.copyfile(path, run.dir / f"prediction_results_{name}_set.csv")
        metrics |= summary(scores, detector.decision)
        remarks += [f"{name}: {remark}" for remark in sample_remarks(scores)]
    if args.figures:
        draw(run.dir / "figures", scores, detector)
    metrics |= _baselines(data, detector) | scales_of(model)
    for line in published_lines(metrics):
        run.log.line(line)
    decision = in_words(detector.decision, detector.undecided)
    return run.finish(None, metrics, final=chosen, remarks=remarks, decision=decision)


def _baselines(data: CrystalData, detector: CrystalDetector) -> dict[str, float]:
    """What the mean of the targets and each modality alone reach with the same budget: what fusion adds."""
    args, device, found = detector.args, detector.device, dict[str, float]()
    if not args.classification:
        test = data.targets[data.split.test]
        mean = float(data.targets[data.split.train].mean())
        found["mean_predictor_test_mae"] = mae(torch.full_like(test, mean), test)
    for modality in ("graph", "text") if args.compare else ():
        seed_everything(args.seed)
        model = network(args, text_features=data.text_features, modality=modality).to(device)
        learner = make_learner(model, args, len(data.split.train) // batch_size_of(args, data), device)
        for _ in progress(range(args.epochs), f"{modality} alone"):
            train_epoch(learner, data, args, detector.scale, device)
        alone = CrystalDetector(args, model, detector.scale, device, weights={})
        scores = scored(alone, data, "test")
        scores.split = f"{modality}_only_test"
        found |= summary(scores, alone.decision)
    return found
