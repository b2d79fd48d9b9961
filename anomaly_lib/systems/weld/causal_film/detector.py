"""Trained Causal-FiLM detectors: from a checkpoint to scores, and to what `evaluate.py` reports."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from anomaly_lib.backbones.identity import weight_remarks
from anomaly_lib.detect.contract import EvaluateArgs, Evaluation
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import check_weights, load_checkpoint
from anomaly_lib.engine.run import Run
from anomaly_lib.errors import UserError
from anomaly_lib.models.weld.causal_film_loss import anomaly_score
from anomaly_lib.systems.weld.causal_film.options import Args, resolve
from anomaly_lib.systems.weld.causal_film.report import draw_run, final_report, split_metrics
from anomaly_lib.systems.weld.causal_film.task import CausalFiLMTask, build, score_runs
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.data.runs import WeldSettings
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.inputs import build_features, open_runs, usable_of
from anomaly_lib.types import Prediction

SYSTEM = "causal_film"


def run_name(args: Args) -> str:
    return f"{'demo' if not args.data_path else Path(args.data_path).name}-{args.preset}"


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
    check_weights(path, saved["extra"], features.encoders.weights)
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
    notes += weight_remarks(detector.features.encoders.weights)
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
