"""Crystal graph + text, end to end: build, the training loop, predict, evaluate.

ALIGNN encodes structure, a frozen text encoder is run once; what is trained is ALIGNN and the fusion of both.
"""

import csv
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.config import to_plain
from anomaly_lib.data.crystal_dataset import property_name
from anomaly_lib.data.crystal_store import build_graphs
from anomaly_lib.data.crystal_structure import Crystal
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
from anomaly_lib.files import write_atomic, write_json
from anomaly_lib.losses import info_nce_loss
from anomaly_lib.metrics import auroc, regression_metrics
from anomaly_lib.models.alignn import ALIGNN
from anomaly_lib.models.crystal_fusion import CrystalFusionModel, CrystalOutput, TextRegressor
from anomaly_lib.recipes.crystal_data import (
    Batch,
    CrystalData,
    TargetScale,
    encode_texts,
    load_data,
    make_batch,
    text_encoder,
)
from anomaly_lib.recipes.crystal_options import PUBLISHED, Args, graph_settings, model_config, resolve, without_effect
from anomaly_lib.recipes.evaluation import EvaluateArgs, Evaluation
from anomaly_lib.types import Prediction, RunResult

SYSTEM = "crystal"
SCALES = ("text_scale", "node_scale")
BEST, BEST_ORACLE = "best_model.pt", "best_test_model.pt"


def build(args: Args, device: torch.device, *, text_features: int = 768) -> nn.Module:
    """The untrained network of these options."""
    config = model_config(args, text_features=text_features)
    if args.modality == "text":
        return TextRegressor(text_features=text_features).to(device)
    if args.modality == "graph":
        return ALIGNN(
            alignn_layers=config.alignn_layers,
            gcn_layers=config.gcn_layers,
            hidden_features=config.hidden_features,
            dropout=config.graph_dropout,
            learned_elements=config.learned_elements,
        ).to(device)
    return CrystalFusionModel(config).to(device)


def forward(model: nn.Module, batch: Batch) -> CrystalOutput:
    """One call for the three kinds of networks."""
    if isinstance(model, CrystalFusionModel):
        return model(batch.graph, batch.text, batch.text_mask)
    return CrystalOutput(model(batch.graph if isinstance(model, ALIGNN) else batch.text))


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


@torch.no_grad()
def predict_rows(
    model: nn.Module, data: CrystalData, positions: Sequence[int], args: Args, scale: TargetScale, device: torch.device
) -> Tensor:
    """Predicted property (or probability) of these crystals: [n]."""
    model.eval()
    found = []
    for batch in data.batches(positions, args.batch_size or PUBLISHED["batch_size"]):
        with autocast_for(device, args.precision):
            prediction = forward(model, batch.to(device)).prediction.float().cpu()
        found.append(prediction.sigmoid() if args.classification else scale.to_property(prediction))
    return torch.cat(found)


def figures_of(predicted: Tensor, target: Tensor, args: Args) -> dict[str, float]:
    """mae, rmse, r2; for classification accuracy, precision, recall and AUROC."""
    if not args.classification:
        return regression_metrics(predicted, target)
    positive, truth = predicted > args.classification_threshold, target > 0.5
    hit = float((positive & truth).sum())
    return {
        "accuracy": float((positive == truth).float().mean()),
        "precision": hit / max(1.0, float(positive.sum())),
        "recall": hit / max(1.0, float(truth.sum())),
        "auroc": auroc(predicted, truth.long()) if truth.any() and not truth.all() else float("nan"),
    }


