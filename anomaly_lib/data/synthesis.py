"""Synthetic defects for training, a whole batch at a time: DRAEM's Perlin textures, SevNet's additive cut-and-paste."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from anomaly_lib.ops import random_perlin

RETRIES = 10
FREE_AUGMENTATIONS = 3  # of the ten below, drawn for each texture


@dataclass(frozen=True)
class Damaged:
    """Images with damage [B, C, H, W], where it is [B, H, W] bool and how severe [B] (0 where nothing was added)."""

    images: Tensor
    mask: Tensor
    severity: Tensor


def _uniform(count: int, low: float, high: float, generator: Generator | None) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn each of [B, C, H, W] about its middle by its own angle, bilinear, zeros from outside."""
    height, width = images.shape[-2:]
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Normalised coordinates are stretched by the sides, so the off-diagonal terms carry the aspect.
    rows = [cos, -sin * height / width, zero], [sin * width / height, cos, zero]
    matrix = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)  # [B, 2, 3]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


# -- textures -------------------------------------------------------------------------------------------------------


def _gamma(x: Tensor, u: Tensor) -> Tensor:
    return x.clamp(0, 1) ** (0.5 + 1.5 * u)


def _brightness(x: Tensor, u: Tensor) -> Tensor:
    return x * (0.8 + 0.4 * u) + (u.roll(1, 0) - 0.5) * (60 / 255)


def _sharpness(x: Tensor, u: Tensor) -> Tensor:
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return soft + (0.1 + 1.8 * u) * (x - soft)


def _saturation(x: Tensor, u: Tensor) -> Tensor:
    grey = x.mean(1, keepdim=True)
    warmth = torch.linspace(0.2, -0.2, x.shape[1]).to(x).view(-1, 1, 1) if x.shape[1] > 1 else 0.0
    return grey + (0.2 + 1.6 * u) * (x - grey) + (u.roll(1, 0) - 0.5) * warmth


def _solarize(x: Tensor, u: Tensor) -> Tensor:
    return torch.where(x >= 0.125 + 0.375 * u, 1 - x, x)


def _posterize(x: Tensor, u: Tensor) -> Tensor:
    levels = 2 ** (2 + (4 * u).floor())
    return (x.clamp(0, 1) * (levels - 1)).round() / (levels - 1)


def _invert(x: Tensor, u: Tensor) -> Tensor:  # noqa: ARG001 - one signature for all
    return 1 - x


def _stretch(x: Tensor, u: Tensor) -> Tensor:  # noqa: ARG001
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-6)


def _equalize(x: Tensor, u: Tensor) -> Tensor:  # noqa: ARG001
    levels = (x.clamp(0, 1) * 255).round().long().flatten(2)  # [B, C, H * W]
    counts = torch.zeros(*levels.shape[:2], 256, device=x.device).scatter_add_(2, levels, torch.ones_like(x).flatten(2))
    below = counts.cumsum(2)
    lowest = below.masked_fill(below == 0, torch.inf).amin(2, keepdim=True)
    share = (below - lowest) / (levels.shape[2] - lowest).clamp(min=1)
    return share.clamp(min=0).gather(2, levels).reshape(x.shape)


def _turn(x: Tensor, u: Tensor) -> Tensor:
    return rotate(x, 90 * (u.flatten() - 0.5))


AUGMENTATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _gamma, _brightness, _sharpness, _saturation, _solarize, _posterize, _invert, _stretch, _equalize, _turn,
)  # fmt: skip


def augment_textures(textures: Tensor, *, generator: Generator | None = None) -> Tensor:
    """Three different ones of ten photometric and geometric changes for each texture [B, C, H, W], in random order."""
    count = len(textures)
    order = torch.rand(count, len(AUGMENTATIONS), generator=generator).argsort(dim=1)[:, :FREE_AUGMENTATIONS]
    for turn in range(FREE_AUGMENTATIONS):
        strength = torch.rand(count, 1, 1, 1, generator=generator)
        changed = textures.clone()
        for kind, change in enumerate(AUGMENTATIONS):
            chosen = (order[:, turn] == kind).nonzero().squeeze(1)
            if len(chosen):
                changed[chosen] = change(textures[chosen], strength[chosen]).to(textures.dtype)
        textures = changed
    return textures


# -- DRAEM ----------------------------------------------------------------------------------------------------------


