"""Predictions of several batches as one, and room for the maps of many large images."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from anomaly_lib.errors import UserError
from anomaly_lib.types import Prediction

HELD = 1 << 28  # bytes of a stack of maps that are held in memory; a larger one lies in a file


def joined(found: Sequence[Prediction]) -> Prediction:
    """Scores [N], maps [N, H, W] and parts of predictions of the same detector, in their order."""
    maps = [one.map for one in found if one.map is not None]
    return Prediction(
        torch.cat([one.score for one in found]),
        torch.cat(maps) if maps else None,
        {name: torch.cat([one.parts[name] for one in found]) for name in found[0].parts},
        cell=found[0].cell,
    )


def gathered(found: Iterable[Prediction], count: int) -> Prediction:
    """`joined` of the predictions of `count` inputs as they come, with `stacked` maps."""
    rest: list[Prediction] = []

    def maps() -> Iterable[Tensor]:
        for one in found:
            rest.append(replace(one, map=None))
            if one.map is not None:
                yield one.map

    whole = stacked(maps(), count)
    return replace(joined(rest), map=whole)


def stacked(pieces: Iterable[Tensor], count: int) -> Tensor | None:
    """Maps or masks [b, H, W], `count` of them in all, as they come -> [N, H, W] on the CPU; None where none came.

    A stack of more than `HELD` bytes lies in a file of the system's folder for such files, mapped into memory, and is
    gone with the tensor: what of it is in memory at a time is up to the system, which can write it back.
    """
    whole, filled = None, 0
    for piece in pieces:
        if whole is None:
            whole = _room((count, *piece.shape[1:]), piece.dtype)
        whole[filled : filled + len(piece)] = piece
        filled += len(piece)
    return whole


def _room(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor to be filled."""
    size = prod(shape) * dtype.itemsize
    if size <= HELD:
        return torch.empty(tuple(shape), dtype=dtype)
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is told now, by an error
                os.posix_fallocate(file.fileno(), 0, size)
            kind = torch.empty(0, dtype=dtype).numpy().dtype
            return torch.from_numpy(np.memmap(file, kind, "w+", shape=tuple(shape)))  # outlives its name
    except OSError as error:
        where = tempfile.gettempdir()
        raise UserError(
            f"{where}: no room for maps of {size / 2**20:.0f} MiB ({error.strerror}); let TMPDIR name another folder, "
            "or lower image_size="
        ) from None