def scales_of(model: nn.Module) -> dict[str, float]:
    """Every learned scale by name: text_scale_layer_2, node_scale_layer_2."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        f"{name.split('.')[-1]}_{name.split('.')[-2]}": float(value.detach())
        for name, value in named
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


def train_epoch(
    learner: Learner, data: CrystalData, args: Args, scale: TargetScale, device: torch.device, check: Callable[[], None]
) -> float:
    """One pass over the training crystals in random order (whole batches only); the mean loss."""
    rows, size = data.split.train, batch_size_of(args, data)
    learner.model.train()
    order = torch.randperm(len(rows)).tolist()
    losses = []
    for first in range(0, len(rows) - size + 1, size):
        check()
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
        seed_everything(args.seed)  # the weights do not depend on how much was cached
        model = build(args, device, text_features=data.text_features)
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
        run.log.line(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps an epoch, on {device}")
        for epoch in range(run.restore(state), args.epochs or 0):
            if stopper.should_stop:
                run.log.line(f"stopping: no better validation {watched} for {stopper.waited} epochs")
                break
            values = {"train_loss": train_epoch(learner, data, args, scale, device, run.stop.check)}
            values["lr"] = learner.optimizer.param_groups[0]["lr"]
            with _averaged(model, learner.ema):
                predicted = predict_rows(model, data, data.split.val, args, scale, device)
                values |= _named("val", figures_of(predicted, data.targets[data.split.val], args))
                if args.select == "best-on-test":
                    predicted = predict_rows(model, data, data.split.test, args, scale, device)
                    values |= _named("oracle_test", figures_of(predicted, data.targets[data.split.test], args))
            values |= scales_of(model)
            better = stopper.improved(values[f"val_{watched}"], epoch)
            if better:
                state.best = {"epoch": epoch, **{k: v for k, v in values.items() if k.startswith("val_")}}
            run.end_epoch(state, epoch, values)
            if better:
                run.save(state, epoch + 1, BEST)
            if args.select == "best-on-test" and _is_best(state.history, f"oracle_test_{watched}", args.classification):
                run.save(state, epoch + 1, BEST_ORACLE)
            if epoch % max(1, (args.epochs or 1) // 20) == 0 or epoch + 1 == args.epochs:
                shown = {
                    k: v for k, v in values.items() if k.startswith(("train_loss", f"val_{watched}", "text_scale"))
                }
                run.log.line(f"epoch {epoch + 1:4d}  " + "  ".join(f"{k} {v:.4f}" for k, v in shown.items()))
        return _finish(run, state, model, data, args, scale, device)


def _finish(
    run: Run,
    state: TrainState,
    model: nn.Module,
    data: CrystalData,
    args: Args,
    scale: TargetScale,
    device: torch.device,
) -> RunResult:
    """Test the selected weights, write what users of the published program look for, compare with baselines."""
    history = state.history
    write_json(run.dir / "history_train.json", {"loss": [row["train_loss"] for row in history]})
    keys = [key for key in (history[0] if history else {}) if key.startswith("val_")]
    write_json(run.dir / "history_val.json", {key[4:]: [row[key] for row in history] for key in keys})
    run.save(state, len(history))
    parts = {"val": data.split.val, "test": data.split.test}
    with _averaged(model, state.ema):
        for name, positions in parts.items():
            _write_predictions(
                run.dir / f"predictions_last_epoch_{name}.csv", model, data, positions, args, scale, device
            )
    chosen = {"last": run.checkpoint, "val": run.dir / BEST, "best-on-test": run.dir / BEST_ORACLE}[args.select]
    chosen = chosen if chosen.is_file() else run.checkpoint
    metrics: dict[str, float] = {}
    if (run.dir / BEST).is_file():
        shutil.copyfile(run.dir / BEST, run.dir / "best_val_model.pt")
    load_weights(model, load_checkpoint(chosen, system=SYSTEM))
    for name, positions in parts.items():
        path = run.dir / f"predictions_best_val_model_{name}.csv"
        found = _write_predictions(path, model, data, positions, args, scale, device)
        shutil.copyfile(path, run.dir / f"prediction_results_{name}_set.csv")
        prefix = f"oracle_{name}" if args.select == "best-on-test" and name == "test" else name
        metrics |= _named(prefix, figures_of(found, data.targets[positions], args))
    test = data.targets[data.split.test]
    if not args.classification:
        constant = torch.full_like(test, float(data.targets[data.split.train].mean()))
        metrics["mean_predictor_test_mae"] = regression_metrics(constant, test)["mae"]
    if args.compare == "True" and args.modality == "both":
        metrics |= _baselines(data, args, device, run)
    metrics |= scales_of(model)
    _report(run, metrics, args)
    return run.finish(None, metrics, final=chosen)


def _baselines(data: CrystalData, args: Args, device: torch.device, run: Run) -> dict[str, float]:
    """The same budget for each modality alone, so that what fusion adds can be seen."""
    found: dict[str, float] = {}
    test = data.targets[data.split.test]
    for modality in ("graph", "text"):
        alone = replace(args, modality=modality, use_contrastive=False)
        seed_everything(args.seed)
        model, scale = build(alone, device, text_features=data.text_features), fit_scale(data, args)
        learner = make_learner(model, alone, len(data.split.train) // batch_size_of(alone, data), device)
        for _ in progress(range(args.epochs or 0), f"{modality} alone"):
            train_epoch(learner, data, alone, scale, device, run.stop.check)
        found |= _named(f"{modality}_only_test", figures_of(
            predict_rows(model, data, data.split.test, alone, scale, device), test, args
        ))  # fmt: skip
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


def _write_predictions(
    path: Path, model: nn.Module, data: CrystalData, positions: Sequence[int], args: Args, scale: TargetScale,
    device: torch.device,
) -> Tensor:  # fmt: skip
    found = predict_rows(model, data, positions, args, scale, device)
    floor = 0.0 if args.protocol == "paper" else float("-inf")  # the published files cut negative values off

    def fill(stream: Any) -> None:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "target", "prediction"])
        for position, value in zip(positions, found.tolist(), strict=True):
            row = data.rows[position]
            writer.writerow([row.id, f"{row.target:.6f}", f"{max(value, floor):.6f}"])

    write_atomic(path, fill, mode="w")
    return found


def _is_best(history: list[dict[str, Any]], name: str, higher_is_better: bool) -> bool:
    """Is the last epoch the best so far?"""
    values = [row[name] for row in history]
    return values[-1] == (max(values) if higher_is_better else min(values))


def _named(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in figures.items()}


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


# -- after training ---------------------------------------------------------------------------------------------------


@dataclass
class CrystalDetector:
    """A trained model with everything needed to apply it to new data."""

    model: nn.Module
    args: Args
    scale: TargetScale
    device: torch.device
    epoch: int = 0
    averaged: bool = False

    def load_data(self, data_path: str | None, **changes: Any) -> CrystalData:
        """A data folder prepared exactly as in training; `changes` are options to change (property, split_file...)."""
        args = replace(self.args, data_path=data_path if data_path is not None else self.args.data_path, **changes)
        return load_data(args, self.device, say=lambda _: None)

    def prepare(self, crystals: Sequence[Crystal], texts: Sequence[str] | None = None) -> Batch:
        """Structures (and their descriptions, unless the model reads none) as one batch, as in training."""
        if texts is None and self.args.modality != "graph":
            raise UserError("this model reads text: give a description for every crystal")
        graphs = build_graphs(crystals, graph_settings(self.args))
        for reason in graphs.errors.values():
            raise UserError(reason)
        text: dict[str, Tensor] = {"pooled": torch.zeros(len(crystals), 1)}
        if texts is not None and self.args.modality != "graph":
            text = encode_texts(texts, self.args, text_encoder(self.args), self.device, None)
        return make_batch(graphs, text, range(len(crystals)), [0.0] * len(crystals), self.args)

    def predict(self, batch: Batch) -> Prediction:
        """Predicted property values as scores."""
        return predict(self, batch)


def load_weights(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """The averaged weights when the checkpoint has them, else the plain ones."""
    shadow = (checkpoint.get("ema") or {}).get("shadow")
    try:
        model.load_state_dict(shadow or checkpoint["model"])
    except RuntimeError as error:
        raise UserError(
            f"the checkpoint does not fit its own options: {str(error).splitlines()[-1].strip()}"
        ) from error


def load_detector(path: str | Path, device: str = "auto") -> CrystalDetector:
    """The trained model of a checkpoint."""
    checkpoint = load_checkpoint(path, system=SYSTEM)
    known = set(Args.__dataclass_fields__)
    args = Args(**{name: value for name, value in checkpoint["args"].items() if name in known})
    target_device = pick_device(device)
    model = build(args, target_device, text_features=checkpoint["extra"]["text_features"])
    load_weights(model, checkpoint)
    scale = TargetScale(**checkpoint["extra"]["target_scale"])
    averaged = checkpoint.get("ema") is not None
    return CrystalDetector(model.eval(), args, scale, target_device, int(checkpoint["epoch"]), averaged)


@torch.no_grad()
def predict(detector: CrystalDetector, batch: Batch) -> Prediction:
    """The property of each crystal of a batch."""
    detector.model.eval()
    with autocast_for(detector.device, detector.args.precision):
        output = forward(detector.model, batch.to(detector.device))
    value = output.prediction.float()
    score = value.sigmoid() if detector.args.classification else detector.scale.to_property(value)
    return Prediction(score=score, parts={name: gate.mean(-1) for name, gate in output.gates.items()})


def evaluate(checkpoint: Path, args: EvaluateArgs) -> Evaluation:
    """Figures on a part of the run's own split, or of the data at --data-path."""
    detector = load_detector(checkpoint, args.device)
    changes = {"on_error": args.on_error, **({"dataset": args.dataset} if args.dataset else {})}
    data = detector.load_data(args.data_path, **changes)
    positions = list(getattr(data.split, args.split))
    found = predict_rows(detector.model, data, positions, detector.args, detector.scale, detector.device)
    target = data.targets[positions]
    own = detector.args
    notes = [f"text encoder {own.backbone}"] if own.modality != "graph" else []
    oracle = own.select == "best-on-test" and args.split == "test"
    return Evaluation(
        system=SYSTEM,
        name=f"{'demo' if own.data_path is None else own.dataset} {property_name(own.property)}",
        metrics=_named(f"oracle_{args.split}" if oracle else args.split, figures_of(found, target, own)),
        scores=found.numpy(),
        labels=target.long().numpy() if own.classification else target.numpy(),
        paths=[data.rows[i].id for i in positions],
        groups=[property_name(own.property)] * len(positions),
        kind="detection" if own.classification else "regression",
        notes=[*notes, *(["oracle: epoch chosen on the test split"] if oracle else [])],
        facts={"epoch": detector.epoch, "ema": detector.averaged, "seed": own.seed},
    )


def tiny() -> Args:
    """Seconds on a CPU."""
    return Args(
        epochs=2, n_train=48, n_val=16, n_test=16, hidden_features=16, batch_size=16, compare="False",
        use_middle_fusion=True, middle_fusion_use_learnable_scale=True, cache="ram",
    )  # fmt: skip
