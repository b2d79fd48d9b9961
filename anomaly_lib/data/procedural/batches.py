"""Training batches out of a pool: windows cut, turned, recoloured, dusted and captioned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from anomaly_lib.data.procedural import captions
from anomaly_lib.data.procedural.pool import GRID, MARGIN, PATCH, Pool


@dataclass
class Batch:
    """P pairs: images [2P, 3, s, s] (clean first), offsets of the window in patches, patch labels, captions."""

    images: Tensor
    offsets: Tensor  # [2P, 2] row, column of the first patch
    patches: Tensor  # [2P, N] 1 damaged, 0 clean, -1 unclear
    material: Tensor  # [P]
    object: Tensor  # [P]
    defect: Tensor  # [P]
    texts: list[str]  # 2P captions, clean first
    text_attributes: Tensor  # [2P, 4] material, object, state, defect; -1 where the caption does not say


def make_batch(pool: Pool, rng: np.random.Generator, pairs: int, window: int) -> Batch:
    """Random pairs, cut, turned, recoloured and captioned; windows mostly hold the damage."""
    index = np.sort(rng.choice(len(pool["masks"]), pairs, replace=False))
    pixels = window * PATCH
    pictures = np.empty((2, pairs, pixels, pixels, 3), np.float32)
    masks = np.empty((pairs, pixels, pixels), np.float32)
    offsets = np.zeros((pairs, 2), np.int64)
    for row, i in enumerate(index):
        mask = pool["masks"][i]
        cut = rng.integers(0, MARGIN + 1, 2)
        if window < GRID:
            offsets[row] = _aim(rng, mask, cut, window)
        top, left = cut + offsets[row] * PATCH
        area = slice(top, top + pixels), slice(left, left + pixels)
        pair, where = pool["pictures"][i][:, area[0], area[1]], mask[area]
        turns, flip = int(rng.integers(4)), rng.random() < 0.5
        pair, where = np.rot90(pair, turns, (1, 2)), np.rot90(where, turns)
        pictures[:, row], masks[row] = (pair[:, :, ::-1], where[:, ::-1]) if flip else (pair, where)
    images = torch.from_numpy(pictures.reshape(2 * pairs, pixels, pixels, 3)).permute(0, 3, 1, 2) / 255
    share = F.avg_pool2d(torch.from_numpy(masks)[:, None], PATCH).flatten(1)  # [P, N]
    damaged = torch.where(share >= 0.08, 1, torch.where(share == 0, 0, -1))
    attributes = torch.from_numpy(np.array(pool["attributes"][index]))
    texts, said = captions.caption_pairs(rng, attributes.numpy())
    return Batch(
        images=recolour(images, rng),
        offsets=torch.from_numpy(np.concatenate([offsets, offsets])),
        patches=torch.cat([torch.zeros_like(damaged), damaged]),
        material=attributes[:, 0],
        object=attributes[:, 1],
        defect=attributes[:, 2],
        texts=texts,
        text_attributes=torch.from_numpy(said),
    )


def _aim(rng: np.random.Generator, mask: NDArray[np.bool_], cut: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """First patch of a window; three times in four around a damaged pixel."""
    last = GRID - window
    free = rng.integers(0, last + 1, 2)
    if rng.random() < 0.25:
        return free
    damaged = np.argwhere(mask)
    patch = (damaged[int(rng.integers(len(damaged)))] - cut) // PATCH
    return np.asarray(np.clip(patch - rng.integers(0, window, 2), 0, last))


def recolour(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, gamma, channel balance, channel order, grey, noise: a pair does not share them."""
    count = len(images)

    def draws(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32))

    order = torch.from_numpy(np.stack([rng.permutation(3) for _ in range(count)]))
    images = images.gather(1, order[:, :, None, None].expand_as(images))
    grey = images.mean(1, keepdim=True)
    images = torch.where(draws(0, 1) < 0.15, grey, images)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = ((images - mean) * draws(0.6, 1.3) + mean * draws(0.7, 1.3) * draws(0.9, 1.1, 3)).clamp(1e-4, 1)
    images = _dust(images.pow(draws(0.7, 1.4)), rng)
    images = images.lerp(F.avg_pool2d(images, 3, 1, 1, count_include_pad=False), draws(0, 0.7))  # focus
    images = images + torch.randn_like(images) * draws(0, 0.03)
    return images.clamp(0, 1)


def _dust(images: Tensor, rng: np.random.Generator) -> Tensor:
    """A few dark and bright grains of one or two pixels, on damaged and clean pictures alike."""
    count, _, height, width = images.shape
    density = torch.from_numpy(rng.uniform(0, 0.0015, (count, 1, 1, 1)).astype(np.float32))
    fine = (torch.rand(count, 1, height, width) < density).float()
    coarse = F.interpolate((torch.rand(count, 1, height // 2, width // 2) < density).float(), scale_factor=2.0)
    tone = (torch.rand(count, 1, height // 2, width // 2) < 0.5).float()
    where = torch.where(torch.rand(count, 1, 1, 1) < 0.5, fine, coarse) * 0.75
    return images.lerp(F.interpolate(tone, scale_factor=2.0).expand_as(images), where)
