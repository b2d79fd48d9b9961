"""Causal-FiLM: train on normal welds how the process determines the result, score by the broken prediction.

Frozen encoders run once over the data (weld_features); the loop below then trains on cached rows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anomaly_lib.backbones import create_backbone
from anomaly_lib.data.weld.augment import augment_weld
from anomaly_lib.data.weld.demo import weld_demo_runs
from anomaly_lib.data.weld.manifest import WeldRun, read_manifest, select_runs
from anomaly_lib.data.weld.runs import WeldSettings
from anomaly_lib.engine import distributed
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import TrainState, load_checkpoint, save_checkpoint
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.ema import Ema
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.engine.run import Run, to_plain
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.errors import UserError
from anomaly_lib.metrics import auroc
from anomaly_lib.models.weld.causal_film import CausalFiLM, Encodings, parameter_report, parse_branches
from anomaly_lib.models.weld.causal_film_loss import CausalFiLMLoss, anomaly_score, collapse_monitor
from anomaly_lib.recipes.evaluation.contract import EvaluateArgs, Evaluation
from anomaly_lib.recipes.weld.causal_film_options import Args, causal_config, causal_loss_config, resolve, weld_settings
from anomaly_lib.recipes.weld.causal_film_report import diagnose, draw_run, final_report, split_metrics
from anomaly_lib.recipes.weld.features import TokenSettings, WeldEncoders, WeldFeatures
from anomaly_lib.types import Prediction, RunResult

SYSTEM = "causal_film"
BEST = "best_model.pth"
TERMS = ("loss", "cos", "l1", "gram", "text")


class CausalFiLMTask(nn.Module):
    """Model and loss as one module: what is trained, averaged, wrapped by DDP and saved."""

    def __init__(self, model: CausalFiLM, criterion: CausalFiLMLoss, *, score_kind: str, score_topk: float) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.score_kind, self.score_topk = score_kind, score_topk

    def forward(self, batch: dict[str, Any], slow: Encodings | None = None) -> dict[str, Tensor]:
        """Every loss term; `slow` are the averaged model's encodings, the targets of ``ema_target``."""
        out = self.model(batch)
        mode = self.model.config.target_mode
        if mode == "ema_target" and slow is not None:
            pulled = self.criterion(slow.z_result, out.z_pred)
            pulling = self.criterion(out.z_result, slow.z_pred)
            terms = {name: (pulled[name] + pulling[name]) / 2 for name in pulled}
        else:
            terms = self.criterion(out.z_result if mode == "joint" else out.z_result.detach(), out.z_pred)
        return {**terms, "score": self.score(out).detach(), "z_result": out.z_result.detach()}

    def score(self, out: Encodings) -> Tensor:
        return anomaly_score(out.z_result, out.z_pred, kind=self.score_kind, topk_ratio=self.score_topk)


class WeldSource(Protocol):
    """Where runs come from, in the options of every weld recipe."""

    data_path: str | None
    demo_seed: int
    demo_train: int
    demo_good: int
    demo_defects: int


def open_runs(args: WeldSource) -> list[WeldRun]:
    """The runs of resolved options: built-in, or those of --data-path."""
    if args.data_path:
        return read_manifest(args.data_path)
    return weld_demo_runs(seed=args.demo_seed, train=args.demo_train, good=args.demo_good, per_defect=args.demo_defects)


def build_features(args: Args, device: torch.device, settings: WeldSettings) -> WeldFeatures:
    """Frozen encoders and their stores."""
    assert args.video_backbone and args.audio_backbone and args.image_backbone  # noqa: PT018
    tokens = TokenSettings(
        branches=parse_branches(str(args.branches)),
        layer_index=str(args.layer_index),
        patch_only=args.patch_only,
        video_token_pool=str(args.video_token_pool),
        swap_audio_axes=settings.swap_audio_axes,
    )
    encoders = WeldEncoders(
        create_backbone(
            args.video_backbone, weights=args.video_weights, layers=["patch_tokens"], download=args.download
        ),
        create_backbone(args.audio_backbone, weights=args.audio_weights, layers=["tokens"], download=args.download),
        create_backbone(
            args.image_backbone, weights=args.image_weights, layers=tokens.backbone_outputs(), download=args.download
        ),
        tokens,
    )
    return WeldFeatures(
        settings,
        encoders,
        cache=args.cache,
        cache_dir=args.cache_dir,
        device=device,
        precision=args.precision,
        dtype=args.feature_dtype,
        augment=augment_weld if args.augment else None,
    )


