"""Late fusion of Causal-FiLM and the video auto-encoder: z-scores added.

A bead's shape is visible while it is made: where the process-result model is weak, appearance may help.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch

from anomaly_lib.config import Options, arg
from anomaly_lib.errors import UserError
from anomaly_lib.fusion import z_score_calibration
from anomaly_lib.metrics import auroc
from anomaly_lib.models.weld.causal_film_loss import SCORE_KINDS
from anomaly_lib.systems.weld.causal_film.detector import load_detector as load_causal_film
from anomaly_lib.systems.weld.data.manifest import select_runs
from anomaly_lib.systems.weld.inputs import open_runs
from anomaly_lib.systems.weld.video_ae.train import load_detector as load_video_ae


@dataclass
class FusionArgs(Options):
    """Late fusion of Causal-FiLM (A) and the video auto-encoder (B)."""

    causal_checkpoint: Optional[str] = arg(
        None, "trained Causal-FiLM, e.g. runs/weld/causal_film/best_model.pth", type=str
    )
    video_checkpoint: Optional[str] = arg(
        None, "trained video auto-encoder, e.g. runs/weld/video_ae/best_model.pt", type=str
    )
    split: str = arg("test", "which split to score", choices=["train", "val", "test"])
    statistics: str = arg(
        "val", "whose normal runs give the z-scores; transductive = mean and std of the evaluated split itself",
        choices=["val", "train", "transductive"],
    )  # fmt: skip
    score_kind: Optional[str] = arg(
        None,
        "score of model A; None = as trained (the original's script: mean_abs)",
        type=str,
        choices=list(SCORE_KINDS),
    )
    device: str = arg("auto", "auto, cpu, cuda or cuda:N")
    output_dir: Optional[str] = arg(
        None, "write scores and results as JSON into this folder", type=str, aliases=["output"]
    )


@dataclass
class FusionResult:
    """AUROC of both models and of the sum of their z-scores."""

    metrics: dict[str, float]
    scores: dict[str, list[float]]
    ids: list[str]
    labels: list[int]


def evaluate_fusion(args: FusionArgs) -> FusionResult:
    """z_A + z_B on a split; both checkpoints must exist and are never replaced by untrained models."""
    for flag, path in (("--causal-checkpoint", args.causal_checkpoint), ("--video-checkpoint", args.video_checkpoint)):
        if not path or not Path(path).is_file():
            raise UserError(
                f"{flag} {path or '(not given)'}: no such checkpoint; train it first (scripts/weld/train_*.sh)"
            )
    causal = load_causal_film(str(args.causal_checkpoint), device=args.device)
    if args.score_kind:
        causal.task.score_kind = args.score_kind
    video = load_video_ae(str(args.video_checkpoint), device=args.device)
    runs = open_runs(causal.args)
    asked = select_runs(runs, args.split)
    reference = asked
    if args.statistics != "transductive":
        reference = select_runs(runs, args.statistics, normal_only=True)
    labels = torch.tensor([run.label for run in asked])
    scores = {}
    for name, model in (("causal_film", causal), ("video_ae", video)):
        normalise = z_score_calibration(model.score_runs(reference))
        scores[name] = normalise(model.score_runs(asked).double())
    scores["fusion"] = scores["causal_film"] + scores["video_ae"]
    metrics = {f"{name}_auroc": auroc(values, labels) for name, values in scores.items()}
    return FusionResult(
        metrics, {k: v.tolist() for k, v in scores.items()}, [run.run_id for run in asked], labels.tolist()
    )
