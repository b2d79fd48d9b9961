"""What normal images of the tested classes promise: images of --normal-data, else the support images themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.data import Item
from anomaly_lib.data.views import with_views
from anomaly_lib.detect.calibration import decision_from, decision_of_views
from anomaly_lib.detect.decision import Decision
from anomaly_lib.models.sowa.model import AnomalyCLIP
from anomaly_lib.models.sowa.scores import Memory
from anomaly_lib.ops import predictions
from anomaly_lib.systems.sowa.options import Args
from anomaly_lib.systems.sowa.scoring import remember, score_items
from anomaly_lib.systems.sowa.taps import Taps
from anomaly_lib.types import Prediction

NO_NORMAL = "no normal data of this class; give normal_data=, a folder of its normal images, or shot="
VIEWS = "mild views of the support images, one a class"
LEFT_OUT = "support images, each left out of the memory"


@dataclass(frozen=True)
class Decisions:
    """The decision of each class that has normal data, and the one for all of them together."""

    each: dict[str, Decision] = field(default_factory=dict)
    whole: Decision | None = None

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        whole = None if self.whole is None else self.whole.plain()
        return {"decision": whole, "decisions": {name: one.plain() for name, one in self.each.items()}}

    @classmethod
    def from_plain(cls, extra: Mapping[str, Any]) -> "Decisions":
        """Inverse of `plain`."""
        each = {name: Decision.from_plain(one) for name, one in extra.get("decisions", {}).items()}
        return cls({n: one for n, one in each.items() if one is not None}, Decision.from_plain(extra.get("decision")))


def decide(
    model: AnomalyCLIP,
    taps: Taps,
    args: Args,
    support: Mapping[str, Sequence[Item]],
    normal: Mapping[str, Sequence[Item]],
) -> Decisions:
    """The decisions that normal images set which the memories do not hold: `normal`, or the support images."""
    found, of = normal_scores(model, taps, args, support, normal)

    def decision(some: Sequence[Prediction], of: str) -> Decision:
        whole = predictions.joined(some)
        return (
            decision_of_views(whole, of=of) if of.startswith(VIEWS) else decision_from(whole, args.false_alarms, of=of)
        )

    if not found:
        return Decisions()
    each = {name: decision([one], f"{of} ({name})") for name, one in found.items()}
    return Decisions(each, decision([*found.values()], f"{of} ({', '.join(found)})"))


def joined(each: Mapping[str, Decision]) -> Decision | None:
    """The decision for images of all these classes; None where one rests on stand-ins."""
    if any(not one.has_p_values for one in each.values()):
        return None
    normal, maxima = ([value for one in each.values() for value in getattr(one, name)] for name in ("normal", "maxima"))
    rate = max(one.false_alarms or 0.0 for one in each.values())
    return Decision.promising(normal, rate, of=f"normal images of {', '.join(each)}", maxima=maxima)


def normal_scores(
    model: AnomalyCLIP,
    taps: Taps,
    args: Args,
    support: Mapping[str, Sequence[Item]],
    normal: Mapping[str, Sequence[Item]],
) -> tuple[dict[str, Prediction], str]:
    """Scores and maps of normal images of each class as single images get them, and where they come from, in words."""
    alone = replace(args, score_scaling="support")
    if normal:
        memories = remember(model, taps, support)
        return score_each(model, taps, normal, memories, alone), f"normal images of {args.normal_data}"
    if args.shot == 1:
        views = {name: with_views(items, "mild") for name, items in support.items()}
        return score_each(model, taps, views, remember(model, taps, support), alone), VIEWS
    return {name: left_out(model, taps, items, alone) for name, items in support.items()}, LEFT_OUT


def score_each(
    model: AnomalyCLIP, taps: Taps, items: Mapping[str, Sequence[Item]], memories: Mapping[str, Memory], args: Args
) -> dict[str, Prediction]:
    """Scores and maps of the images of each class."""
    return {name: score_items(model, taps, some, memories, args) for name, some in items.items()}


def left_out(model: AnomalyCLIP, taps: Taps, items: Sequence[Item], args: Args) -> Prediction:
    """Scores [k] and maps [k, H, W] of the support images of a class, each by the patches of the others.

    What normal images reach among each other (`Memory.reference`) stays that of all k: among k - 1 they reach farther,
    which would make a left-out image look nearer than a new one is.
    """
    name, found = items[0].class_name, []
    whole = remember(model, taps, {name: items})[name]
    for index, item in enumerate(items):
        others = [i for i in range(len(items) * len(taps.tiles)) if i // len(taps.tiles) != index]
        memory = replace(whole, patches=[tokens[others] for tokens in whole.patches])
        found.append(score_items(model, taps, [item], {name: memory}, args))
    maps: list[Tensor] = [one.map for one in found if one.map is not None]
    return Prediction(torch.cat([one.score for one in found]), torch.cat(maps))