def build(args: Args, device: torch.device, *, dims: dict[str, int] | None = None) -> CausalFiLMTask:
    """The trainable part of resolved options; `dims` are the encoders' widths (default: the published ones)."""
    model = CausalFiLM(causal_config(args, dims or {}))
    text = None
    if args.text_vector:
        text = load_text_vector(args.text_vector)
    criterion = CausalFiLMLoss(causal_loss_config(args), d_model=model.config.d_model, text=text)
    return CausalFiLMTask(model, criterion, score_kind=args.score_kind, score_topk=args.score_topk).to(device)


def load_text_vector(path: str) -> Tensor:
    if not Path(path).is_file():
        raise UserError(f"--text-vector {path}: no such file")
    vector = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(vector, Tensor) or vector.ndim != 1:
        raise UserError(f"--text-vector {path}: expected one vector, the CLIP embedding of 'a normal weld'")
    return vector


def with_sensor_statistics(settings: WeldSettings, features: WeldFeatures, train: Sequence[WeldRun]) -> WeldSettings:
    """For --sensor-norm train: mean and std per channel over the training runs."""
    if settings.sensor_norm != "train":
        return settings
    series = torch.cat([one for one, there in map(features.sensors, train) if there] or [torch.zeros(1, 1)])
    mean, std = series.mean(0), series.std(0, unbiased=False)
    return replace(settings, sensor_mean=tuple(mean.tolist()), sensor_std=tuple(std.tolist()))


def usable(runs: Sequence[WeldRun], features: WeldFeatures, say: Any) -> list[WeldRun]:
    """Runs with at least one photo: without one there is no result to compare."""
    if features.cache == "off":
        return list(runs)
    kept = [run for run in runs if bool(features.batch([run])["views"].any())]
    if len(kept) < len(runs):
        say(f"{len(runs) - len(kept)} runs have no photo of the finished weld and are left out")
    if not kept:
        raise UserError("no run has a photo of the finished weld: check the images/ folders")
    return kept


def train(args: Args, *, features: WeldFeatures | None = None) -> RunResult:
    """Train, keep the best epoch by validation AUROC, report on the test split.

    `features` of equal preprocessing and encoders may be handed in, so that several runs share one encoding.
    """
    args = resolve(args)
    device = pick_device(args.device)
    with distributed.process_group(device), Run.open(SYSTEM, args, name=run_name(args)) as run:
        if run.finished:
            run.log.line(f"{run.dir} is done (--fresh starts over)")
            return run.result()
        settings = weld_settings(args)
        runs = open_runs(args)
        train_runs = select_runs(runs, "train", normal_only=True)
        val_runs = select_runs(runs, "val")
        features = features or build_features(args, device, settings)
        if args.on_error == "skip":
            runs, skipped = features.readable(runs)
            run.note(skipped=skipped)
            train_runs, val_runs = select_runs(runs, "train", normal_only=True), select_runs(runs, "val")
            run.log.line(f"{len(skipped)} unreadable runs are skipped (listed in run.json)")
        settings = with_sensor_statistics(settings, features, train_runs)
        features.settings = settings
        features.prepare([*train_runs, *val_runs])
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
    guard = NonFiniteGuard()
    for epoch in range(first, int(args.epochs or 0)):
        if stopper.should_stop:
            break
        started = time.monotonic()
        wrapped.train()
        sums: dict[str, float] = dict.fromkeys((*TERMS, "score"), 0.0)
        scores: list[Tensor] = []
        batches = distributed.epoch_batches(len(train_runs), args.batch_size, seed=args.seed, epoch=epoch)
        for number, (indices, weight) in enumerate(batches):
            run.stop.check()
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
        trained = time.monotonic() - started
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
        run.log.line(f"epoch {epoch + 1}: {spell(row)} ({trained:.2f} s){' *' if better else ''}")
        if better:  # before end_epoch: a kill in between repeats the epoch, and no best epoch is ever lost
            save_best(run, state, epoch + 1, row)
        run.end_epoch(state, epoch, row)


def slow_encodings(args: Args, task: CausalFiLMTask, ema: Any, batch: dict[str, Any]) -> Encodings | None:
    if args.target_mode != "ema_target" or not isinstance(ema, Ema):
        return None
    with ema.applied(task), torch.no_grad():
        return task.model(batch)  # type: ignore[no-any-return]


