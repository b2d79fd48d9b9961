"""Trained V4 models: from a checkpoint to features and scores of runs, and to what `evaluate.py` reports."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anomaly_lib.backbones.identity import weight_remarks
from anomaly_lib.detect.contract import EvaluateArgs, Evaluation
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import check_weights, load_checkpoint
from anomaly_lib.systems.weld.data.manifest import CLASSES, WeldRun, select_runs
from anomaly_lib.systems.weld.data.runs import WeldSettings
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.inputs import build_features
from anomaly_lib.systems.weld.supcon.knn import defect_margin, knn_metrics, knn_report
from anomaly_lib.systems.weld.supcon.options import Args
from anomaly_lib.systems.weld.supcon.task import QuadTask, build, encode_runs, open_runs
from anomaly_lib.types import Prediction

SYSTEM = "weld_supcon"


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
        features = build_features(args, where, WeldSettings.from_dict(saved["extra"]["settings"]))
    check_weights(path, saved["extra"], features.encoders.weights)
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
    notes = knn_report(bank, bank_labels, found, labels, k=own.k, metric=own.metric)
    return Evaluation(
        system=SYSTEM,
        name=f"k-NN k={own.k} {own.metric}",
        metrics=knn_metrics(bank, bank_labels, found, labels, k=own.k, metric=own.metric),
        scores=defect_margin(bank, bank_labels, found).numpy(),
        labels=[run.label for run in chosen],
        paths=[str(run.folder) for run in chosen],
        groups=["weld"] * len(chosen),
        defects=[run.class_name for run in chosen],
        notes=[*notes, *weight_remarks(detector.features.encoders.weights)],
        facts={"epoch": detector.epoch, "seed": own.seed},
    )
