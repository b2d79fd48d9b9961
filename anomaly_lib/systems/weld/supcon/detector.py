"""Trained V4 models: from a checkpoint to features, classes and scores of weld runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Detector, Facts, Selection
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Scores
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import Checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.systems.weld.data.manifest import CLASSES, WeldRun, select_runs
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.figures import class_table
from anomaly_lib.systems.weld.inputs import build_features, moved_weights
from anomaly_lib.systems.weld.runs_of import runs_of
from anomaly_lib.systems.weld.supcon.inspector import WeldInspector
from anomaly_lib.systems.weld.supcon.knn import Bank, defect_margin, knn_figures, knn_report
from anomaly_lib.systems.weld.supcon.options import Args
from anomaly_lib.systems.weld.supcon.task import QuadTask, build, classes_of, encode_runs, open_runs
from anomaly_lib.types import Prediction

SYSTEM = "weld_supcon"
OTHER_BANK = "no decision: the stored one is for the training runs that the detector keeps"


@dataclass
class Beside:
    """What the protocol needs beside the runs to judge."""

    bank: list[WeldRun] | None = None  # the training split of other data; None = the bank of the training run
    skipped: list[str] = field(default_factory=list)  # runs that cannot be read, and why


class QuadDetector(Detector):
    """A trained V4 model with its frozen encoders and the features of its training runs.

    A weld's score is its margin: how much closer it lies to a defect than to a good weld among the training runs
    (`defect_margin`). ``predict`` takes run folders.
    """

    system = SYSTEM
    honours = frozenset({"on_error"})
    splits = ("train", "val", "test")

    def __init__(self, args: Args, task: QuadTask, features: WeldFeatures, bank: Bank, *, epoch: int) -> None:
        self.args, self.task, self.features, self.bank = args, task.eval(), features.seen_by(task.tops), bank
        self.facts = Facts(weights=features.encoders.weights, shown={"epoch": epoch, "seed": args.seed})

    def __repr__(self) -> str:
        return f"QuadDetector({self.task.model!r}, bank of {len(self.bank.classes)} runs)"

    def score_runs(self, runs: Sequence[WeldRun]) -> Tensor:
        """Margins [N] of runs."""
        return defect_margin(self.bank, self.encode(runs)["features"])

    def encode(
        self, runs: Sequence[WeldRun], *, batch_size: int | None = None, need_weights: bool = False
    ) -> dict[str, Tensor]:
        """`features` [N, D], `logits` [N, 12], `anomaly_score` [N] of the score head, `present` [N, 4] of N runs; with
        `need_weights` also `attention.<modality>` [N, queries, L]."""
        self.features.prepare(runs)
        size, precision = batch_size or self.args.batch_size, self.args.precision
        return encode_runs(
            self.task, self.features, runs, batch_size=size, precision=precision, need_weights=need_weights
        )

    def _items(self, choice: Choice) -> Selection:
        runs, skipped = open_runs(self.args, choice), []
        if choice.on_error == "skip":
            runs, left_out = self.features.readable(runs)
            skipped = [f"skipped {one['path']}: {one['reason']}" for one in left_out]
        bank = None if choice.data_path is None else select_runs(runs, "train")
        name = f"k-NN k={self.args.k} {self.args.metric}"
        return Selection(name, select_runs(runs, choice.split), choice, Beside(bank, skipped))

    def _score(self, selection: Selection) -> Scores:
        runs, beside, size = list(selection.items), selection.beside, selection.choice.batch_size
        bank = self.bank
        if beside.bank is not None:
            bank = Bank(self.encode(beside.bank, batch_size=size)["features"], classes_of(beside.bank))
        found, classes = self.encode(runs, batch_size=size)["features"], classes_of(runs)
        k, metric = self.args.k, self.args.metric
        other_bank = self.decision is not None and beside.bank is not None
        margins = defect_margin(bank, found)
        return Scores(
            system=SYSTEM,
            name=selection.name,
            scores=margins.numpy(),
            labels=np.array([run.label for run in runs]),
            paths=[run.folder.as_posix() for run in runs],
            groups=["weld"] * len(runs),
            split=selection.choice.split,
            defects=[run.class_name for run in runs],
            tables={"classes": class_table(margins, runs)},
            own=knn_figures(bank, found, classes, k=k, metric=metric),
            notes=[*beside.skipped, *[OTHER_BANK] * other_bank, *knn_report(bank, found, classes, k=k, metric=metric)],
        )

    def decision_for(self, selection: Selection) -> Decision | None:
        """The stored decision; margins to other training runs than those kept are other scores."""
        return self.decision if selection.beside.bank is None else None

    def _predict(self, inputs: Any) -> Prediction:
        """`inputs`: one or many run folders or runs.

        Parts [B]: the score `head` and the probability of each class. Parts [B, L]: what the fusion reads, means over
        its queries: `attention.video` and `attention.audio` over time, `attention.images` over the photos,
        `attention.sensors` over sensor steps.
        """
        runs = runs_of(inputs)
        out = self.encode(runs, need_weights=True)
        probabilities = out["logits"].softmax(1)
        parts = {f"class {name}": probabilities[:, i] for i, name in enumerate(CLASSES)}
        looked = {name: weights.mean(1) for name, weights in out.items() if name.startswith("attention.")}
        encoders = self.features.encoders
        if encoders.settings.video_token_pool == "none":
            looked["attention.video"] = encoders.video_over_time(looked["attention.video"])
        looked["attention.audio"] = encoders.audio_over_time(looked["attention.audio"])
        return Prediction(
            defect_margin(self.bank, out["features"]), parts={"head": out["anomaly_score"], **parts, **looked}
        )

    def inspector(self) -> WeldInspector:
        """The network from raw tensors on: the document's contract."""
        return WeldInspector(self.task.model, self.features.encoders).eval()


def load(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    weights: str | None = None,
    which: str = "auto",
    features: WeldFeatures | None = None,
) -> QuadDetector:
    """The detector of a checkpoint; `features` of the same options may be handed in.

    `weights`: where weight files lie now, as ``video=FILE,audio=FILE,image=FILE`` (those that moved).
    """
    if which == "ema":
        raise UserError(f"{checkpoint.path}: which=ema: this run averaged no parameters; give which=raw")
    if "bank" not in checkpoint.extra:
        raise UserError(f"{checkpoint.path}: its run stopped before the first epoch ended; give its command again")
    args = Args.from_saved({**checkpoint.args, **moved_weights(weights)})
    if features is None:
        features = build_features(args, pick_device(device))
    features.sensor_statistics = checkpoint.extra["sensor_statistics"]
    checkpoint.check_weights(features.encoders.weights)
    task = build(args, features)
    task.load_state_dict(checkpoint["model"])
    detector = QuadDetector(args, task, features, Bank(**checkpoint.extra["bank"]), epoch=int(checkpoint["epoch"]))
    detector.decision = Decision.from_plain(checkpoint.extra.get("decision"))
    return detector
