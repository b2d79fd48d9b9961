"""Scores of many images from their frozen taps."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from anomaly_lib.data import Item, class_names
from anomaly_lib.engine.amp import autocast_for
from anomaly_lib.models.sowa.model import AnomalyCLIP
from anomaly_lib.models.sowa.scores import Memory, build_memory, detect, scale_transductively
from anomaly_lib.ops.predictions import gathered, stacked
from anomaly_lib.systems.sowa.options import Args
from anomaly_lib.systems.sowa.taps import Taps
from anomaly_lib.types import Prediction


@torch.no_grad()
def remember(model: AnomalyCLIP, taps: Taps, support: Mapping[str, Sequence[Item]]) -> dict[str, Memory]:
    """The few-shot memory of every class."""
    model.eval()
    memories = {}
    for name, items in support.items():
        memories[name] = build_memory(
            model, model.visual_encoder.from_taps(taps.rows(taps.fill(items)))[1], tiles=len(taps.tiles)
        )
    return memories


@torch.no_grad()
def score_items(
    model: AnomalyCLIP,
    taps: Taps,
    items: Sequence[Item],
    memories: Mapping[str, Memory],
    args: Args,
    *,
    batch_size: int | None = None,
) -> Prediction:
    """Scores [N] and maps [N, H, W] of `items`, on the CPU, class by class."""
    model.eval()
    score = torch.zeros(len(items))
    maps: list[Tensor] = [torch.empty(0)] * len(items)  # [1, H, W] each
    parts: dict[str, Tensor] = {}
    for name in class_names(items):
        places = [i for i, item in enumerate(items) if item.class_name == name]
        keys, size = taps.fill([items[i] for i in places]), batch_size or args.batch_size

        def judge(batch: dict[str, Tensor], name: str = name) -> Prediction:
            return detect(model, batch, [name] * len(next(iter(batch.values()))), memories, args)

        whole = gathered(_judged(taps, keys, judge, size, args.precision), len(places))
        if memories and args.score_scaling == "transductive":
            whole = scale_transductively(whole)
        score[places] = whole.score
        assert whole.map is not None
        for row, place in enumerate(places):
            maps[place] = whole.map[row : row + 1]
        for part, values in whole.parts.items():
            parts.setdefault(part, torch.zeros(len(items)))[places] = values
    return Prediction(score, stacked(maps, len(items)), parts, cell=whole.cell)


def _judged(
    taps: Taps, keys: Sequence[str], judge: Callable[[dict[str, Tensor]], Prediction], size: int, precision: str
) -> Iterator[Prediction]:
    """What `judge` says of images, no more than `size` images or tiles at a time."""
    step = max(1, size // len(taps.tiles)) * len(taps.tiles)  # whole images
    for start in range(0, len(keys), step):
        with autocast_for(taps.device, precision):
            found = [judge(batch) for batch in taps.batches(keys[start : start + step], size)]
        yield taps.tiles.joined(_joined(found))


def _joined(found: Sequence[Prediction]) -> Prediction:
    maps = [one.map for one in found if one.map is not None]
    parts = {name: torch.cat([one.parts[name] for one in found]).float().cpu() for name in found[0].parts}
    score = torch.cat([one.score for one in found]).float().cpu()
    return Prediction(score, torch.cat(maps).float().cpu(), parts, cell=found[0].cell)