def perlin_masks(size: tuple[int, int], count: int, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """Rotated noise [N, H, W] and noise > 0.5, never empty while ten draws allow it."""
    noise = torch.zeros(count, *size)
    mask = torch.zeros(count, *size, dtype=torch.bool)
    todo = torch.arange(count)
    for _ in range(RETRIES):
        drawn = random_perlin(size, len(todo), generator=generator)
        low, high = drawn.amin((1, 2), keepdim=True), drawn.amax((1, 2), keepdim=True)
        drawn = torch.where(high > 0.5, drawn, 2 * (drawn - low) / (high - low).clamp(min=1e-6) - 1)
        turned = rotate(drawn.unsqueeze(1), _uniform(len(todo), -90, 90, generator)).squeeze(1)
        noise[todo], mask[todo] = turned, turned > 0.5
        todo = todo[~mask[todo].flatten(1).any(1)]
        if not len(todo):
            break
    return noise, mask


def perlin_damage(
    images: Tensor,
    *,
    probability: float = 0.5,
    blend: tuple[float, float] = (0.1, 1.0),
    textures: Tensor | None = None,
    generator: Generator | None = None,
) -> Damaged:
    """x (1 - m) + b t m + (1 - b) x m, with Perlin masks m, textures t, b uniform in `blend`; images [B, C, H, W].

    `textures` [N, C, H, W] are drawn from at random (e.g. DTD); without them t is the noise itself. A share
    1 - `probability` of the images stays clean.
    """
    count, channels, height, width = images.shape
    noise, mask = perlin_masks((height, width), count, generator=generator)
    mask &= (torch.rand(count, generator=generator) < probability).view(-1, 1, 1)
    if textures is None:
        source = (0.5 * noise + 0.25).unsqueeze(1).repeat(1, channels, 1, 1)
    else:
        source = textures[torch.randint(len(textures), (count,), generator=generator)]
    source = augment_textures(source, generator=generator).to(images)
    share = _uniform(count, *blend, generator).to(images)
    alpha = share.view(-1, 1, 1, 1) * mask.unsqueeze(1).to(images)
    damaged = images + alpha * (source - images)
    return Damaged(damaged, mask.to(images.device), share * mask.flatten(1).any(1).to(images))


# -- SevNet ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CutPaste:
    """SevNet's fault: a patch of the image itself, times a drawn severity, added somewhere else.

    Widths are whole pixels, heights width x ratio (height over width); `count` patches share size and severity.
    """

    width_range: tuple[int, int] = (20, 80)
    ratio_range: tuple[float, float] = (2.0, 4.0)
    count: int = 1
    severity_max: float = 1.0
    probability: float = 0.5
    clamp: bool = True

    def __post_init__(self) -> None:
        low, high = self.width_range
        if not 1 <= low <= high:
            raise ValueError(f"patch_width_range must be positive and ascending, got {self.width_range}")
        if not 0 < self.ratio_range[0] <= self.ratio_range[1]:
            raise ValueError(f"patch_ratio_range must be positive and ascending, got {self.ratio_range}")
        if self.severity_max <= 0 or self.count < 1 or not 0 <= self.probability <= 1:
            raise ValueError("severity_max and patch_count must be positive and the probability within 0..1")

    def __call__(self, images: Tensor, *, generator: Generator | None = None) -> Damaged:
        count, _, height, width = images.shape
        if self.width_range[1] >= min(height, width):
            raise ValueError(
                f"patch_width_range up to {self.width_range[1]} does not fit a {height}x{width} image; lower it"
            )
        low, high = self.width_range
        w = torch.randint(low, high + 1, (count,), generator=generator)
        h = (w * _uniform(count, *self.ratio_range, generator)).long().clamp(1, height - 1)
        w = w.clamp(max=width - 1)
        hit = torch.rand(count, generator=generator) < self.probability
        severity = _uniform(count, 0.0, self.severity_max, generator) * hit
        mask = torch.zeros(count, height, width, dtype=torch.bool)
        damaged = images
        for _ in range(self.count):
            top, left, down, right = self._places(h, w, (height, width), generator)
            inside = _boxes(top, left, h, w, (height, width)) & (severity > 0).view(-1, 1, 1)
            moved = _shifted(damaged, down, right)
            added = moved * severity.view(-1, 1, 1, 1).to(images) * inside.unsqueeze(1).to(images)
            damaged, mask = damaged + added, mask | inside
        if self.clamp and bool(((damaged < 0) | (damaged > 1)).any()):
            damaged = damaged.clamp(0, 1)
        return Damaged(damaged, mask.to(images.device), severity.to(images))

    @staticmethod
    def _places(
        h: Tensor, w: Tensor, size: tuple[int, int], generator: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Target corners and the way back to the source corners; targets that cover the source by more than 30 % of the
        patch are drawn again, ten times at most."""

        def corner() -> tuple[Tensor, Tensor]:
            u = torch.rand(2, len(h), generator=generator)
            return (u[0] * (size[0] - h + 1)).long(), (u[1] * (size[1] - w + 1)).long()

        (source_top, source_left), (top, left) = corner(), corner()
        for _ in range(RETRIES):
            overlap = (h - (top - source_top).abs()).clamp(min=0) * (w - (left - source_left).abs()).clamp(min=0)
            bad = overlap > 0.3 * h * w
            if not bad.any():
                break
            other = corner()
            top, left = torch.where(bad, other[0], top), torch.where(bad, other[1], left)
        return top, left, source_top - top, source_left - left


def _boxes(top: Tensor, left: Tensor, h: Tensor, w: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W] True inside each box."""
    rows, columns = torch.arange(size[0]), torch.arange(size[1])
    in_rows = (rows >= top[:, None]) & (rows < (top + h)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + w)[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]


def _shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Each image read at (row + down, column + right), edges repeated."""
    batch, channels, height, width = images.shape
    rows = (torch.arange(height) + down[:, None]).clamp(0, height - 1)  # [B, H]
    columns = (torch.arange(width) + right[:, None]).clamp(0, width - 1)
    flat = (rows[:, :, None] * width + columns[:, None, :]).reshape(batch, 1, -1).to(images.device)
    return images.flatten(2).gather(2, flat.expand(-1, channels, -1)).reshape(images.shape)


def textures_of(folder_images: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Texture images [C, h, w] of any size as one stack [N, C, H, W]: decoded once, drawn from for ever."""
    return torch.cat([F.interpolate(x[None], size=size, mode="bilinear", antialias=True) for x in folder_images])
