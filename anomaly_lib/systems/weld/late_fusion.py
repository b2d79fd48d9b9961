"""Late fusion of Causal-FiLM and the video auto-encoder: z-scores added.

A bead's shape is visible while it is made: where the process-result model is weak, appearance may help.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from anomaly_lib.engine.checkpoint import Checkpoint, load_checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.fusion import z_score_calibration
from anomaly_lib.metrics import auroc
from anomaly_lib.systems.weld.causal_film import detector as causal_film
from anomaly_lib.systems.weld.data.manifest import select_runs
from anomaly_lib.systems.weld.inputs import open_runs
from anomaly_lib.systems.weld.video_ae import detector as video_ae
from anomaly_lib.systems.weld.video_ae.options import FusionArgs


@dataclass
class FusionResult:
    """AUROC of both models and of the sum of their z-scores."""

    metrics: dict[str, float]
    scores: dict[str, list[float]]
    ids: list[str]
    labels: list[int]


def evaluate_fusion(args: FusionArgs) -> FusionResult:
    """z_A + z_B on a split; both checkpoints must exist and are never replaced by untrained models."""
    causal = causal_film.load(
        _checkpoint("causal_checkpoint", args.causal_checkpoint, causal_film.SYSTEM), device=args.device
    )
    video = video_ae.load(_checkpoint("video_checkpoint", args.video_checkpoint, video_ae.SYSTEM), device=args.device)
    if args.score_kind:
        causal = causal.scored_by(args.score_kind)
    runs = open_runs(causal.args)
    asked = select_runs(runs, args.split)
    reference = asked
    if args.statistics != "transductive":
        reference = select_runs(runs, args.statistics, normal_only=True)
    labels = torch.tensor([run.label for run in asked])
    scores = {}
    for detector in (causal, video):
        normalise = z_score_calibration(detector.score_runs(reference))
        scores[detector.system] = normalise(detector.score_runs(asked).double())
    scores["fusion"] = scores[causal.system] + scores[video.system]
    metrics = {f"{name}_auroc": auroc(values, labels) for name, values in scores.items()}
    return FusionResult(
        metrics, {k: v.tolist() for k, v in scores.items()}, [run.run_id for run in asked], labels.tolist()
    )


def _checkpoint(option: str, path: str | None, system: str) -> Checkpoint:
    if not path or not Path(path).is_file():
        raise UserError(
            f"{option}={path or '(not given)'}: no such checkpoint; train it first (scripts/weld/train_*.sh)"
        )
    return Checkpoint(Path(path), load_checkpoint(path, system=system))
