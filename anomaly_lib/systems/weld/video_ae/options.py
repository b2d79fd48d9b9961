"""Every option of the video auto-encoder and of its late fusion with Causal-FiLM; imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from anomaly_lib.config import Options, Preset, arg, override
from anomaly_lib.errors import OptionError
from anomaly_lib.fusion.names import EVIDENCES
from anomaly_lib.models.weld.config import SCORE_KINDS
from anomaly_lib.options import BackboneArgs, CacheArgs, DataArgs, HoldOutArgs, OptimArgs, RunArgs, TrackArgs
from anomaly_lib.systems.weld.options import FoldArgs, WeldDemoArgs, check_weld_data

TINY_BACKBONE = "tiny-dinov2"


@dataclass
class ClipArgs(BackboneArgs):
    """The clip vectors."""

    backbone: str = override(BackboneArgs, "backbone", "dinov2-base", help="frozen image encoder")
    layer: int = arg(11, "block whose tokens are averaged, from 1", at_least=1)
    video_frames: int = arg(16, "frames of a clip", at_least=1)
    video_size: int = arg(224, "side of a frame", at_least=8)


@dataclass
class Args(RunArgs, TrackArgs, DataArgs, WeldDemoArgs, FoldArgs, ClipArgs, OptimArgs, CacheArgs, HoldOutArgs):
    """Video auto-encoder on normal welds."""

    dataset: str = override(DataArgs, "dataset", "demo", choices=["demo", "weld"])
    wandb_project: str = override(TrackArgs, "wandb_project", "weld-anomaly-detection")
    epochs: int = override(OptimArgs, "epochs", 30)
    seed: int = override(RunArgs, "seed", 42)
    cache: str = override(CacheArgs, "cache", "auto", choices=["auto", "ram", "disk"])

    PRESETS: ClassVar[Sequence[Preset]] = (
        Preset(
            when={"data_path": None, "weights": (None, "random")},
            then={"backbone": TINY_BACKBONE},
            unless=("backbone",),
        ),
        Preset(when={"backbone": TINY_BACKBONE}, then={"weights": "random", "layer": 2, "video_size": 64}),
    )

    def check(self) -> None:
        check_weld_data(self)


def tiny(**changes: Any) -> Args:
    """Seconds on a CPU."""
    small: dict[str, Any] = {
        "epochs": 2, "demo_train": 8, "demo_good": 2, "demo_defects": 1, "video_frames": 2, "video_size": 28,
    }  # fmt: skip
    return Args(**small | changes)


@dataclass
class FusionArgs(Options):
    """Late fusion of Causal-FiLM (A) and the video auto-encoder (B), or of any detectors of the same data."""

    causal_checkpoint: Optional[str] = arg(
        None, "trained Causal-FiLM, e.g. runs/weld/causal_film/best_model.pth", type=str
    )
    video_checkpoint: Optional[str] = arg(
        None, "trained video auto-encoder, e.g. runs/weld/video_ae/best_model.pt", type=str
    )
    checkpoints: list[str] = arg(
        [], "any trained detectors of the same data, two or more, in place of A and B", type=str
    )  # fmt: skip
    method: str = arg(
        "z-score", "z-scores or ranks among normal scores added, or p-values by Fisher", choices=list(EVIDENCES)
    )  # fmt: skip
    on_error: str = arg(
        "fail", "a run that one of them cannot read (no video) stops, or is left out", choices=["fail", "skip"]
    )  # fmt: skip
    split: str = arg("test", "which split to score", choices=["train", "val", "test"])
    statistics: str = arg(
        "val", "whose normal runs give the z-scores; transductive = mean and std of the evaluated split itself",
        choices=["val", "train", "transductive"], needs={"checkpoints": []},
    )  # fmt: skip
    score_kind: Optional[str] = arg(
        None,
        "score of model A; None = as trained (the original's script: mean_abs)",
        type=str,
        choices=list(SCORE_KINDS),
        needs={"checkpoints": []},
    )
    device: str = arg("auto", "auto, cpu, cuda or cuda:N")
    output_dir: Optional[str] = arg(
        None, "write scores and results as JSON into this folder", type=str, aliases=["output"]
    )

    def check(self) -> None:
        named = [name for name in ("causal_checkpoint", "video_checkpoint") if getattr(self, name)]
        if self.checkpoints and named:
            raise OptionError(f"{named[0]}={getattr(self, named[0])}: has no effect beside checkpoints=")
        if len(self.checkpoints) == 1:
            raise OptionError(f"checkpoints={self.checkpoints[0]}: fusion needs two or more")
