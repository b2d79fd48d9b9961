"""What a recipe hands to evaluate.py and to `predict`: one shape for every system.

A recipe offers two hooks beside train():

``evaluate(checkpoint: Path, args: EvaluateArgs) -> Evaluation`` rebuilds the system from the file, scores `args.split`
with the preprocessing of training, and returns the metrics under the names that training prints.
``load_detector(path) -> Detector`` is the same model for single inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol

import numpy as np

from anomaly_lib.config import Switch, arg
from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.types import Prediction

POLICIES = ("stored", "support-quantile", "f1", "youden", "false-alarms")


class Detector(Protocol):
    """A trained image detector. `predict` takes decoded images ([H, W, 3] uint8 or float32) of any sizes.

    Maps cover what `transform` shows of an image, so `transform.denormalise(transform(image))` lies under them.
    """

    transform: ImageTransform
    threshold: float | None  # decision threshold fixed in training, e.g. from support images

    def predict(self, images: Sequence[np.ndarray]) -> Prediction: ...


@dataclass
class Evaluation:
    """The outcome of one checkpoint on one split."""

    system: str
    name: str  # what was evaluated, e.g. "demo capsule k=1 seg"
    metrics: dict[str, float]  # the numbers training prints, under the same names
    scores: Any  # [N] anomaly scores; predictions for kind="regression"
    labels: Any  # [N] 0 normal, 1 anomalous; targets for kind="regression"
    paths: list[str]  # [N] a unique name for each sample
    groups: list[str]  # [N] class of each sample: a row of the table each
    kind: str = "detection"  # or "regression"
    defects: list[str] | None = None  # [N] finer kind, shown in the report
    maps: Any = None  # [N, H, W] anomaly maps
    masks: Any = None  # [N, H, W] bool; None where no pixel truth exists
    image: Callable[[int], np.ndarray] | None = None  # sample index -> [H, W, 3] uint8, what the network saw
    normal_scores: Any = None  # scores of normal data not in the split (support, validation): honest thresholds
    validation: tuple[Any, Any] | None = None  # (scores, labels) of a validation split, where the system has one
    threshold: float | None = None  # the one stored in training
    notes: list[str] = field(default_factory=list)  # e.g. "oracle: epoch chosen on the test split", "random weights"
    facts: dict[str, Any] = field(default_factory=dict)  # e.g. epoch, "ema": True, seed

    def __len__(self) -> int:
        return len(self.paths)


@dataclass
class EvaluateArgs:
    """Evaluation of trained checkpoints."""

    checkpoint: Optional[str] = arg(
        None, "checkpoint file, run folder (searched below) or glob pattern in quotes", type=str
    )
    data_path: Optional[str] = arg(
        None, "folder of the data; None = the data of the training run", type=str, aliases=["root-dir"]
    )
    dataset: Optional[str] = arg(None, "layout of the data; None = that of the training run", type=str)
    obj: Optional[str] = arg(
        None, "only this class; None = the class(es) of the checkpoint", type=str, aliases=["class-name"]
    )
    shot: Optional[int] = arg(
        None, "support images for systems that can change them after training", type=int, aliases=["k-shot"]
    )
    weights: str = arg(
        "auto",
        "averaged (ema) or raw weights; auto = averaged where the checkpoint has them",
        choices=["auto", "ema", "raw"],
    )
    split: str = arg("test", "which split to score", choices=["train", "val", "test"])
    output_dir: Optional[str] = arg(
        None, "folder for tables and figures; None = evaluation/ beside the checkpoint", type=str, aliases=["output"]
    )
    compare: list[str] = arg([], "more checkpoints to set beside --checkpoint, in the table and in the report")
    report: Optional[str] = arg(None, "also write an HTML report into this folder", type=str)
    policy: str = arg("stored", "how the decision threshold is set", choices=list(POLICIES))
    false_alarms: float = arg(0.05, "target false-alarm rate of --policy false-alarms", at_least=0, at_most=1)
    support_quantile: float = arg(0.99, "quantile of --policy support-quantile", at_least=0, at_most=1)
    bootstrap: int = arg(1000, "resamples behind the 95% confidence intervals; 0 = none", at_least=0)
    fpr_limits: list[float] = arg([0.3], "false-positive limits of AUPRO", at_least=0, at_most=1)
    figures: Switch = arg(True, "draw figures")
    verbose: Switch = arg(False, "also print a line for every sample")
    device: str = arg("auto", "auto, cpu, cuda or cuda:N")
    batch_size: int = arg(16, "inputs scored together", at_least=1)
    on_error: str = arg("fail", "a damaged file stops the evaluation, or is skipped", choices=["fail", "skip"])
