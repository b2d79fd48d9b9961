"""The decision a detector carries: from which score on an input is anomalous, and how often that will be wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, inf, isnan, nextafter
from typing import Any, Union

import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_lib.command_line import PROGRAM
from anomaly_lib.errors import UserError
from anomaly_lib.metrics.regions import without_specks
from anomaly_lib.ops.predictions import stacked
from anomaly_lib.types import Prediction

Values = Union[Sequence[float], Tensor, NDArray[Any]]
CALIBRATE = f"{PROGRAM} calibrate --checkpoint FILE --normal FOLDER"
"""What gives any detector a decision."""
SEQUENCES = ("normal", "maxima", "doubtful")  # fields that a checkpoint holds as lists
NAMED = 3  # doubtful samples that are named


@dataclass(frozen=True)
class Decision:
    """``score >= threshold`` is anomalous."""

    threshold: float
    source: str  # in words, e.g. "0.5 quantile of 4 leave-one-out support scores"
    normal: tuple[float, ...] = ()  # ascending scores of normal data the detector has not been fitted on
    oracle: bool = False  # chosen with labels of test data
    false_alarms: float | None = None  # promised share of normal inputs called anomalous; None: none is promised
    map_threshold: float | None = None  # a map's values from here on are the anomalous region
    maxima: tuple[float, ...] = ()  # ascending largest map values of the normal data, for the region
    origin: str = "scores of normal data"  # where `normal` comes from, in words
    stand_ins: bool = False  # `normal` are scores of views of known images, which say less than those of new ones
    doubtful: tuple[str, ...] = ()  # which of the normal data score far above the rest, worst first

    @classmethod
    def of(cls, threshold: float, source: str, normal: Values = ()) -> "Decision | None":
        """The decision at `threshold`; None where there is none (nan)."""
        if isnan(threshold):
            return None
        return cls(float(threshold), source, tuple(sorted(float(value) for value in normal)))

    @classmethod
    def promising(
        cls, normal: Values, rate: float, *, of: str, maxima: Values = (), doubtful: Sequence[str] = ()
    ) -> "Decision":
        """At most `rate` false alarms, from scores of normal data the detector has not been fitted on.

        Conformal: the threshold lies just above the ceil((n + 1)(1 - rate))-th smallest of n scores, which holds for
        any score and any n as long as new normal inputs are like these. Where n is too small for `rate`, the smallest
        rate it can promise, 1 / (n + 1), is used, and `source` says so. `of`: where the scores come from, in words.
        `maxima`: the largest map value of the same inputs, for the region.
        """
        scores = tuple(sorted(float(value) for value in normal))
        if not scores:
            raise UserError("a decision needs scores of normal data, and there are none")
        kept, short = promised_rate(len(scores), rate)
        source = f"at most {kept:.2%} false alarms, from {len(scores)} {of}"
        if short:
            source += f"; {rate:.2%} would need {ceil(1 / rate) - 1 if rate else 'infinitely many'} of them"
        tops = sorted(float(value) for value in maxima)
        return cls(
            threshold=conformal_threshold(scores, kept),
            source=source,
            normal=scores,
            false_alarms=kept,
            map_threshold=conformal_threshold(tops, promised_rate(len(tops), rate)[0]) if tops else None,
            maxima=tuple(tops),
            origin=of,
            doubtful=tuple(doubtful),
        )

    @classmethod
    def of_views(cls, normal: Values, *, of: str, maxima: Values = ()) -> "Decision":
        """The threshold just above the largest score of views of known images: no rate follows, so none is promised."""
        scores, tops = (tuple(sorted(float(value) for value in values)) for values in (normal, maxima))
        return cls(
            threshold=conformal_threshold(scores, 1 / (len(scores) + 1)),
            source=f"above the largest of {len(scores)} scores of {of}, which stand in for other images: no rate is "
            "promised",
            normal=scores,
            map_threshold=conformal_threshold(tops, 1 / (len(tops) + 1)) if tops else None,
            maxima=tops,
            origin=of,
            stand_ins=True,
        )

    def at_rate(self, rate: float) -> "Decision":
        """The same scores and maxima of normal data with another promise, of the image and of its region."""
        if self.stand_ins:
            raise UserError(f"false_alarms={rate:g}: cannot be promised by a decision {self.source}")
        return Decision.promising(self.normal, rate, of=self.origin, maxima=self.maxima, doubtful=self.doubtful)

    def short_of(self, rate: float) -> list[str]:
        """A line where there are too few scores of normal data to promise `rate`, so that a larger one is promised."""
        if self.false_alarms is None or self.false_alarms <= rate + 1e-12:
            return []
        need = ceil(1 / rate) - 1 if rate else "infinitely many"
        return [
            f"false_alarms={rate:g}: {len(self.normal)} scores of normal data can promise {self.false_alarms:.2%} at "
            f"least, which is used ({need} are needed)"
        ]

    @property
    def has_p_values(self) -> bool:
        return bool(self.normal) and not self.stand_ins

    def describe(self) -> str:
        oracle = "; oracle" if self.oracle else ""
        return f"anomalous from score {self.threshold:.4g} on ({self.source}{oracle}{self._doubts()})"

    def _doubts(self) -> str:
        """The question that one asks whose normal data hold a part that may be none."""
        if not self.doubtful:
            return ""
        shown = ", ".join(self.doubtful[:NAMED]) + (" ..." if len(self.doubtful) > NAMED else "")
        if len(self.doubtful) == 1:
            return f"; {shown} scores far above the others: is it normal?"
        return f"; {len(self.doubtful)} score far above the others: are they normal? {shown}"

    def p_values(self, scores: Tensor) -> Tensor | None:
        """[B] share of normal scores at or above each score, the new one counted in: (1 + count) / (n + 1)."""
        if not self.has_p_values:
            return None
        normal = torch.tensor(self.normal, dtype=torch.float64)
        below = torch.searchsorted(normal, scores.detach().cpu().double().contiguous())  # normal scores < score
        return (1 + len(normal) - below).double() / (len(normal) + 1)

    def decide(self, prediction: Prediction) -> Prediction:
        """The prediction with `anomalous`, `p_value`, `threshold` and `region` filled in."""
        score, region = prediction.score, None
        anomalous = score.double() >= self.threshold  # in float32 the step above the last normal score would vanish
        if prediction.map is not None and self.map_threshold is not None:
            maps = prediction.map.detach().cpu()
            region = stacked((self.region(one, prediction.cell)[None] for one in maps), len(maps))
        p_values = self.p_values(score)
        return replace(prediction, anomalous=anomalous, p_value=p_values, threshold=self.threshold, region=region)

    def region(self, score_map: Tensor, cell: float = 1.0) -> Tensor:
        """[H, W] bool: where a map reaches `map_threshold`; pieces smaller than the map's resolution are left out.

        The map of a normal input touches its threshold anywhere at no more than the promised rate. `cell`: pixels that
        one value covered before the map was enlarged (`Prediction.cell`).
        """
        assert self.map_threshold is not None
        return torch.from_numpy(without_specks((score_map.double() >= self.map_threshold).numpy(), cell))

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        lists = {name: list(getattr(self, name)) for name in SEQUENCES}
        return {**vars(self), **lists}

    @classmethod
    def from_plain(cls, saved: Mapping[str, Any] | None) -> "Decision | None":
        """What a checkpoint holds under ``decision``."""
        if saved is None:
            return None
        return cls(**{**saved, **{name: tuple(saved.get(name, ())) for name in SEQUENCES}})


def in_words(decision: Decision | None, reason: str) -> str:
    """How a detector decides, or why it does not, for the end of a run and the beginning of a program."""
    return f"none: {reason}" if decision is None else decision.describe()


def at_asked_rate(stored: Decision | None, rate: float | None) -> Decision | None:
    """The stored decision, with another promise where one is asked for."""
    if rate is None:
        return stored
    if stored is None or not stored.normal:
        raise UserError(
            f"false_alarms={rate:g}: this detector has no scores of normal data to promise a rate from; "
            f"{CALIBRATE} adds them"
        )
    return stored.at_rate(rate)


def promised_rate(count: int, rate: float) -> tuple[float, bool]:
    """The false-alarm rate that `count` normal scores can promise when `rate` is asked; is it a larger one?"""
    smallest = 1 / (count + 1)
    return (smallest, True) if rate < smallest - 1e-12 else (rate, False)


def conformal_threshold(ascending: Sequence[float], rate: float) -> float:
    """The lowest threshold for ``score >= threshold`` that promises at most `rate` false alarms.

    A new normal score is equally likely to take each of the n + 1 places among the n given ones, so that it exceeds the
    k-th smallest with probability at most (n + 1 - k) / (n + 1); ties only make that smaller.
    """
    count = len(ascending)
    place = count + 1 - floor(rate * (count + 1) + 1e-9)  # = ceil((n + 1)(1 - rate)), counted from 1
    if place > count:
        return inf
    return -inf if place < 1 else nextafter(ascending[place - 1], inf)
