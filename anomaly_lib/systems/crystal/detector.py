"""A trained crystal model with everything needed to apply it: options, target scale, text encoder, graph settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Detector, Facts, Selection
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Scores
from anomaly_lib.engine.amp import autocast_for, pick_device
from anomaly_lib.engine.checkpoint import Checkpoint
from anomaly_lib.errors import UserError, reason_of
from anomaly_lib.models.crystal.alignn import ALIGNN
from anomaly_lib.models.crystal.fusion import CrystalFusionModel, CrystalOutput, TextRegressor
from anomaly_lib.ops.graph import segment_mean
from anomaly_lib.systems.crystal.data.dataset import Split
from anomaly_lib.systems.crystal.data.settings import property_name
from anomaly_lib.systems.crystal.data.store import build_graphs
from anomaly_lib.systems.crystal.data.structure import READ_SUFFIXES, Crystal, read_crystal
from anomaly_lib.systems.crystal.data.text import describe_with_robocrystallographer
from anomaly_lib.systems.crystal.inputs import (
    Batch,
    CrystalData,
    TargetScale,
    data_table,
    encode_texts,
    load_data,
    make_batch,
    text_encoder,
)
from anomaly_lib.systems.crystal.options import Args
from anomaly_lib.types import Prediction

SYSTEM = "crystal"
ORACLE = "oracle: epoch chosen on the test split"
NO_PROPERTY = "what it predicts is not in an original checkpoint: give property= here or to convert_checkpoint.py"
REGRESSION = "it predicts a property, and no value of one is normal or anomalous by itself"


def network(args: Args, *, text_features: int, modality: str | None = None) -> nn.Module:
    """The untrained network of these options, or their baseline that sees one `modality` alone."""
    modality = modality or args.modality
    if modality == "text":
        return TextRegressor(text_features=text_features)
    if modality == "graph":
        return ALIGNN(args)
    return CrystalFusionModel(args, text_features=text_features)


def forward(model: nn.Module, batch: Batch) -> CrystalOutput:
    """One call for the three kinds of networks."""
    if isinstance(model, CrystalFusionModel):
        return model(batch.graph, batch.text, batch.text_mask)
    return CrystalOutput(model(batch.graph if isinstance(model, ALIGNN) else batch.text))


class CrystalDetector(Detector):
    """Predicts a property of crystals (or the probability of a class) from structure, description or both.

    ``detector.predict(x, text=...)``: `x` is a structure file (CIF, POSCAR, ...), a `Crystal`, a pair (structure,
    description), or a list of these. `Prediction.score` [B] is the property; `parts` tells for each fusion module how
    much text it let in: the gate's mean over the atoms and channels of each crystal [B].
    """

    system = SYSTEM
    honours = frozenset({"dataset", "on_error"})
    splits = ("train", "val", "test")

    def __init__(
        self,
        args: Args,
        model: nn.Module,
        scale: TargetScale,
        device: torch.device,
        *,
        weights: Mapping[str, str],
        encoder: Any = None,
        check_weights: Callable[[Mapping[str, str]], None] = lambda _: None,
        notes: Sequence[str] = (),
        shown: Mapping[str, Any] | None = None,
        original: bool = False,
    ) -> None:
        """`check_weights` refuses a text encoder of other weights than in training; `encoder`: made when needed.

        `original`: trained by an original program, whose checkpoints do not tell on which data.
        """
        self.args, self.model, self.scale, self.device = args, model.to(device), scale, device
        self._encoder, self._check_weights, self._original = encoder, check_weights, original
        oracle = [ORACLE] if args.select == "best-on-test" else []
        self.facts = Facts(weights, notes=[*oracle, *notes], shown=shown or {})
        self.undecided = REGRESSION
        if args.classification:
            self.decision = Decision(args.classification_threshold, "classification_threshold of the training run")

    # -- samples of data sets -----------------------------------------------------------------------------------

    def load_data(
        self, data_path: str | None = None, *, chosen: Callable[[Split], Sequence[int]] | None = None, **changes: Any
    ) -> CrystalData:
        """A data folder prepared exactly as in training; `changes` are options to change (property, split_file...).

        `chosen`: which rows are needed, of a split of all; None = all of them.
        """
        args = replace(self.args, **({"data_path": data_path} if data_path is not None else {}), **changes)
        if args.data_path is None and self._original:
            raise UserError(
                "an original program's checkpoint does not tell on which data it was trained: give data_path="
            )
        try:
            table = data_table(args)
        except UserError as error:
            if not self._original or "property" in changes:
                raise
            raise UserError(f"{error}; {NO_PROPERTY}") from None
        return load_data(args, table, self._text_encoder(), self.device, chosen=chosen)

    def selection(self, data: CrystalData, split: str, *, batch_size: int) -> Selection:
        """The crystals of one part of the data."""
        where = "demo" if data.args.data_path is None else data.args.dataset
        return Selection(
            name=f"{where} {property_name(data.args.property)}",
            items=getattr(data.split, split),
            choice=Choice(split=split, batch_size=batch_size),
            beside=data,
        )

    def _items(self, choice: Choice) -> Selection:
        layout: dict[str, Any] = {"dataset": choice.dataset} if choice.dataset is not None else {}
        data = self.load_data(choice.data_path, on_error=choice.on_error, **layout)
        return self.selection(data, choice.split, batch_size=choice.batch_size)

    def _score(self, selection: Selection) -> Scores:
        data, positions, choice = selection.beside, list(selection.items), selection.choice
        targets = data.targets[positions]
        chosen_on_test = self.args.select == "best-on-test" and choice.split == "test"
        return Scores(
            system=SYSTEM,
            name=selection.name,
            scores=self.predict_rows(data, positions, choice.batch_size).numpy(),
            labels=(targets.long() if self.args.classification else targets).numpy(),
            paths=[data.rows[i].id for i in positions],
            groups=[property_name(data.args.property)] * len(positions),
            kind="classification" if self.args.classification else "regression",
            split="oracle_test" if chosen_on_test else choice.split,
        )

    def predict_rows(self, data: CrystalData, positions: Sequence[int], batch_size: int) -> Tensor:
        """Predicted property (or probability) of these crystals: [n], on the CPU."""
        return torch.cat([self.predict_batch(batch).score.cpu() for batch in data.batches(positions, batch_size)])

    # -- single inputs ------------------------------------------------------------------------------------------

    def predict(self, inputs: Any, text: str | Sequence[str] | None = None) -> Prediction:
        """The property of one or many structures; `text`: the description of each, where a model reads one.

        What has no description is described by robocrystallographer, where that is installed (seconds a crystal).
        """
        if text is not None and self.args.modality == "graph":
            raise UserError("text=: this model reads no text")
        return super().predict(inputs if text is None else with_text(inputs, text))

    def _predict(self, inputs: Any) -> Prediction:
        pairs = described_crystals(inputs)
        encoder = self._text_encoder()
        if encoder is not None:
            pairs = [(crystal, described(crystal) if text is None else text) for crystal, text in pairs]
        crystals, texts = [crystal for crystal, _ in pairs], [text for _, text in pairs]
        graphs = build_graphs(crystals, self.args)
        for reason in graphs.errors.values():
            raise UserError(reason)
        text = encode_texts([one or "" for one in texts], self.args, encoder, self.device)
        size, found = self.args.batch_size, []
        for first in range(0, len(pairs), size):
            rows = range(first, min(first + size, len(pairs)))
            found.append(self.predict_batch(make_batch(graphs, text, rows, [0.0] * len(rows), self.args)))
        parts = {name: torch.cat([one.parts[name] for one in found]) for name in found[0].parts}
        return Prediction(score=torch.cat([one.score for one in found]), parts=parts)

    @torch.no_grad()
    def predict_batch(self, batch: Batch) -> Prediction:
        """The property of each crystal of a batch, on the detector's device."""
        self.model.eval()
        batch = batch.to(self.device)
        with autocast_for(self.device, self.args.precision):
            output = forward(self.model, batch)
        value = output.prediction.float()
        score = value.sigmoid() if self.args.classification else self.scale.to_property(value)
        gates = {
            name: segment_mean(gate.float().mean(1, keepdim=True), batch.graph.owner, batch.graph.num_crystals)[:, 0]
            for name, gate in output.gates.items()
        }
        return Prediction(score=score, parts=gates)

    def _text_encoder(self) -> Any:
        if self._encoder is None:
            self._encoder = text_encoder(self.args)
        self._check_weights(weights_of(self._encoder))
        return self._encoder


