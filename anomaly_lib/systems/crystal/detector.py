"""A trained crystal model with everything needed to apply it: options, target scale, text encoder, graph settings."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.identity import weight_remarks, weights_of
from anomaly_lib.detect.contract import EvaluateArgs, Evaluation
from anomaly_lib.engine.amp import autocast_for, pick_device
from anomaly_lib.engine.checkpoint import check_weights, load_checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.files import write_atomic
from anomaly_lib.metrics import auroc, regression_metrics
from anomaly_lib.models.crystal.alignn import ALIGNN
from anomaly_lib.models.crystal.fusion import CrystalFusionModel, CrystalOutput, TextRegressor
from anomaly_lib.systems.crystal.data.dataset import property_name
from anomaly_lib.systems.crystal.data.store import build_graphs
from anomaly_lib.systems.crystal.data.structure import Crystal
from anomaly_lib.systems.crystal.inputs import (
    Batch,
    CrystalData,
    TargetScale,
    encode_texts,
    load_data,
    make_batch,
    text_encoder,
)
from anomaly_lib.systems.crystal.options import PUBLISHED, Args, graph_settings, model_config
from anomaly_lib.types import Prediction

SYSTEM = "crystal"


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


def named(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    """Every figure with the part it belongs to in front: test_mae."""
    return {f"{prefix}_{name}": value for name, value in figures.items()}


@dataclass
class CrystalDetector:
    """A trained model with everything needed to apply it to new data."""

    model: nn.Module
    args: Args
    scale: TargetScale
    device: torch.device
    epoch: int = 0
    averaged: bool = False
    check: Callable[[dict[str, str]], None] = lambda _: None  # refuses a text encoder of other weights

    @torch.no_grad()
    def predict_rows(self, data: CrystalData, positions: Sequence[int]) -> Tensor:
        """Predicted property (or probability) of these crystals: [n]."""
        self.model.eval()
        size = self.args.batch_size or PUBLISHED["batch_size"]
        return torch.cat([self.predict(batch).score.cpu() for batch in data.batches(positions, size)])

    def figures(self, data: CrystalData, positions: Sequence[int]) -> dict[str, float]:
        """mae, rmse, r2 (classification: accuracy, precision, recall, auroc) on these crystals."""
        return figures_of(self.predict_rows(data, positions), data.targets[list(positions)], self.args)

    def write_predictions(self, path: Path, data: CrystalData, positions: Sequence[int]) -> Tensor:
        """A CSV of id, target, prediction; returns the predictions."""
        found = self.predict_rows(data, positions)
        floor = 0.0 if self.args.protocol == "paper" else float("-inf")  # published files cut negative values off

        def fill(stream: Any) -> None:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["id", "target", "prediction"])
            for position, value in zip(positions, found.tolist(), strict=True):
                row = data.rows[position]
                writer.writerow([row.id, f"{row.target:.6f}", f"{max(value, floor):.6f}"])

        write_atomic(path, fill, mode="w")
        return found

    def load_data(self, data_path: str | None, **changes: Any) -> CrystalData:
        """A data folder prepared exactly as in training; `changes` are options to change (property, split_file...)."""
        args = replace(self.args, data_path=data_path if data_path is not None else self.args.data_path, **changes)
        data = load_data(args, self.device, say=lambda _: None)
        self.check(data.weights)
        return data

    def prepare(self, crystals: Sequence[Crystal], texts: Sequence[str] | None = None) -> Batch:
        """Structures (and their descriptions, unless the model reads none) as one batch, as in training."""
        if texts is None and self.args.modality != "graph":
            raise UserError("this model reads text: give a description for every crystal")
        graphs = build_graphs(crystals, graph_settings(self.args))
        for reason in graphs.errors.values():
            raise UserError(reason)
        text: dict[str, Tensor] = {"pooled": torch.zeros(len(crystals), 1)}
        if texts is not None and self.args.modality != "graph":
            encoder = text_encoder(self.args)
            self.check(weights_of(encoder))
            text = encode_texts(texts, self.args, encoder, self.device, None)
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
    check = partial(check_weights, path, checkpoint["extra"])
    return CrystalDetector(model.eval(), args, scale, target_device, int(checkpoint["epoch"]), averaged, check)


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
    found = detector.predict_rows(data, positions)
    target = data.targets[positions]
    own = detector.args
    notes = [f"text encoder {own.backbone}"] if own.modality != "graph" else []
    oracle = own.select == "best-on-test" and args.split == "test"
    return Evaluation(
        system=SYSTEM,
        name=f"{'demo' if own.data_path is None else own.dataset} {property_name(own.property)}",
        metrics=named(f"oracle_{args.split}" if oracle else args.split, figures_of(found, target, own)),
        scores=found.numpy(),
        labels=target.long().numpy() if own.classification else target.numpy(),
        paths=[data.rows[i].id for i in positions],
        groups=[property_name(own.property)] * len(positions),
        kind="detection" if own.classification else "regression",
        notes=[*notes, *(["oracle: epoch chosen on the test split"] if oracle else []), *weight_remarks(data.weights)],
        facts={"epoch": detector.epoch, "ema": detector.averaged, "seed": own.seed},
    )
