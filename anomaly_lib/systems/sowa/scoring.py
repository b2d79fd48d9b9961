"""Scores of many images from their frozen taps."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from anomaly_lib.data import Item, class_names
from anomaly_lib.engine.amp import autocast_for
from anomaly_lib.models.sowa.model import AnomalyCLIP
from anomaly_lib.models.sowa.scores import Memory, build_memory, detect, scale_transductively
from anomaly_lib.ops.predictions import joined
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
    maps: list[Tensor] = [torch.empty(0)] * len(items)
    parts: dict[str, Tensor] = {}
    for name in class_names(items):
        places = [i for i, item in enumerate(items) if item.class_name == name]
        keys, count, size = taps.fill([items[i] for i in places]), len(taps.tiles), batch_size or args.batch_size
        step = max(1, size // count) * count  # whole images
        images = []
        for start in range(0, len(keys), step):
            found = []
            for batch in taps.batches(keys[start : start + step], size):
                names = [name] * len(next(iter(batch.values())))
                with autocast_for(taps.device, args.precision):
                    found.append(detect(model, batch, names, memories, args))
            images.append(taps.tiles.joined(_joined(found)))
        whole = joined(images)
        if memories and args.score_scaling == "transductive":
            whole = scale_transductively(whole)
        score[places] = whole.score
        assert whole.map is not None
        for row, place in enumerate(places):
            maps[place] = whole.map[row]
        for part, values in whole.parts.items():
            parts.setdefault(part, torch.zeros(len(items)))[places] = values
    return Prediction(score, torch.stack(maps), parts, cell=whole.cell)


def _joined(found: Sequence[Prediction]) -> Prediction:
    maps = [one.map for one in found if one.map is not None]
    parts = {name: torch.cat([one.parts[name] for one in found]).float().cpu() for name in found[0].parts}
    score = torch.cat([one.score for one in found]).float().cpu()
    return Prediction(score, torch.cat(maps).float().cpu(), parts, cell=found[0].cell)
