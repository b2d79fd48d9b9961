"""Trained video auto-encoders: from a checkpoint to scores of runs."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Facts
from anomaly_lib.detect.decision import Decision
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import Checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.models.weld.video_ae import VideoAE
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.detector import WeldDetector
from anomaly_lib.systems.weld.runs_of import runs_of
from anomaly_lib.systems.weld.video_ae.clips import ClipEncoder
from anomaly_lib.systems.weld.video_ae.options import Args
from anomaly_lib.types import Prediction

SYSTEM = "video_ae"


class VideoAEDetector(WeldDetector):
    """A trained auto-encoder with its clip encoder."""

    system: ClassVar[str] = SYSTEM
    args: Args

    def __init__(self, model: VideoAE, encoder: ClipEncoder, args: Args, facts: Facts) -> None:
        self.model, self.encoder, self.args, self.facts = model, encoder, args, facts

    @torch.no_grad()
    def score_runs(self, runs: Sequence[WeldRun], *, batch_size: int = Choice.batch_size) -> Tensor:
        clips = self.encoder(runs).split(batch_size)
        return torch.cat([self.model.score(some) for some in clips]).cpu()

    def readable(self, runs: Sequence[WeldRun]) -> tuple[list[WeldRun], list[dict[str, str]]]:
        return self.encoder.readable(runs)

    def _predict(self, inputs: Any) -> Prediction:
        """Reconstruction error of each run's clip vector. `inputs`: one or many run folders or runs."""
        return Prediction(score=self.score_runs(runs_of(inputs)))


def load(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    weights: str | None = None,
    which: str = "auto",
    encoder: ClipEncoder | None = None,
) -> VideoAEDetector:
    """The detector of a checkpoint; the clip `encoder` of the same options may be handed in."""
    if which == "ema":
        raise UserError(f"{checkpoint.path}: which=ema: {SYSTEM} averages no parameters; give which=raw")
    args = Args.from_saved(checkpoint.args | ({} if weights is None else {"weights": weights}))
    encoder = encoder or ClipEncoder.of(args, pick_device(device))
    frozen = weights_of(encoder.backbone)
    checkpoint.check_weights(frozen)
    model = VideoAE(dim=encoder.backbone.width).to(encoder.device)
    model.load_state_dict(checkpoint["model"])
    facts = Facts(weights=frozen, shown={"epoch": int(checkpoint["epoch"]), "seed": args.seed})
    detector = VideoAEDetector(model.eval(), encoder, args, facts)
    detector.decision = Decision.from_plain(checkpoint.extra.get("decision"))
    return detector
