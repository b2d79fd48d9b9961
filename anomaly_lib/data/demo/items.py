"""Built-in demo data: a procedural inspection data set in the MVTec layout, with exact masks.

Nothing is downloaded. Every image follows from (seed, category, split, defect, index) alone, so any subset is the same
on every machine and in every order. Lighting, exposure, colour balance, pose, dust and sensor noise vary on normal and
defective images alike: a threshold on brightness or contrast finds nothing.
"""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from anomaly_lib.data.base import Item, sort_items
from anomaly_lib.data.demo import surfaces as surfaces
from anomaly_lib.data.demo.defects import Defect, blob, dent, line, shift_part, squeeze, take_away, warp
from anomaly_lib.data.demo.draw import Draws, Scene, noise_field, posed_scene, smooth_step
from anomaly_lib.errors import UserError

BATCH = 16  # images drawn together: bounds memory at about 300 MB for 256 pixels
STRENGTH = (0.7, 1.0)  # of a defect, from plain to obvious
THREAD = surfaces.THREAD_PITCH
DARK, LIGHT = [[0.07, 0.07, 0.07], [0.16, 0.12, 0.10]], [[0.88, 0.88, 0.86], [0.80, 0.80, 0.84]]
RUST, TINTS = [[0.40, 0.23, 0.12], [0.33, 0.20, 0.13]], [[0.58, 0.50, 0.30], [0.45, 0.55, 0.70], [0.66, 0.40, 0.36]]
GLUE, SMEARS = [[0.66, 0.64, 0.56], [0.58, 0.60, 0.62]], [[0.30, 0.26, 0.24], [0.62, 0.60, 0.52]]
GAPS = [[0.15, 0.14, 0.14], [0.21, 0.17, 0.14]]  # what shows through cloth: as dark as its shadows
FIBRES = [[0.75, 0.20, 0.18], [0.85, 0.84, 0.80], [0.14, 0.14, 0.16], [0.20, 0.34, 0.66]]


@dataclass(frozen=True)
class Category:
    """A surface, how far its pose varies, and the defects it can have."""

    surface: Callable[[Draws, Scene], surfaces.Surface]
    angle: float  # degrees
    shift: float  # of half the image
    zoom: float
    defects: dict[str, Defect]


