"""Synthetic weld defects: damage drawn into photos, disturbances put into sensor and audio series."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly_lib.data.demo.damage import blob, crack, hole, pits, scratch, visible_change, worn
from anomaly_lib.errors import UserError

Series = NDArray[np.float32]
Generator = np.random.Generator


def _spatter(rng: Generator, photo: Series, centre: tuple[float, float]) -> Series:
    """Bright droplets scattered around a spot."""
    size = photo.shape[0]
    out = photo
    for _ in range(int(rng.integers(8, 25))):
        spot = (centre[0] + rng.normal(0, size / 8), centre[1] + rng.normal(0, size / 8))
        where = blob(rng, size, spot, rng.uniform(0.8, 2.0), rough=0.1)[..., None]
        out = out * (1 - where) + where * rng.uniform(0.75, 1.0)
    return np.asarray(out, np.float32)


PHOTO_DEFECTS: dict[str, Callable[[Generator, Series, tuple[float, float]], Series]] = {
    "scratch": scratch,
    "crack": crack,
    "pits": pits,
    "spatter": _spatter,
    "blur": worn,
    "hole": hole,
}


def damage_photo(
    rng: Generator, photo: NDArray[np.uint8], kind: str, *, centre: tuple[float, float] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A square photo [S, S, 3] with one defect of `kind`, and the mask [S, S] of what visibly changed."""
    if kind not in PHOTO_DEFECTS:
        raise UserError(f"unknown synthetic defect {kind!r}; choose from {', '.join(PHOTO_DEFECTS)}")
    if photo.shape[0] != photo.shape[1]:
        raise UserError(f"synthetic defects need a square photo, got {photo.shape[0]}x{photo.shape[1]}")
    clean = np.asarray(photo, np.float32) / np.float32(255)
    size = photo.shape[0]
    where = (float(rng.uniform(0.2, 0.8) * size), float(rng.uniform(0.2, 0.8) * size)) if centre is None else centre
    damaged = np.clip(PHOTO_DEFECTS[kind](rng, clean, where), 0, 1, dtype=np.float32)
    return (damaged * 255).round().astype(np.uint8), visible_change(clean, damaged)


def warp_time(rng: Generator, series: Series, strength: float) -> Series:
    """Local speed-up and slow-down: times move by a smooth curve, ends stay."""
    steps = len(series)
    knots = np.concatenate([[0.0], rng.normal(0, strength, 4), [0.0]])
    shift = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(knots)), knots) * steps
    at = np.clip(np.arange(steps) + shift, 0, steps - 1)
    return np.stack([np.interp(at, np.arange(steps), column) for column in series.T], axis=1).astype(np.float32)


def scale(rng: Generator, series: Series, strength: float) -> Series:
    """A factor for each channel."""
    return (series * (1 + rng.normal(0, strength, series.shape[1]))).astype(np.float32)


def jitter(rng: Generator, series: Series, strength: float) -> Series:
    """Noise in proportion to each channel's spread."""
    return (series + rng.normal(0, strength, series.shape) * series.std(0)).astype(np.float32)


def drop_out(rng: Generator, series: Series, strength: float) -> Series:
    """One stretch of up to `strength` of the time holds the value before it, as a stuck sensor does."""
    length = max(1, int(rng.uniform(0, strength) * len(series)))
    start = int(rng.integers(1, max(2, len(series) - length)))
    out = series.copy()
    out[start : start + length] = series[start - 1]
    return out


def spikes(rng: Generator, series: Series, strength: float) -> Series:
    """Single outliers of 5 spreads on a `strength` share of the time steps."""
    hit = rng.random(series.shape) < strength
    return (series + hit * rng.choice([-5.0, 5.0], series.shape) * series.std(0)).astype(np.float32)


SERIES_DISTURBANCES: dict[str, tuple[Callable[[Generator, Series, float], Series], float]] = {
    "warp": (warp_time, 0.04),
    "scale": (scale, 0.2),
    "jitter": (jitter, 0.2),
    "dropout": (drop_out, 0.3),
    "spikes": (spikes, 0.02),
}


def disturb_series(rng: Generator, series: Series, kind: str, *, strength: float | None = None) -> Series:
    """A series [T, C] (sensor rows, or audio as [T, 1]) with one kind of disturbance; None = its usual strength."""
    if kind not in SERIES_DISTURBANCES:
        raise UserError(f"unknown disturbance {kind!r}; choose from {', '.join(SERIES_DISTURBANCES)}")
    change, usual = SERIES_DISTURBANCES[kind]
    return change(rng, series, usual if strength is None else strength)


def disturbances(count: int, chance: float) -> list[int | None]:
    """For each of `count` series the seed of what happens to it, drawn by torch's generator; None = nothing."""
    if not chance:  # torch's generator is left alone
        return [None] * count
    hit, seeds = torch.rand(count) < chance, torch.randint(2**31, (count,))
    return [int(seed) if struck else None for struck, seed in zip(hit, seeds, strict=True)]


def disturbed(series: Series, seed: int | None) -> Series:
    """A series [T, C] with the disturbance of this seed, of a random kind; None = as it is."""
    if seed is None:
        return series
    rng = np.random.default_rng(seed)
    return disturb_series(rng, series, str(rng.choice(list(SERIES_DISTURBANCES))))
