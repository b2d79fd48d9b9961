"""Training batches out of a pool: pieces posed, cut, recoloured, dusted and captioned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from scripts.demo_backbone.pictures import captions
from scripts.demo_backbone.pictures.pictures import PIECES, SURFACE
from scripts.demo_backbone.pictures.pool import DRAWN, GRID, MARGIN, PATCH, SIZE, Pool

DAMAGED_SHARE = 0.07  # of a patch's pixels, from which it counts as damaged


@dataclass
class Batch:
    """C products of K = PIECES pictures each, the damaged one last; patch labels 1 damaged, 0 clean, -1 unclear."""

    images: Tensor  # [C * K, 3, s, s] in [0, 1], one window of each product
    offsets: Tensor  # [C * K, 2] row, column of the window's first patch
    patches: Tensor  # [C, N] of the damaged picture; the others are clean
    compared: Tensor  # [C] bool: only the other pieces tell that it is damaged
    material: Tensor  # [C]
    object: Tensor  # [C]
    defect: Tensor  # [C]
    texts: list[str]  # 2C captions, clean first
    text_attributes: Tensor  # [2C, 4] material, object, state, defect; -1 where the caption does not say


def make_batch(pool: Pool, rng: np.random.Generator, products: int, window: int = GRID) -> Batch:
    """Random products, every piece under its own pose, light and focus; `window` x `window` patches of each."""
    index = np.sort(rng.choice(len(pool["masks"]), products, replace=False))
    pictures = np.empty((products, PIECES, SIZE, SIZE, 3), np.float32)
    masks = np.empty((products, SIZE, SIZE), np.float32)
    for row, i in enumerate(index):
        turn, flip = int(rng.integers(4)) * math.pi / 2, rng.random() < 0.5  # of the product: all its pieces share them
        reach = MARGIN * (0.4 if pool["attributes"][i, 1] == SURFACE else 0.12)  # objects are put down with care
        if pool["posed"][i]:
            pictures[row], masks[row] = _reframe(rng, pool["pictures"][i], pool["masks"][i], round(reach))
            continue
        for piece in range(PIECES):
            pose = _pose(rng, turn, flip, reach)
            pictures[row, piece] = _shoot(pool["pictures"][i, piece], pose)
        masks[row] = _shoot(pool["masks"][i].astype(np.float32), pose)
    share = F.avg_pool2d(torch.from_numpy(masks)[:, None], PATCH)[:, 0]  # [C, GRID, GRID]
    patches = torch.where(share >= DAMAGED_SHARE, 1, torch.where(share < 1e-3, 0, -1))
    offsets = torch.stack([_aim(rng, one, window) for one in patches == 1])  # [C, 2]
    images = torch.from_numpy(pictures).permute(0, 1, 4, 2, 3)  # [C, K, 3, S, S]
    images = recolour(_cut(images, offsets * PATCH, window * PATCH) / 255, rng)
    posed = torch.from_numpy(np.array(pool["posed"][index])).repeat_interleave(PIECES)[:, None, None, None]
    attributes = torch.from_numpy(np.array(pool["attributes"][index]))
    texts, said = captions.caption_pairs(rng, attributes.numpy())
    return Batch(
        images=torch.where(posed, images.flatten(0, 1), photograph(images.flatten(0, 1), rng)),
        offsets=offsets.repeat_interleave(PIECES, 0),
        patches=_cut(patches, offsets, window).flatten(1),
        compared=torch.from_numpy(np.array(pool["compared"][index])),
        material=attributes[:, 0],
        object=attributes[:, 1],
        defect=attributes[:, 2],
        texts=texts,
        text_attributes=torch.from_numpy(said),
    )


def _aim(rng: np.random.Generator, damaged: Tensor, window: int) -> Tensor:
    """First row and column of a window; three times in four one that holds a damaged patch of [GRID, GRID]."""
    last = GRID - window
    start, places = rng.integers(0, last + 1, 2), damaged.nonzero().numpy()
    if len(places) and rng.random() < 0.75:
        start = np.clip(places[int(rng.integers(len(places)))] - rng.integers(0, window, 2), 0, last)
    return torch.from_numpy(np.asarray(start, np.int64))


def _cut(fields: Tensor, offsets: Tensor, side: int) -> Tensor:
    """[C, ..., H, W] -> [C, ..., side, side], each at its own offset [C, 2]."""
    cut = [one[..., y : y + side, x : x + side] for one, (y, x) in zip(fields, offsets.tolist(), strict=True)]
    return torch.stack(cut)


def _pose(rng: np.random.Generator, turn: float, flip: bool, reach: float) -> NDArray[np.float64]:
    """Affine map [2, 3] from a drawn picture to what the camera sees: a few degrees, pixels and per cent."""
    angle = turn + math.radians(rng.normal(0, 3))
    zoom = math.exp(rng.normal(0, 0.04))
    linear = zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if flip:
        linear[:, 0] *= -1
    centre = (SIZE - 1) / 2 + rng.uniform(-reach, reach, 2)
    return np.column_stack([linear, centre - linear @ np.full(2, (DRAWN - 1) / 2)])


def _reframe(
    rng: np.random.Generator, pieces: NDArray[np.uint8], mask: NDArray[np.bool_], reach: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pieces that were photographed already, whole pixels only: cut each by itself, turn and mirror them together."""
    turn, flip, starts = int(rng.integers(4)), rng.random() < 0.5, rng.integers(-reach, reach + 1, (PIECES, 2))
    cut = [one[y : y + SIZE, x : x + SIZE] for one, (y, x) in zip(pieces, starts + MARGIN // 2, strict=True)]
    y, x = starts[-1] + MARGIN // 2
    views = np.rot90(np.stack(cut), turn, (1, 2)), np.rot90(mask[y : y + SIZE, x : x + SIZE], turn)
    return (views[0][:, :, ::-1], views[1][:, ::-1]) if flip else views


def _shoot(picture: NDArray[np.generic], pose: NDArray[np.float64]) -> NDArray[np.float32]:
    out = cv2.warpAffine(picture, pose, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(out, np.float32)


def _draws(rng: np.random.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))


def recolour(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Channel order, grey, contrast and gamma of a product [C, K, 3, S, S]: its pieces share them."""
    count = len(images)
    order = torch.from_numpy(np.stack([rng.permutation(3) for _ in range(count)]))
    images = images.gather(2, order[:, None, :, None, None].expand_as(images))
    images = torch.where(_draws(rng, 0, 1, count, 1, 1, 1, 1) < 0.15, images.mean(2, keepdim=True), images)
    mean = images.mean((1, 2, 3, 4), keepdim=True)
    contrast, brightness = (_draws(rng, low, high, count, 1, 1, 1, 1) for low, high in ((0.65, 1.25), (0.75, 1.25)))
    images = ((images - mean) * contrast + mean * brightness).clamp(1e-4, 1)
    return images.pow(_draws(rng, 0.75, 1.35, count, 1, 1, 1, 1))


def photograph(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Dust, uneven light, exposure, colour balance, focus and noise of every picture [B, 3, S, S] by itself."""
    count = len(images)
    axis = torch.linspace(-1, 1, images.shape[-1])
    slope = _draws(rng, -0.08, 0.08, 2, count, 1, 1, 1)
    light = 1 + slope[0] * axis[:, None] + slope[1] * axis
    light = light - _draws(rng, 0, 0.08, count, 1, 1, 1) * (axis[:, None] ** 2 + axis**2)
    light = light * _draws(rng, 0.88, 1.12, count, 1, 1, 1) * _draws(rng, 0.98, 1.02, count, 3, 1, 1)
    images = (_dust(images, rng) * light).clamp(0, 1)
    images = images.lerp(F.avg_pool2d(images, 3, 1, 1, count_include_pad=False), _draws(rng, 0, 0.5, count, 1, 1, 1))
    images = images + torch.randn_like(images) * _draws(rng, 0, 0.02, count, 1, 1, 1)
    return images.clamp(0, 1)


def _dust(images: Tensor, rng: np.random.Generator) -> Tensor:
    """A few dark and bright grains of one or two pixels, on damaged and clean pictures alike."""
    count, _, height, width = images.shape
    density = _draws(rng, 0, 0.0015, count, 1, 1, 1)
    fine = (torch.rand(count, 1, height, width) < density).float()
    coarse = F.interpolate((torch.rand(count, 1, height // 2, width // 2) < density).float(), scale_factor=2.0)
    tone = (torch.rand(count, 1, height // 2, width // 2) < 0.5).float()
    where = torch.where(torch.rand(count, 1, 1, 1) < 0.5, fine, coarse) * 0.75
    return images.lerp(F.interpolate(tone, scale_factor=2.0).expand_as(images), where)