CATEGORIES: dict[str, Category] = {
    "woven": Category(surfaces.woven, 5, 0.2, 0.06, {
        "cut": Defect(line(colours=GAPS, width=(0.008, 0.018), length=(0.25, 0.6), bow=0.1, jagged=0.01)),
        "hole": Defect(blob(colours=GAPS, radius=(0.09, 0.16), rough=0.8, soft=0.15)),
        "loose_thread": Defect(line(colours=FIBRES, width=(0.009, 0.014), length=(0.4, 0.9), bow=0.6, lift=0.015)),
        "missing_thread": Defect(take_away(half_length=(0.12, 0.45), half_width=THREAD / 2, pitch=THREAD)),
        "stain": Defect(blob(colours=TINTS, radius=(0.14, 0.28), multiply=True, soft=0.3)),
        "distorted": Defect(bend=warp(radius=(0.18, 0.32), push=0.16)),
    }),
    "brushed_metal": Category(surfaces.brushed_metal, 3, 0.2, 0.05, {
        "corrosion": Defect(blob(colours=RUST, radius=(0.06, 0.2), rough=2.2, soft=0.35, opacity=0.75)),
        "dent": Defect(dent(radius=(0.09, 0.2), depth=1.1)),
        "pit": Defect(blob(colours=DARK, radius=(0.03, 0.06), rough=0.8, soft=0.4, opacity=0.8)),
        "scratch": Defect(line(colours=DARK + LIGHT, width=(0.008, 0.016), length=(0.3, 0.9), bow=0.15)),
        "stain": Defect(blob(colours=TINTS, radius=(0.12, 0.3), multiply=True, soft=0.3)),
        "wrong_finish": Defect(bend=warp(radius=(0.14, 0.26), push=0.30)),
    }),
    "grid": Category(surfaces.grid, 4, 0.2, 0.05, {
        "bent": Defect(bend=warp(radius=(0.14, 0.26), push=0.16)),
        "broken": Defect(take_away(half_length=(0.08, 0.17), half_width=0.09, diagonal=True)),
        "foreign_fibre": Defect(line(colours=FIBRES, width=(0.009, 0.014), length=(0.4, 0.9), bow=0.6, lift=0.015)),
        "glue": Defect(blob(colours=GLUE, radius=(0.11, 0.22), rough=0.8, opacity=0.85)),
        "rust": Defect(blob(colours=RUST, radius=(0.10, 0.20), rough=1.8, opacity=0.9)),
        "soot": Defect(blob(colours=[[0.42, 0.42, 0.42]], radius=(0.12, 0.26), multiply=True, soft=0.5)),
    }),
    "capsule": Category(surfaces.capsule, 4, 0.04, 0.03, {
        "crack": Defect(line(colours=DARK, width=(0.009, 0.018), length=(0.2, 0.5), bow=0.1, jagged=0.04)),
        "dent": Defect(dent(radius=(0.07, 0.15), depth=1.3)),
        "faded_print": Defect(take_away()),
        "scratch": Defect(line(colours=LIGHT, width=(0.008, 0.016), length=(0.2, 0.6))),
        "squeeze": Defect(bend=squeeze(outline=surfaces.capsule_distance, half_length=0.45, push=0.45)),
        "stain": Defect(blob(colours=SMEARS, radius=(0.06, 0.13), rough=0.9, opacity=0.8)),
    }),
    "circuit_board": Category(surfaces.circuit_board, 2, 0.03, 0.02, {
        "burn": Defect(blob(colours=[[0.25, 0.20, 0.18]], radius=(0.10, 0.24), multiply=True, soft=0.8)),
        "flux_residue": Defect(blob(colours=[[0.70, 0.66, 0.50]], radius=(0.08, 0.2), rough=1.2, opacity=0.55)),
        "misplaced_part": Defect(shift_part),
        "missing_part": Defect(take_away()),
        "scratch": Defect(line(colours=[[0.72, 0.60, 0.34], *LIGHT], width=(0.008, 0.016), length=(0.25, 0.8))),
        "solder_splash": Defect(blob(colours=[[0.80, 0.82, 0.85]], radius=(0.04, 0.08), rough=1.0, soft=0.3)),
    }),
}  # fmt: skip


def demo_items(
    *,
    categories: Iterable[str] | None = None,
    size: int = 256,
    train: int = 40,
    test_good: int = 20,
    per_defect: int = 5,
    seed: int = 0,
) -> list[Item]:
    """The demo data set in memory: `train` normal images a category, `test_good` and `per_defect` test images."""
    items = []
    for name in list(CATEGORIES) if categories is None else categories:
        if name not in CATEGORIES:
            raise UserError(f"obj={name}: no such demo category; there are {', '.join(CATEGORIES)}")
        groups = [("train", "good", train), ("test", "good", test_good)]
        groups += [("test", defect, per_defect) for defect in CATEGORIES[name].defects]
        for split, defect, count in groups:
            images, masks = render(name, defect, count, split=split, size=size, seed=seed)
            for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
                path = Path("demo") / name / split / defect / f"{index:03d}.png"
                items.append(Item(path, int(defect != "good"), name, split, defect, image=image, mask=mask))
    return sort_items(items)


