"""Where the object is: the first principal component of one image's patches, without a label."""

import torch
import torch.nn.functional as F
from torch import Tensor


def first_component(rows: Tensor) -> Tensor:
    """Scores [B, P] of rows [B, P, C] on the first principal axis of each image's own rows.

    The axis points where its largest entry is positive.
    """
    centred = rows.double() - rows.double().mean(1, keepdim=True)
    if rows.shape[1] < rows.shape[2]:  # the smaller of the two products has the same axis
        _, vectors = torch.linalg.eigh(centred @ centred.mT)
        axis = F.normalize((centred.mT @ vectors[..., -1:]).squeeze(-1), dim=-1)
    else:
        _, vectors = torch.linalg.eigh(centred.mT @ centred)
        axis = vectors[..., -1]  # [B, C]
    largest = axis.gather(1, axis.abs().argmax(1, keepdim=True))
    return (centred @ (axis * largest.sign()).unsqueeze(-1)).squeeze(-1).to(rows.dtype)


def foreground(maps: Tensor, threshold: float, *, border: float = 0.2, least: float = 0.35) -> Tensor:
    """Which patches of maps [B, C, h, w] show the object -> bool [B, h, w].

    Patches beyond `threshold` on the first component. Which side of it the object is on is not known: where at most
    `least` of the image's centre (without `border` on either side) would belong to it, the other side does. The result
    grows by one patch, and gaps of one patch close.
    """
    batch, _, height, width = maps.shape
    scores = first_component(maps.flatten(2).mT).reshape(batch, height, width)
    mask = scores > threshold
    centre = mask[:, int(height * border) : int(height * (1 - border)), int(width * border) : int(width * (1 - border))]
    empty = centre.sum((1, 2)).double() <= least * centre[0].numel()  # float32 would round the limit up to a count
    mask = torch.where(empty[:, None, None], -scores > threshold, mask)
    grown = _dilate(mask.float().unsqueeze(1))
    closed = -_dilate(-_dilate(grown))
    return closed.squeeze(1) > 0.5


def _dilate(mask: Tensor) -> Tensor:
    """Maximum of every 3 x 3 neighbourhood; what is beyond the edge does not count."""
    return F.max_pool2d(mask, 3, stride=1, padding=1)