def with_text(inputs: Any, text: str | Sequence[str]) -> list[Any]:
    """Pairs of structures and their descriptions: one of each, or as many descriptions as structures."""
    structures = inputs if isinstance(inputs, list) else [inputs]
    texts = [text] if isinstance(text, str) else list(text)
    if len(texts) != len(structures):
        raise UserError(f"text=: {len(texts)} descriptions for {len(structures)} structures; each needs its own")
    if any(isinstance(one, tuple) for one in structures):
        raise UserError("text=: the structures have descriptions already (they are pairs)")
    return list(zip(structures, texts, strict=True))


def described(crystal: Crystal) -> str:
    """A description by robocrystallographer, for a model that reads text."""
    try:
        return describe_with_robocrystallographer(crystal)
    except UserError as error:
        name = crystal.name or "crystal"
        raise UserError(f"{name}: this model reads text and none was given: give text=, or {error}") from None


def described_crystals(inputs: Any) -> list[tuple[Crystal, str | None]]:
    """One or many structures (files, crystals, pairs with a description) as (crystal, description or None)."""
    many = inputs if isinstance(inputs, list) else [inputs]
    if not many:
        raise UserError("predict() got no crystals")
    return [_described(one) for one in many]


def _described(one: Any) -> tuple[Crystal, str | None]:
    structure, text = one if isinstance(one, tuple) and len(one) == 2 else (one, None)
    if isinstance(text, str) and text.lower().endswith(READ_SUFFIXES):
        raise UserError(f"{text}: a description is text, not a file; for several structures give a list, not a tuple")
    if isinstance(structure, (str, Path)):
        structure = read_crystal(Path(structure))
    if not isinstance(structure, Crystal) or not isinstance(text, (str, type(None))):
        raise UserError(
            f"cannot predict {type(one).__name__}: give a structure file ({', '.join(READ_SUFFIXES)}, POSCAR*), a "
            "Crystal, a pair (structure, description), or a list of these"
        )
    return structure, text


