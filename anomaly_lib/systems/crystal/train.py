"""Crystal graph + text, end to end: build, the training loop, predict, evaluate.

ALIGNN encodes structure, a frozen text encoder is run once; what is trained is ALIGNN and the fusion of both.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.config import to_plain
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import TrainState, load_checkpoint
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.ema import Ema
from anomaly_lib.engine.log import progress
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.errors import UserError
from anomaly_lib.files import write_json
from anomaly_lib.losses import info_nce_loss
from anomaly_lib.metrics import regression_metrics
from anomaly_lib.models.crystal.fusion import CrystalFusionModel, CrystalOutput
from anomaly_lib.systems.crystal.data.dataset import property_name
from anomaly_lib.systems.crystal.detector import (
    SYSTEM,
    CrystalDetector,
    build,
    evaluate,
    figures_of,
    forward,
    load_detector,
    load_weights,
    named,
    predict,
)
from anomaly_lib.systems.crystal.inputs import CrystalData, TargetScale, load_data
from anomaly_lib.systems.crystal.options import PUBLISHED, Args, resolve, without_effect
from anomaly_lib.types import RunResult

__all__ = ["SYSTEM", "Args", "build", "evaluate", "load_detector", "predict", "tiny", "train"]

SCALES = ("text_scale", "node_scale")
BEST, BEST_ORACLE = "best_model.pt", "best_test_model.pt"


def loss_of(output: CrystalOutput, target: Tensor, args: Args) -> Tensor:
    """Squared error (or cross-entropy), plus InfoNCE between each crystal's graph and text vectors if asked for."""
    if args.classification:
        loss = nn.functional.binary_cross_entropy_with_logits(output.prediction.float(), target)
    else:
        loss = nn.functional.mse_loss(output.prediction.float(), target)
    if args.use_contrastive and output.graph is not None and output.text is not None and len(target) > 1:
        contrast = info_nce_loss(output.graph, output.text, temperature=args.contrastive_temperature)
        loss = loss + args.contrastive_weight * contrast
    return loss


