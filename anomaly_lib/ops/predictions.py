"""Predictions of several batches as one."""

from collections.abc import Sequence

import torch

from anomaly_lib.types import Prediction


def joined(found: Sequence[Prediction]) -> Prediction:
    """Scores [N], maps [N, H, W] and parts of predictions of the same detector, in their order."""
    maps = [one.map for one in found if one.map is not None]
    return Prediction(
        torch.cat([one.score for one in found]),
        torch.cat(maps) if maps else None,
        {name: torch.cat([one.parts[name] for one in found]) for name in found[0].parts},
        cell=found[0].cell,
    )