def load_parameters(model: nn.Module, checkpoint: Checkpoint, which: str = "auto") -> bool:
    """Fill the network from a checkpoint: averaged ("ema") or "raw" parameters, "auto" = averaged where there are any.

    Returns whether they are averaged.
    """
    averaged = (checkpoint.get("ema") or {}).get("shadow")
    if which == "ema" and averaged is None:
        raise UserError(f"{checkpoint.path}: has no averaged (ema) parameters; they exist with ema_decay=0.999 or so")
    use = None if which == "raw" else averaged
    try:
        model.load_state_dict(checkpoint["model"] if use is None else use)
    except RuntimeError as error:
        raise UserError(f"{checkpoint.path}: does not fit its own options: {reason_of(error)}") from error
    return use is not None


def load(
    checkpoint: Checkpoint, *, device: str = "auto", weights: str | None = None, which: str = "auto"
) -> CrystalDetector:
    """The trained model of a checkpoint; `weights`: where the text encoder's weights lie now."""
    args: Args = Args.from_saved(checkpoint.args)
    if weights is not None:
        args = replace(args, weights=weights)
    extra, frozen = checkpoint.extra, checkpoint.extra.get("weights", {})
    model = network(args, text_features=extra["text_features"])
    averaged = load_parameters(model, checkpoint, which)
    return CrystalDetector(
        args,
        model.eval(),
        TargetScale(**extra["target_scale"]),
        pick_device(device),
        weights=frozen,
        check_weights=checkpoint.check_weights,
        notes=extra.get("remarks", ()),
        original=bool(extra.get("original", False)),
        shown={
            "epoch": int(checkpoint["epoch"]),
            "ema": averaged,
            "seed": args.seed,
            "text_encoder": ", ".join(frozen) or ("" if args.modality == "graph" else args.backbone),
        },
    )
