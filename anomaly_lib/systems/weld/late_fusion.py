"""Late fusion: the scores of Causal-FiLM and the video auto-encoder, or of any detectors of the same data, added up.

A bead's shape is visible while it is made: where the process-result model is weak, appearance may help.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Detector
from anomaly_lib.engine.checkpoint import Checkpoint, load_checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.fusion.evidence import EVIDENCE
from anomaly_lib.metrics import auroc
from anomaly_lib.systems.weld.causal_film import detector as causal_film
from anomaly_lib.systems.weld.data.manifest import WeldRun, select_runs
from anomaly_lib.systems.weld.inputs import open_runs
from anomaly_lib.systems.weld.options import FoldArgs
from anomaly_lib.systems.weld.video_ae import detector as video_ae
from anomaly_lib.systems.weld.video_ae.options import FusionArgs


@dataclass
class FusionResult:
    """AUROC of each detector and of their sum; `scores` are on the common scale."""

    metrics: dict[str, float]
    scores: dict[str, list[float]]
    ids: list[str]
    labels: list[int]
    notes: list[str] = field(default_factory=list)


def evaluate_fusion(args: FusionArgs, load: Callable[[str], Detector]) -> FusionResult:
    """Evidence of all detectors added on a split. `load(path)` opens any checkpoint of ``args.checkpoints``."""
    return fuse_any(args, [load(path) for path in args.checkpoints]) if args.checkpoints else fuse_welds(args)


def fuse_welds(args: FusionArgs) -> FusionResult:
    """Both checkpoints must exist and are never replaced by untrained models."""
    causal = causal_film.load(
        _checkpoint("causal_checkpoint", args.causal_checkpoint, causal_film.SYSTEM), device=args.device
    )
    video = video_ae.load(_checkpoint("video_checkpoint", args.video_checkpoint, video_ae.SYSTEM), device=args.device)
    if (apart := [in_words(one.args) for one in (causal, video)])[0] != apart[1]:
        raise UserError(
            f"video_checkpoint={args.video_checkpoint}: trained on {apart[1]}, causal_checkpoint= on {apart[0]}; one "
            "would be tested on what the other has learnt: give the same fold of both"
        )
    if args.score_kind:
        causal = causal.scored_by(args.score_kind)
    detectors = {causal.system: causal, video.system: video}
    runs, notes = open_runs(causal.args, Choice(on_error=args.on_error)), list[str]()

    def readable(some: Sequence[WeldRun]) -> list[WeldRun]:
        """The runs that both can score."""
        kept = list(some)
        for detector in (causal, video) if args.on_error == "skip" else ():
            kept, skipped = detector.readable(kept)
            notes.extend(f"skipped {one['path']}: {one['reason']}" for one in skipped)
        return kept

    asked = readable(select_runs(runs, args.split))
    reference = asked
    if args.statistics != "transductive":
        reference = readable(select_runs(runs, args.statistics, normal_only=True))
    columns = {name: (one.score_runs(asked), one.score_runs(reference)) for name, one in detectors.items()}
    labels = torch.tensor([run.label for run in asked])
    return added_up(columns, labels, [run.run_id for run in asked], args.method, notes)


def fuse_any(args: FusionArgs, detectors: Sequence[Detector]) -> FusionResult:
    """Detectors of the same data: samples are matched by name, the scale comes from each decision's normal scores."""
    found: dict[str, tuple[dict[str, tuple[float, int]], Tensor]] = {}
    for path, detector in zip(args.checkpoints, detectors, strict=True):
        if detector.decision is None or not detector.decision.normal:
            raise UserError(f"{path}: has no scores of normal data to compare with: python -m anomaly_lib calibrate")
        honours = {"on_error": args.on_error} if "on_error" in detector.honours else {}
        scores = detector.score(detector.items(Choice(split=args.split, **honours)))  # type: ignore[arg-type]
        rows = zip(scores.paths, scores.scores, scores.labels, strict=True)
        found[path] = {name: (float(s), int(y > 0)) for name, s, y in rows}, torch.tensor(detector.decision.normal)
    named = name_apart(detectors)
    common = [name for name in next(iter(found.values()))[0] if all(name in one for one, _ in found.values())]
    if not common:
        raise UserError(
            f"{', '.join(found)}: have no sample in common: they must be detectors of the same data and fold"
        )
    lost = max(len(one) for one, _ in found.values()) - len(common)
    columns: dict[str, tuple[Tensor, Tensor]] = {
        name: (torch.tensor([one[sample][0] for sample in common]), normal)
        for name, (one, normal) in zip(named, found.values(), strict=True)
    }
    labels = torch.tensor([next(iter(found.values()))[0][sample][1] for sample in common])
    notes = [f"{lost} samples are left out, not every detector scores them"] if lost else []
    return added_up(columns, labels, common, args.method, notes)


def name_apart(detectors: Sequence[Detector]) -> list[str]:
    """The system of each detector, with a number where two are of one."""
    systems = [one.system for one in detectors]
    return [name if systems.count(name) == 1 else f"{name}{i}" for i, name in enumerate(systems, start=1)]


def added_up(
    columns: dict[str, tuple[Tensor, Tensor]], labels: Tensor, ids: list[str], method: str, notes: list[str]
) -> FusionResult:
    """The result of columns name -> (scores [N], normal scores [M])."""
    scores = {name: EVIDENCE[method](normal)(found.double()) for name, (found, normal) in columns.items()}
    scores["fusion"] = torch.stack(list(scores.values())).sum(0)
    metrics = {f"{name}_auroc": auroc(values, labels) for name, values in scores.items()}
    return FusionResult(metrics, {k: v.tolist() for k, v in scores.items()}, ids, labels.tolist(), notes)


def in_words(args: FoldArgs) -> str:
    """Which part of the runs a detector was trained on."""
    return f"fold {args.fold} of {args.folds}" if args.fold else "the data's own splits"


def _checkpoint(option: str, path: str | None, system: str) -> Checkpoint:
    if not path or not Path(path).is_file():
        raise UserError(
            f"{option}={path or '(not given)'}: no such checkpoint; train it first (scripts/weld/train_*.sh)"
        )
    return Checkpoint(Path(path), load_checkpoint(path, system=system))