def scales_of(model: nn.Module) -> dict[str, float]:
    """Every learned scale by name: text_scale_layer_2, node_scale_layer_2."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        f"{name.split('.')[-1]}_{name.split('.')[-2]}": float(value.detach())
        for name, value in tensors
        if name.split(".")[-1] in SCALES
    }


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
    rates = {name: float(args.scale_learning_rate or args.learning_rate) for name in SCALES}
    optimizer = torch.optim.AdamW(param_groups(model, args.weight_decay, lr_of=rates), lr=args.learning_rate)
    warmup = 0 if args.protocol == "paper" else args.warmup_steps
    scheduler = make_schedule(optimizer, "onecycle", steps_per_epoch * (args.epochs or 0), warmup=warmup)
    ema = Ema(model, args.ema_decay) if args.ema_decay > 0 else None
    return Learner(model, optimizer, scheduler, make_scaler(device, args.precision), NonFiniteGuard(), ema)


def train_epoch(learner: Learner, data: CrystalData, args: Args, scale: TargetScale, device: torch.device) -> float:
    """One pass over the training crystals in random order (whole batches only); the mean loss."""
    rows, size = data.split.train, batch_size_of(args, data)
    learner.model.train()
    order = torch.randperm(len(rows)).tolist()
    losses = []
    for first in range(0, len(rows) - size + 1, size):
        batch = data.batch([rows[i] for i in order[first : first + size]]).to(device)
        with autocast_for(device, args.precision):
            loss = loss_of(forward(learner.model, batch), scale.to_model(batch.target), args)
        step(loss, learner.optimizer, scaler=learner.scaler, clip=args.grad_clip, guard=learner.guard)
        learner.scheduler.step()
        if learner.ema is not None:
            learner.ema.update(learner.model)
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def batch_size_of(args: Args, data: CrystalData) -> int:
    """--batch_size, or all training crystals where there are fewer."""
    return min(args.batch_size or PUBLISHED["batch_size"], len(data.split.train))


def fit_scale(data: CrystalData, args: Args) -> TargetScale:
    """The target scale of the training part."""
    active = args.standardize == "True" and not args.classification
    return TargetScale.of(data.targets[data.split.train], active=active)


def train(args: Args) -> RunResult:
    """Train, select on validation, test once. The same command continues an unfinished run."""
    args = resolve(_with_folder(args))
    device = pick_device(args.device)
    where = "demo" if args.data_path is None else args.dataset
    with Run.open(SYSTEM, args, name=f"{where}-{property_name(args.property)}") as run:
        if run.finished:
            run.log.line(f"already done: {run.dir}")
            return replace(run.result(), already_done=True)
        for name in without_effect(args):
            run.log.line(f"--{name} is accepted but has no effect (nor in the published program)")
        data = load_data(args, device, say=run.log.line, track=progress)
        run.note(data=data.facts)
        run.note(weights=data.weights)
        seed_everything(args.seed)  # the weights do not depend on how much was cached
        model = build(args, device, text_features=data.text_features)
        if args.compile:
            model.compile(dynamic=True)  # batches differ in atoms, bonds and angles; the state dict keeps its names
        config = asdict(model.config) if isinstance(model, CrystalFusionModel) else {}
        write_json(run.dir / "config.json", {**to_plain(args), "model": config})
        scale, steps = fit_scale(data, args), len(data.split.train) // batch_size_of(args, data)
        learner = make_learner(model, args, steps, device)
        watched = "accuracy" if args.classification else "mae"
        stopper = EarlyStopping(args.early_stopping_patience, higher_is_better=args.classification)
        state = TrainState(model, learner.optimizer, learner.scheduler, learner.scaler, learner.ema, stopper)
        state.extra = {
            "model_config": _listed(config),
            "text_features": data.text_features,
            "target_scale": asdict(scale),
            "data": data.facts,
        }
        detector = CrystalDetector(model, args, scale, device)
        run.log.line(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps an epoch, on {device}")
        first_epoch = run.restore(state)
        if learner.scheduler.total_steps != max(1, steps * (args.epochs or 0)):
            raise UserError(
                "--resume: the one-cycle schedule of that run has another length; use its --epochs, or --fresh"
            )
        for epoch in range(first_epoch, args.epochs or 0):
            if stopper.should_stop:
                run.log.line(f"stopping: no better validation {watched} for {stopper.waited} epochs")
                break
            values = {"train_loss": train_epoch(learner, data, args, scale, device)}
            values["lr"] = learner.optimizer.param_groups[0]["lr"]
            with _averaged(model, learner.ema):
                values |= named("val", detector.figures(data, data.split.val))
                if args.select == "best-on-test":
                    values |= named("oracle_test", detector.figures(data, data.split.test))
            values |= scales_of(model)
            # Best weights first: a run killed between the two files repeats this epoch and writes both again.
            if stopper.improved(values[f"val_{watched}"], epoch):
                state.best = {"epoch": epoch, **{k: v for k, v in values.items() if k.startswith("val_")}}
                run.save(state, epoch + 1, BEST)
            if args.select == "best-on-test" and _is_best([*state.history, values], f"oracle_test_{watched}", args):
                run.save(state, epoch + 1, BEST_ORACLE)
            run.end_epoch(state, epoch, values)
            if epoch % max(1, (args.epochs or 1) // 20) == 0 or epoch + 1 == args.epochs:
                shown = {
                    k: v for k, v in values.items() if k.startswith(("train_loss", f"val_{watched}", "text_scale"))
                }
                run.log.line(f"epoch {epoch + 1:4d}  " + "  ".join(f"{k} {v:.4f}" for k, v in shown.items()))
        return _finish(run, state, detector, data)


def _finish(run: Run, state: TrainState, detector: CrystalDetector, data: CrystalData) -> RunResult:
    """Test the selected weights, write what users of the published program look for, compare with baselines."""
    args, model, history = detector.args, detector.model, state.history
    write_json(run.dir / "history_train.json", {"loss": [row["train_loss"] for row in history]})
    keys = [key for key in (history[0] if history else {}) if key.startswith("val_")]
    write_json(run.dir / "history_val.json", {key[4:]: [row[key] for row in history] for key in keys})
    run.save(state, len(history))
    parts = {"val": data.split.val, "test": data.split.test}
    with _averaged(model, state.ema):
        for name, positions in parts.items():
            detector.write_predictions(run.dir / f"predictions_last_epoch_{name}.csv", data, positions)
    chosen = {"last": run.checkpoint, "val": run.dir / BEST, "best-on-test": run.dir / BEST_ORACLE}[args.select]
    chosen = chosen if chosen.is_file() else run.checkpoint
    metrics: dict[str, float] = {}
    if (run.dir / BEST).is_file():
        shutil.copyfile(run.dir / BEST, run.dir / "best_val_model.pt")
    load_weights(model, load_checkpoint(chosen, system=SYSTEM))
    for name, positions in parts.items():
        path = run.dir / f"predictions_best_val_model_{name}.csv"
        found = detector.write_predictions(path, data, positions)
        shutil.copyfile(path, run.dir / f"prediction_results_{name}_set.csv")
        prefix = f"oracle_{name}" if args.select == "best-on-test" and name == "test" else name
        metrics |= named(prefix, figures_of(found, data.targets[positions], args))
    test = data.targets[data.split.test]
    if not args.classification:
        constant = torch.full_like(test, float(data.targets[data.split.train].mean()))
        metrics["mean_predictor_test_mae"] = regression_metrics(constant, test)["mae"]
    if args.compare == "True" and args.modality == "both":
        metrics |= _baselines(data, args, detector.device, run)
    metrics |= scales_of(model)
    _report(run, metrics, args)
    return run.finish(None, metrics, final=chosen)


def _baselines(data: CrystalData, args: Args, device: torch.device, run: Run) -> dict[str, float]:
    """The same budget for each modality alone, so that what fusion adds can be seen."""
    found: dict[str, float] = {}
    for modality in ("graph", "text"):
        alone = replace(args, modality=modality, use_contrastive=False)
        seed_everything(args.seed)
        model, scale = build(alone, device, text_features=data.text_features), fit_scale(data, args)
        learner = make_learner(model, alone, len(data.split.train) // batch_size_of(alone, data), device)
        for _ in progress(range(args.epochs or 0), f"{modality} alone"):
            train_epoch(learner, data, alone, scale, device)
        detector = CrystalDetector(model, alone, scale, device)
        found |= named(f"{modality}_only_test", detector.figures(data, data.split.test))
    return found


def _report(run: Run, metrics: dict[str, float], args: Args) -> None:
    watched = "accuracy" if args.classification else "mae"
    say = run.log.line
    say(f"Best Validation {watched.upper()}: {metrics[f'val_{watched}']:.4f}")
    if f"oracle_test_{watched}" in metrics:
        say(f"Oracle Test {watched.upper()} (selected on the test set): {metrics[f'oracle_test_{watched}']:.4f}")
    else:
        say(f"Best Test {watched.upper()}: {metrics[f'test_{watched}']:.4f}  (weights chosen on validation)")
    for name, label in (
        ("graph_only_test", "graph alone"), ("text_only_test", "text alone"), ("mean_predictor_test", "mean predictor")
    ):  # fmt: skip
        if f"{name}_{watched}" in metrics:
            say(f"  {label:>16}: {metrics[f'{name}_{watched}']:.4f}")
    say(f"results in {run.dir}")


def _is_best(history: list[dict[str, Any]], name: str, args: Args) -> bool:
    """Is the last epoch the best so far?"""
    values = [row[name] for row in history]
    return values[-1] == (max(values) if args.classification else min(values))


def _listed(config: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}


@contextmanager
def _averaged(model: nn.Module, ema: Any) -> Iterator[None]:
    if ema is None:
        yield
        return
    with ema.applied(model):
        yield


def _with_folder(args: Args) -> Args:
    """The published program writes to <output_dir>/<property>/, and --resume is 0 or 1."""
    folder = args.output_dir and str(Path(args.output_dir) / property_name(args.property))
    resume = args.resume
    if resume in ("0", "False", "false"):
        resume = None
    elif resume in ("1", "True", "true"):
        resume = "latest" if folder and (Path(folder) / "checkpoint.pt").is_file() else None
    return replace(args, output_dir=folder, resume=resume)


def tiny() -> Args:
    """Seconds on a CPU."""
    return Args(
        epochs=2, n_train=48, n_val=16, n_test=16, hidden_features=16, batch_size=16, compare="False",
        use_middle_fusion=True, middle_fusion_use_learnable_scale=True, cache="ram",
    )  # fmt: skip
