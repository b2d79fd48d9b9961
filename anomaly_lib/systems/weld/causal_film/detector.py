"""Trained Causal-FiLM detectors: from a checkpoint to scores of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar

from torch import Tensor

from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Facts, Selection
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.feature_graph import FeatureGraph
from anomaly_lib.detect.scores import Scores
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import Checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.metrics import auroc
from anomaly_lib.models.weld.config import CausalScoreArgs
from anomaly_lib.systems.weld.causal_film.explain import Normal, explain_runs
from anomaly_lib.systems.weld.causal_film.graph import feature_graph
from anomaly_lib.systems.weld.causal_film.options import Args
from anomaly_lib.systems.weld.causal_film.report import report_lines
from anomaly_lib.systems.weld.causal_film.task import CausalFiLMTask, build, score_runs
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.detector import WeldDetector
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.inputs import build_features, data_name, moved_weights, usable
from anomaly_lib.systems.weld.runs_of import runs_of
from anomaly_lib.types import Prediction

SYSTEM = "causal_film"


def run_name(args: Args) -> str:
    """The run in two words, for its folder and for tables."""
    return f"{data_name(args)}-{args.preset}"


class CausalFiLMDetector(WeldDetector):
    """A trained Causal-FiLM with the preprocessing and the encoders it was trained with."""

    system: ClassVar[str] = SYSTEM
    args: Args

    def __init__(
        self, task: CausalFiLMTask, features: WeldFeatures, args: Args, facts: Facts, *, raw: CausalFiLMTask | None
    ) -> None:
        self.task, self.features, self.args, self.facts = task, features.seen_by(task.tops), args, facts
        self.raw = raw  # beside averaged parameters: those of the last step
        self.normal: Normal = {}  # what is usual of each part; checkpoints of earlier editions do not say

    def score_runs(self, runs: Sequence[WeldRun], *, batch_size: int = Choice.batch_size) -> Tensor:
        return self._scores(self.task, runs, batch_size)

    def scored_by(self, kind: str) -> "CausalFiLMDetector":
        """The same detector with another `score_kind`."""
        config = CausalScoreArgs(**{f.name: getattr(self.args, f.name) for f in fields(CausalScoreArgs)})
        own = self.task
        task = CausalFiLMTask(own.model, own.criterion, replace(config, score_kind=kind), own.tops).eval()
        return CausalFiLMDetector(task, self.features, self.args, self.facts, raw=None)

    def readable(self, runs: Sequence[WeldRun]) -> tuple[list[WeldRun], list[dict[str, str]]]:
        return self.features.readable(runs)

    def usable(self, runs: Sequence[WeldRun]) -> list[WeldRun]:
        self.features.prepare(runs)
        return usable(runs, self.features, lambda _: None)

    def _scores(self, task: CausalFiLMTask, runs: Sequence[WeldRun], batch_size: int) -> Tensor:
        self.features.prepare(runs)
        return score_runs(task, self.features, runs, batch_size=batch_size, precision=self.args.precision)

    def _score(self, selection: Selection) -> Scores:
        """Raw parameters beside averaged ones, and the report of a run as notes."""
        scores = super()._score(selection)
        if self.raw is not None:
            found = self._scores(self.raw, selection.items, selection.choice.batch_size)
            scores.own["image_auroc_raw"] = auroc(found, scores.labels)
        scores.name = run_name(self.args)
        scores.notes += report_lines(scores, selection.items)
        return scores

    def _predict(self, inputs: Any) -> Prediction:
        """Score and parts. `inputs`: one or many run folders or runs.

        Parts [B]: `cosine` and `l1` of the score; `video`, `audio`, `sensors`, `images`, `process`, `result`: how
        unusual each is by itself among the normal training runs (about 1 = usual). Parts [B, L]: `attention.video`
        over time steps, `attention.audio` over time patches, `attention.view` over the photos.
        """
        runs = runs_of(inputs)
        self.features.prepare(runs)
        found = explain_runs(self.task, self.features, runs, self.normal, precision=self.args.precision)
        blind = [str(run.folder) for run, photos in zip(runs, found["photos"].tolist(), strict=True) if not photos]
        if blind:
            raise UserError(
                f"{', '.join(blind)}: no photo of the finished weld (images/), so there is no result to judge"
            )
        score = found.pop("score")
        return Prediction(score=score, parts={name: part for name, part in found.items() if name != "photos"})

    def feature_graph(self) -> FeatureGraph:
        return feature_graph(self.task, self.features)


def load(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    weights: str | None = None,
    which: str = "auto",
    features: WeldFeatures | None = None,
) -> CausalFiLMDetector:
    """The detector of a checkpoint; `features` of the same options may be handed in.

    `weights`: where weight files lie now, as ``video=FILE,audio=FILE,image=FILE`` (those that moved).
    """
    args = Args.from_saved({**checkpoint.args, **moved_weights(weights)})
    averaged = (checkpoint.get("ema") or {}).get("shadow")
    if which == "ema" and averaged is None:
        raise UserError(f"{checkpoint.path}: which=ema: this run averaged no parameters; give which=raw")
    if features is None:
        features = build_features(args, pick_device(device))
    features.sensor_statistics = checkpoint.extra["sensor_statistics"]
    checkpoint.check_weights(features.encoders.weights)
    raw = task = _task(args, features, checkpoint["model"])
    if averaged is not None and which != "raw":
        task = _task(args, features, averaged)
    use_average = task is not raw
    facts = Facts(
        weights=features.encoders.weights,
        notes=[
            f"{'averaged (ema)' if use_average else 'raw'} parameters of epoch {checkpoint['epoch']}, validation AUROC "
            f"{checkpoint['best'].get('val_auroc', float('nan')):.4f} at best"
        ],
        shown={"epoch": int(checkpoint["epoch"]), "ema": use_average, "seed": args.seed},
    )
    detector = CausalFiLMDetector(task, features, args, facts, raw=raw if use_average else None)
    detector.normal = checkpoint.extra.get("normal") or {}
    if use_average or averaged is None:
        detector.decision = Decision.from_plain(checkpoint.extra.get("decision"))
    else:
        detector.undecided = "its decision is that of the averaged parameters (which=ema)"
    return detector


def _task(args: Args, features: WeldFeatures, state: Mapping[str, Any]) -> CausalFiLMTask:
    task = build(args, features, text=state.get("criterion.text"))
    task.load_state_dict(state)
    return task.eval()
