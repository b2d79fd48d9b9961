"""Synthetic HDMAP: maps with the published statistics, for tests, demos and machines without the data.

A map is a gear pair's vibration, planet teeth (31 rows) by ring teeth (95 columns): a few row profiles times column
profiles that belong to the domain, slow variation, noise and a load factor that is 1.4 times higher once the rig has
warmed up. A fault is one planet tooth (a row, sometimes its neighbour) that rings louder along most of the ring.
Because a warm healthy map is brighter than a cold faulty one, no intensity threshold tells them apart.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from anomaly_lib.systems.detectors.hdmap.names import DOMAINS
from anomaly_lib.systems.detectors.hdmap.reader import GROUPS, NATIVE_SIZE, DomainSplit, check_domain, save_map

WARM = 1.4  # published ratio of warmed-up to cold means
TOOTH_JITTER = 0.08  # healthy teeth differ a little from map to map


@dataclass(frozen=True)
class DomainLook:
    """Published mean and deviation of a domain's scaled training maps, and how much louder a faulty tooth is."""

    mean: float
    std: float
    noise: float
    fault_gain: tuple[float, float]
    fault_level: float  # a faulty gear's overall level; in B and D it is below a healthy one's


LOOKS = {
    "domain_A": DomainLook(0.25, 0.084, 0.15, (1.35, 1.60), 1.02),
    "domain_B": DomainLook(0.25, 0.084, 0.17, (1.35, 1.60), 0.90),
    "domain_C": DomainLook(0.25, 0.072, 0.17, (1.25, 1.48), 1.04),
    "domain_D": DomainLook(0.22, 0.082, 0.19, (1.30, 1.55), 0.93),
}


def _profiles(generator: np.random.Generator, size: int, count: int) -> np.ndarray:
    """`count` smooth periodic profiles of mean 0 and deviation 1, [count, size]."""
    angle = 2 * np.pi * np.arange(size) / size
    waves = np.stack([np.cos(k * angle + phase) for k in range(1, 6) for phase in (0.0, np.pi / 2)])
    weights = generator.normal(size=(count, len(waves))) / np.repeat(np.arange(1, 6), 2)
    profiles = weights @ waves
    return profiles / profiles.std(axis=1, keepdims=True)


def _smooth_noise(generator: np.random.Generator, count: int) -> np.ndarray:
    """Slow multiplicative wander of each map, [count, 31, 95], deviation about 1."""
    rows = _profiles(generator, NATIVE_SIZE[0], count)
    columns = _profiles(generator, NATIVE_SIZE[1], count)
    return rows[:, :, None] * columns[:, None, :]


def synthetic_maps(domain: str, count: int, *, fault: bool = False, seed: int = 0) -> np.ndarray:
    """[count, 31, 95] float32 maps of one domain, not clipped; the first half cold, the rest warmed up."""
    look = LOOKS[check_domain(domain)]
    place = DOMAINS.index(domain)
    fixed = np.random.default_rng([7, place])  # the domain's own pattern: the same in every split and seed
    rows, columns = _profiles(fixed, NATIVE_SIZE[0], 3), _profiles(fixed, NATIVE_SIZE[1], 3)
    pattern = np.einsum("kr,kc->rc", rows, columns) / np.sqrt(3)
    draw = np.random.default_rng([seed, place, int(fault), count])
    warm = np.arange(count) >= count // 2
    contrast = look.std / look.mean * 0.55
    load = np.where(warm, WARM, 1.0) * np.exp(draw.normal(0, 0.14, count)) / 1.2
    field = 1 + contrast * (pattern + 0.5 * _smooth_noise(draw, count))
    field = field * (1 + look.noise * draw.normal(size=field.shape))
    field = field * (1 + TOOTH_JITTER * draw.normal(size=(count, NATIVE_SIZE[0], 1)))
    if fault:
        field = field * _fault_gain(draw, count, look) * look.fault_level
    return np.maximum(look.mean * load[:, None, None] * field, 0.003).astype(np.float32)


def _fault_gain(draw: np.random.Generator, count: int, look: DomainLook) -> np.ndarray:
    """[count, 31, 95]: one tooth row louder over 70 % or more of the ring, its neighbour too every other time."""
    gain = np.ones((count, *NATIVE_SIZE))
    for i in range(count):
        row = int(draw.integers(NATIVE_SIZE[0]))
        width = int(draw.integers(int(0.7 * NATIVE_SIZE[1]), NATIVE_SIZE[1] + 1))
        columns = (int(draw.integers(NATIVE_SIZE[1])) + np.arange(width)) % NATIVE_SIZE[1]
        loud = draw.uniform(*look.fault_gain)
        gain[i, row, columns] = loud
        if draw.random() < 0.5:
            gain[i, (row + 1) % NATIVE_SIZE[0], columns] = 1 + (loud - 1) / 2
    return gain


def demo_split(domain: str, split: str, *, train: int = 64, test: int = 32, seed: int = 0) -> DomainSplit:
    """The maps that `write_hdmap_demo` writes, in memory."""
    groups = [(number, group, label) for number, (s, group, label) in enumerate(GROUPS) if s == split]
    count = train if split == "train" else test
    maps = [synthetic_maps(domain, count, fault=bool(label), seed=seed * 3 + number) for number, _, label in groups]
    labels = torch.tensor([label for _, _, label in groups]).repeat_interleave(count)
    paths = tuple(f"synthetic/{domain}/{split}/{group}/{i:06d}" for _, group, _ in groups for i in range(count))
    return DomainSplit(domain, torch.from_numpy(np.concatenate(maps)).unsqueeze(1), labels, paths)


def write_hdmap_demo(folder: Path | str, *, train: int = 64, test: int = 32, kind: str = "tiff", seed: int = 0) -> Path:
    """Write all four domains in the real layout and answer the folder that holds ``domain_*``.

    `train` good maps for training, `test` good and `test` faulty ones for testing, per domain.
    """
    version = f"{train}_{'tiff_minmax' if kind == 'tiff' else f'{kind}_original'}"
    root = Path(folder) / "HDMAP" / version
    for domain in DOMAINS:
        for number, (split, group, label) in enumerate(GROUPS):
            count = train if split == "train" else test
            maps = synthetic_maps(domain, count, fault=bool(label), seed=seed * 3 + number)
            for i, values in enumerate(maps):
                save_map(root / domain / split / group / f"{i:06d}", values, kind)
    return root