def spell(values: dict[str, float], scale: float = 1.0) -> str:
    shown = [name for name in ("loss", "cos", "l1", "text", "lr", "val_auroc", "val_auroc_raw") if name in values]
    return ", ".join(f"{name} {values[name] * (scale if name in TERMS else 1):.4g}" for name in shown)


@torch.no_grad()
def score_runs(
    task: CausalFiLMTask, features: WeldFeatures, runs: Sequence[WeldRun], *, batch_size: int, precision: str
) -> dict[str, Tensor]:
    """Scores [N], loss terms [1] and the collapse figure of runs, in eval mode."""
    was_training = task.training
    task.eval()
    device = next(task.parameters()).device
    parts = []
    for start in range(0, len(runs), batch_size):
        batch = features.batch(runs[start : start + batch_size])
        with autocast_for(device, precision):
            parts.append({name: value.float().cpu() for name, value in task(batch).items()})
    task.train(was_training)
    sizes = torch.tensor([float(len(part["score"])) for part in parts])
    out = {name: (torch.stack([part[name] for part in parts]) * sizes).sum() / sizes.sum() for name in TERMS}
    out["score"] = torch.cat([part["score"] for part in parts])
    out["collapse"] = torch.tensor(collapse_monitor(torch.cat([part["z_result"] for part in parts])))
    return out


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
        "args": to_plain(run.args),
        "epoch": epochs_done,
        "wandb_run_id": run.trackers.wandb_run_id if run.trackers else None,
        **state.to_dict(),
        "history": state.history + ([{"epoch": epochs_done - 1, **row}] if row else []),
        "model_state_dict": own,  # tensors shared with `model`: they are stored once
        "ema_state_dict": {name: averaged[f"model.{name}"] for name in own},
    }
    save_checkpoint(run.dir / BEST, payload, system=SYSTEM)


def finish(args: Args, run: Run, state: TrainState, features: WeldFeatures, runs: list[WeldRun]) -> RunResult:
    """Report the chosen checkpoint on validation and test, raw beside averaged."""
    best = run.dir / BEST
    if not state.history:  # --epochs 0: there is no best epoch, the initial weights are the result
        save_best(run, state, 0)
    distributed.barrier()
    run.save(state, len(state.history))
    distributed.barrier()
    final = best if args.select == "val" and best.is_file() else run.checkpoint
    test_runs = usable_of(runs, features, "test", run.log.line)
    metrics: dict[str, float] = {}
    if distributed.is_main():
        for line in diagnose(state.history):
            run.log.line(line)
        metrics = report_checkpoint(run, features, final, test_runs, runs)
    return run.finish(state, metrics, final=final)


def usable_of(runs: list[WeldRun], features: WeldFeatures, split: str, say: Any) -> list[WeldRun]:
    chosen = select_runs(runs, split)
    features.prepare(chosen)
    return usable(chosen, features, say)


def report_checkpoint(
    run: Run, features: WeldFeatures, final: Path, test_runs: list[WeldRun], runs: list[WeldRun]
) -> dict[str, float]:
    detector = load_detector(final, features=features)
    run.log.line(f"{final.name}: epoch {detector.epoch}, weights {detector.weights}")
    scores = detector.score_runs(test_runs)
    metrics = split_metrics(scores, test_runs)
    raw = load_detector(final, weights="raw", features=features)
    metrics["image_auroc_raw"] = split_metrics(raw.score_runs(test_runs), test_runs)["image_auroc"]
    for line in final_report(
        scores, test_runs, metrics, features, [r for r in runs if r.split == "train" and not r.label]
    ):
        run.log.line(line)
    if run.args.figures:
        run.note(figures=draw_run(run.dir, scores, test_runs, load_checkpoint(final)["history"]))
    return metrics


def run_name(args: Args) -> str:
    return f"{'demo' if not args.data_path else Path(args.data_path).name}-{args.preset}"


# -- trained detectors --------------------------------------------------------------------------------------------


@dataclass
class WeldDetector:
    """A trained Causal-FiLM with the preprocessing and encoders it was trained with."""

    task: CausalFiLMTask
    features: WeldFeatures
    args: Args
    epoch: int
    weights: str  # "ema" or "raw": which of the two this is
    threshold: float | None = None

    def score_runs(self, runs: Sequence[WeldRun]) -> Tensor:
        """Anomaly scores [N]."""
        self.features.prepare(runs)
        found = score_runs(
            self.task, self.features, runs, batch_size=self.args.batch_size, precision=self.args.precision
        )
        return found["score"]

    def predict(self, runs: Sequence[WeldRun]) -> Prediction:
        """Scores of whole runs (`read_manifest(folder)` lists them)."""
        return predict(self, runs)


