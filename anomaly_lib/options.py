"""Groups of options that several systems share, so that the same thing has the same name everywhere.

A system's Args inherits the groups it needs and changes a default with `config.override`.
"""

from dataclasses import dataclass
from typing import Optional

from anomaly_lib.config import ANY, Options, Switch, arg, shown
from anomaly_lib.errors import OptionError

PRECISIONS = ("fp32", "bf16", "fp16")
SCHEDULES = ("constant", "cosine", "linear", "step", "multistep", "onecycle", "plateau")


@dataclass
class RunArgs(Options):
    """The run: where results go, seeds, devices."""

    output_dir: Optional[str] = arg(
        None,
        "run folder; None = runs/SYSTEM/NAME-HASH, one per set of options",
        type=str,
        aliases=["output"],
        result=False,
    )
    save_path: Optional[str] = arg(None, "also write the finished checkpoint to this file", type=str, result=False)
    resume: Optional[str] = arg(
        None,
        "go on from PATH, 'best' or 'latest', with the options and on the data of that file",
        type=str,
        result=False,
    )
    fresh: Switch = arg(False, "start over even if the run folder holds an unfinished or finished run", result=False)
    save_every: int = arg(1, "epochs between checkpoints", at_least=1, result=False)
    seed: int = arg(0, "seed of every random number", at_least=0, at_most=2**32 - 1)
    device: str = arg(
        "auto", "auto, cpu, cuda or cuda:N; originals' --gpu-id N and --use-cpu are understood", result=False
    )
    precision: str = arg("fp32", "number format of matrix work; bf16 and fp16 run under autocast", choices=PRECISIONS)
    num_workers: int = arg(0, "processes that load data", at_least=0, aliases=["workers"], result=False)


@dataclass
class TrackArgs(Options):
    """Trackers (optional, never needed)."""

    tensorboard: Switch = arg(False, "also log to TensorBoard in the run folder", result=False)
    wandb: Switch = arg(False, "also log to Weights & Biases (offline without a login)", result=False)
    wandb_project: str = arg("anomaly_lib", "project name at Weights & Biases", needs={"wandb": True}, result=False)
    wandb_name: Optional[str] = arg(
        None,
        "run name at Weights & Biases; None = the run folder's name",
        type=str,
        needs={"wandb": True},
        result=False,
    )


@dataclass
class DataArgs(Options):
    """The data."""

    dataset: str = arg("demo", "layout of the data at --data-path; 'demo' is built in")
    data_path: Optional[str] = arg(
        None, "folder of the data set; None = the built-in demo data", type=str, resumable=True
    )
    on_error: str = arg(
        "fail",
        "a damaged file stops the run, or is skipped and listed in run.json",
        choices=["fail", "skip"],
        resumable=True,
    )


@dataclass
class OptimArgs(Options):
    """Optimisation."""

    epochs: int = arg(100, "passes over the training data", at_least=0, aliases=["epoch", "num-epochs"], resumable=True)
    batch_size: int = arg(8, "examples per step", at_least=1)
    learning_rate: float = arg(1e-3, "peak learning rate", at_least=0, aliases=["lr"])
    weight_decay: float = arg(0.0, "decoupled weight decay (none on biases and norms)", at_least=0, aliases=["wd"])
    grad_clip: float = arg(
        0.0, "clip the gradient norm to this; 0 = off", at_least=0, aliases=["gradient-clip", "clip-grad"]
    )


@dataclass
class BackboneArgs(Options):
    """The frozen backbone."""

    backbone: str = arg("demo-clip", "name of the frozen encoder; see python -m anomaly_lib list")
    weights: Optional[str] = arg(
        None, "weight file, folder or name; 'random' = untrained, marked in every result", type=str, resumable=True
    )
    download: Switch = arg(False, "allow the encoder's library to download its weights", result=False)


@dataclass
class TileArgs(Options):
    """Large images."""

    tile: int = arg(
        0,
        "side of the overlapping tiles that the network sees of an image of --image-size; 0 = the image as a whole",
        at_least=0,
    )
    overlap: Optional[int] = arg(
        None, "pixels that neighbouring tiles have in common; None = a quarter of a tile", type=int, at_least=0,
        needs={"tile": ANY},
    )  # fmt: skip
    keep_aspect: Switch = arg(False, "pad images with black to --image-size instead of stretching them")

    def check(self) -> None:
        size = (getattr(self, "image_size", []) * 2)[:2]
        if not self.tile:
            return
        if self.tile >= max(size, default=0):
            what = f"an image of image_size={shown(size)} fits into one tile; raise" if size else "give"
            raise OptionError(f"tile={self.tile}: {what} image_size, e.g. to the size of your pictures")
        if self.tile < 32 or (self.overlap or 0) > self.tile // 2:
            raise OptionError(
                f"tile={self.tile}, overlap={self.overlap}: a tile has 32 pixels or more, half in common at most"
            )


@dataclass
class CacheArgs(Options):
    """The feature cache."""

    cache: str = arg("auto", "where encoded features live", choices=["auto", "ram", "disk", "off"], result=False)
    cache_dir: Optional[str] = arg(
        None,
        "folder of the disk cache; None = $ANOMALY_LIB_CACHE or ~/.cache/anomaly_lib",
        type=str,
        needs={"cache": ("auto", "disk")},
        result=False,
    )


@dataclass
class DecisionArgs(Options):
    """The decision."""

    false_alarms: float = arg(
        0.05, "promised share of normal inputs that are called anomalous", at_least=0, at_most=0.5, resumable=True
    )


@dataclass
class HoldOutArgs(DecisionArgs):
    """The decision of a network that is trained on normal data: some of them are kept from it."""

    calibration_share: float = arg(
        0.2,
        "share of the normal training data (at least 10 samples, at most half) that is not trained on but sets the "
        "decision; 0 = no decision",
        at_least=0,
        at_most=0.5,
    )


@dataclass
class EvalArgs(Options):
    """Evaluation."""

    protocol: str = arg(
        "clean",
        "clean = the correct reading; paper = all quirks of the original switched on",
        choices=["clean", "paper"],
    )
    select: str = arg(
        "last",
        "which epoch is kept; best-on-test is labelled oracle wherever it is printed",
        choices=["last", "val", "best-on-test"],
    )
    figures: Switch = arg(True, "draw figures at the end of the run", result=False)
