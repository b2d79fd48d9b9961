"""Normal samples that a detector has not been fitted on: which are kept from training, and the decision they set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from anomaly_lib.detect.decision import CALIBRATE, Decision
from anomaly_lib.types import Prediction

WANTED, FEWEST = 10, 3  # samples kept from training: at least, and the least that is worth it where there are few
FEWEST_FAR = 8  # scores, so that their quartiles say how far is far
KEPT = "kept_from_training"  # under this name in run.json and in a checkpoint


@dataclass(frozen=True)
class HeldOut:
    """Places of the samples to learn from and of those kept from training, both ascending."""

    learn: Tensor
    kept: Tensor
    remark: str  # what the run says of it


def hold_out(count: int, share: float, *, seed: int, what: str = "normal images") -> HeldOut:
    """`share` of `count` samples, drawn by seed alone: at least 10, at most half, and none where that is under 3."""
    wanted = max(WANTED, round(share * count)) if share else 0
    number = min(wanted, count // 2)
    number = number if number >= FEWEST else 0
    order = torch.randperm(count, generator=Generator().manual_seed(seed))
    kept, learn = order[:number].sort().values, order[number:].sort().values
    if number:
        remark = f"{number} of {count} {what} are kept from training and set the decision (listed in run.json)"
        remark += "" if number >= WANTED else f"; {WANTED} would be better, and there are few"
    else:
        why = f"{count} {what} are too few to keep any from training" if share else f"all {what} are trained on"
        remark = f"{why}: no decision ({CALIBRATE} makes one from other normal data)"
    return HeldOut(learn, kept, remark)


def decision_from(found: Prediction, rate: float, *, of: str, places: Sequence[Path] = ()) -> Decision:
    """The decision that promises `rate`, from what the detector says of normal samples it has not been fitted on.

    `places`: where each sample lies, so that those are named which hardly are normal.
    """
    scores = found.score.detach().cpu()
    names = ["/".join(place.parts[-2:]) for place in places]
    doubtful = [names[index] for index in far_out(scores)] if names else []
    return Decision.promising(scores, rate, of=of, maxima=maxima_of(found), doubtful=doubtful)


def far_out(scores: Tensor) -> list[int]:
    """Places of the scores above Tukey's outer fence (upper quartile + 3 interquartile ranges), largest first.

    One defective part among the good ones sets the threshold of a small set alone, and nothing is found any more. Of
    maxima of normal images (Gumbel) 0.3 % lie there, so it is a question, no verdict: the decision is made with them.
    """
    if len(scores) < FEWEST_FAR:
        return []
    low, high = torch.quantile(scores.double(), torch.tensor([0.25, 0.75], dtype=torch.float64))
    order = scores.argsort(descending=True).tolist()
    return [index for index in order if scores[index] > high + 3 * (high - low)]


def decision_of_views(found: Prediction, *, of: str) -> Decision:
    """The decision where too few samples exist to leave one out: from mild views of those that are known."""
    return Decision.of_views(found.score.detach().cpu(), of=of, maxima=maxima_of(found))


def maxima_of(found: Prediction) -> Tensor:
    """[B] largest value of each map; [0] without maps."""
    return torch.empty(0) if found.map is None else found.map.detach().float().cpu().flatten(1).amax(1)