def predict(model: WeldDetector, batch: Sequence[WeldRun]) -> Prediction:
    """Score and its cosine and L1 parts for runs."""
    model.features.prepare(batch)
    model.task.eval()
    with torch.no_grad():
        out = model.task.model(model.features.batch(batch))
    parts = {kind: anomaly_score(out.z_result, out.z_pred, kind=kind) for kind in ("cosine", "l1")}
    return Prediction(score=model.task.score(out), parts=parts)


def load_detector(
    path: str | Path, *, weights: str = "auto", device: str = "auto", features: WeldFeatures | None = None
) -> WeldDetector:
    """The detector of a checkpoint: averaged weights when it has them, its own preprocessing always."""
    saved = load_checkpoint(path, system=SYSTEM)
    known = {name: value for name, value in saved["args"].items() if name in Args.__dataclass_fields__}
    args = resolve(Args(**known))
    where = pick_device(device)
    if features is None:
        features = build_features(args, where, WeldSettings.from_dict(saved["extra"]["settings"]))
    task = build(args, features.device, dims=features.dims())
    averaged = (saved.get("ema") or {}).get("shadow")
    if weights not in ("auto", "ema", "raw"):
        raise UserError(f"--weights {weights}: choose auto, ema or raw")
    if weights == "ema" and averaged is None:
        raise UserError(f"{path}: has no averaged weights; use --weights raw")
    chosen = "ema" if averaged is not None and weights != "raw" else "raw"
    task.load_state_dict({"ema": averaged, "raw": saved["model"]}[chosen] or {})
    return WeldDetector(task.eval(), features, args, int(saved["epoch"]), chosen)


def evaluate(checkpoint: Path, args: EvaluateArgs) -> Evaluation:
    """Score a split with the checkpoint's own preprocessing; raw and averaged weights side by side in the notes."""
    saved = load_checkpoint(checkpoint, system=SYSTEM)
    wanted = args.weights
    detector = load_detector(checkpoint, weights=wanted, device=args.device)
    own = detector.args
    runs = open_runs(replace(own, data_path=args.data_path or own.data_path))
    notes = []
    if args.on_error == "skip":
        runs, skipped = detector.features.readable(runs)
        notes += [f"skipped {one['path']}: {one['reason']}" for one in skipped]
    chosen = usable_of(runs, detector.features, args.split, lambda _: None)
    scores = detector.score_runs(chosen)
    metrics = split_metrics(scores, chosen)
    notes += [f"epoch {detector.epoch}, best validation AUROC {saved['best'].get('val_auroc', float('nan')):.4f}"]
    other = "raw" if detector.weights == "ema" else "ema"
    if (saved.get("ema") or {}).get("shadow") is not None:
        second = load_detector(checkpoint, weights=other, features=detector.features)
        value = split_metrics(second.score_runs(chosen), chosen)["image_auroc"]
        notes.append(f"weights {detector.weights}: AUROC {metrics['image_auroc']:.4f}; {other}: {value:.4f}")
    notes += final_report(scores, chosen, metrics)
    if detector.features.encoders.image.is_random:
        notes.append("the frozen encoders have random weights")
    val = usable_of(runs, detector.features, "val", lambda _: None)
    val_scores = detector.score_runs(val)
    val_labels = torch.tensor([run.label for run in val])
    return Evaluation(
        system=SYSTEM,
        name=run_name(own),
        metrics=metrics,
        scores=scores.numpy(),
        labels=[run.label for run in chosen],
        paths=[str(run.folder) for run in chosen],
        groups=["weld"] * len(chosen),
        defects=[run.class_name for run in chosen],
        normal_scores=val_scores[val_labels == 0].numpy(),
        validation=(val_scores.numpy(), val_labels.numpy()),
        notes=notes,
        facts={"epoch": detector.epoch, "ema": detector.weights == "ema", "seed": own.seed},
    )


def tiny() -> Args:
    """Seconds on a CPU."""
    return Args(
        epochs=2, demo_train=16, demo_good=4, demo_defects=1, d_model=16, sensor_hidden=16, patience=0, figures=False
    )