def write_demo(folder: Path | str, **options: object) -> list[Item]:
    """Write `demo_items(**options)` as PNG files in the MVTec layout and return the items that point at them."""
    from dataclasses import replace

    folder, written = Path(folder), []
    for item in demo_items(**options):  # type: ignore[arg-type]
        path = folder / item.path.relative_to("demo")
        mask_path = None
        if item.label:
            mask_path = folder / item.class_name / "ground_truth" / item.defect / f"{path.stem}_mask.png"
        for target, pixels in ((path, item.image), (mask_path, item.mask)):
            if target is not None and pixels is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                encoded = pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels
                Image.fromarray(encoded).save(target, compress_level=1)
        written.append(replace(item, path=path, mask_path=mask_path, image=None, mask=None))
    return written


def render(
    category: str, defect: str, count: int, *, split: str = "test", size: int = 256, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """`count` images [n, S, S, 3] uint8 of one category with one defect (or `good`), and their masks [n, S, S] bool."""
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    masks = np.zeros((count, size, size), dtype=bool)
    for start in range(0, count, BATCH):
        stop = min(start + BATCH, count)
        key = zlib.crc32(f"{category}/{split}/{defect}".encode())
        colour, touched = _draw(
            [(seed, key, index) for index in range(start, stop)], CATEGORIES[category], defect, size
        )
        images[start:stop] = colour.permute(0, 2, 3, 1).numpy()
        masks[start:stop] = touched.numpy()
    return images, masks


def _draw(seeds: list[tuple[int, int, int]], category: Category, defect: str, size: int) -> tuple[Tensor, Tensor]:
    """uint8 [n, 3, S, S] and bool [n, S, S]."""
    draws = Draws(seeds)
    scene = posed_scene(draws, size, angle=category.angle, shift=category.shift, zoom=category.zoom)
    camera_scene = scene
    touched = torch.zeros_like(scene.u, dtype=torch.bool)
    strength = draws.uniform(*STRENGTH)
    kind = None if defect == "good" else category.defects[defect]
    if kind is not None and kind.bend is not None:
        scene, touched = kind.bend(draws, scene, strength)
    surface = category.surface(draws, scene)
    colour = surface.colour
    if kind is not None and kind.paint is not None:
        colour, touched = kind.paint(draws, scene, surface, strength)
    return photograph(draws, camera_scene, colour), touched


def photograph(draws: Draws, scene: Scene, colour: Tensor) -> Tensor:
    """Dust, uneven light, exposure, colour balance, lens blur and sensor noise, then 8 bits: nuisance for all."""
    n, size = colour.shape[0], colour.shape[-1]
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle, slope = draws.uniform(0, 2 * torch.pi), draws.uniform(0.0, 0.08)
    light = 1 + slope * (angle.cos() * x + angle.sin() * y) + 0.012 * noise_field(draws, scene, 4, 4)
    light = light * (1 - draws.uniform(0, 0.08) * (x * x + y * y)) * draws.uniform(0.90, 1.10)
    balance = 1 + 0.008 * draws.normal(3)
    specks = draws.normal(size // 2, size // 2)  # a few dark and bright grains, smaller than any defect
    dust = smooth_step((specks - 3.3) * 3) - smooth_step((-specks - 3.3) * 3)
    dust = F.interpolate(dust[:, None], size=(size, size), mode="bicubic", align_corners=False)[:, 0].clamp(-1, 1)
    colour = colour * (1 - 0.75 * dust)[:, None]
    colour = colour * light[:, None] * balance[:, :, None, None]
    spread = draws.uniform(0.05, 0.16)[:, :, :, None]  # weight of the four neighbours: slightly varying focus
    padded = F.pad(colour, (1, 1, 1, 1), mode="replicate")
    for dim in (2, 3):
        left, right = padded.narrow(dim, 0, size), padded.narrow(dim, 2, size)
        padded = padded.narrow(dim, 1, size) * (1 - 2 * spread) + spread * (left + right)
    padded = padded.clamp(0, 1)
    noise = draws.normal(3, size, size) * (0.004 + draws.uniform(0.003, 0.010)[:, :, :, None] * padded.sqrt())
    assert padded.shape == (n, 3, size, size)
    return (padded + noise).clamp(0, 1).mul(255).round().to(torch.uint8)
