"""Products staged and photographed as the demo data are: its three seen surfaces with other seeds, and other things.

The other half of the training pictures (`pictures`) is drawn by code that shares nothing with the demo data; what is
learned there alone carries over to another way of drawing only in part. The held-out things are never drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anomaly_lib.data.demo.defects import Defect
from anomaly_lib.data.demo.draw import Draws, Scene, posed_scene
from anomaly_lib.data.demo.items import CATEGORIES, STRENGTH, photograph
from anomaly_lib.data.demo.surfaces import Surface
from scripts.demo_backbone.pictures.defects import DEFECT_NAMES
from scripts.demo_backbone.pictures.objects import OBJECTS
from scripts.demo_backbone.pictures.pictures import MATERIALS, PIECES, SURFACE, Drawing
from scripts.demo_backbone.pictures.staged_damage import WORDS, Damage, random_damage
from scripts.demo_backbone.pictures.textures import Generator
from scripts.demo_backbone.pictures.wares import Ware, design, surface

SEEN = {"woven": "woven cloth", "brushed_metal": "steel", "grid": "wire mesh"}  # categories and their material
SURFACE_SHARE = 0.3
SCALE = 2  # pictures are drawn at twice their size, as the demo data are looked at
VIEW = 1.25  # the canvas reaches this far beyond what the camera will keep
DESIGN = 77  # stream of a product's design; streams of its pieces count from 0
ATTEMPTS = 6
Draw = Callable[[Draws, Scene], Surface]


def draw_staged(key: tuple[int, ...], size: int) -> Drawing:
    """The pieces that follow from `key` alone; damage that hardly shows is drawn again."""
    rng, ware = np.random.default_rng((*key, DESIGN)), None
    if rng.random() < SURFACE_SHARE:
        name = list(SEEN)[int(rng.integers(len(SEEN)))]
        stage = _Stage(CATEGORIES[name].surface, size, CATEGORIES[name].angle, 0.0, CATEGORIES[name].zoom)
        material, kind, own = MATERIALS.index(SEEN[name]), SURFACE, CATEGORIES[name].defects
    else:
        ware = design(rng)
        stage = _Stage(partial(surface, ware), size, 4.0, 0.03, 0.03)
        material, kind, own = MATERIALS.index("painted plastic"), OBJECTS.index(ware.shape), {}
    normal, _ = stage.pieces([(*key, piece) for piece in range(PIECES - 1)])
    for attempt in range(ATTEMPTS):
        damage = _damage(rng, ware, own)
        damaged, mask = stage.pieces([(*key, PIECES - 1 + attempt)], damage.defect)
        if 0.001 * size * size < float(mask.sum()) < 0.2 * size * size:
            break
    pieces = torch.cat([normal, damaged]).numpy()
    word = DEFECT_NAMES.index(damage.word)
    return Drawing(pieces, mask[0].numpy(), damage.compared, material, kind, word, posed=True)


def _damage(rng: Generator, ware: Ware | None, own: dict[str, Defect]) -> Damage:
    """Every second damage of a demo surface is one of its own."""
    if ware is None and rng.random() < 0.5:
        name = list(own)[int(rng.integers(len(own)))]
        return Damage(own[name], WORDS[name])
    return random_damage(rng, ware)


class _Stage:
    """One product in front of the camera, put down with some care."""

    def __init__(self, draw: Draw, size: int, angle: float, shift: float, zoom: float) -> None:
        self.draw, self.size = draw, size
        self.pose = partial(posed_scene, size=SCALE * size, angle=angle, shift=shift, zoom=zoom)

    def pieces(self, seeds: list[tuple[int, ...]], defect: Defect | None = None) -> tuple[Tensor, Tensor]:
        """Photographs uint8 [n, S, S, 3] of pieces, and where the damage visibly changed them [n, S, S]."""
        draws = Draws(seeds)
        scene = self.pose(draws)
        scene = Scene(VIEW * scene.u, VIEW * scene.v, VIEW * scene.pixel)
        strength = draws.uniform(*STRENGTH)
        if defect is not None and defect.bend is not None:
            bent, _ = defect.bend(draws, scene, strength)
            states = [stream.bit_generator.state for stream in draws.streams]
            clean = self.draw(draws, scene).colour
            for stream, state in zip(draws.streams, states, strict=True):
                stream.bit_generator.state = state  # the same piece again
            colour = self.draw(draws, bent).colour
        else:
            finished = self.draw(draws, scene)
            clean = colour = finished.colour
            if defect is not None and defect.paint is not None:
                colour, _ = defect.paint(draws, scene, finished, strength)
        changed = F.avg_pool2d((colour - clean).abs().amax(1), 3, 1, 1) > 0.035  # [n, 2S, 2S]
        photo = photograph(draws, scene, colour).float()
        reduced = F.interpolate(photo, scale_factor=1 / SCALE, mode="bicubic", antialias=True)
        pixels = reduced.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return pixels, F.avg_pool2d(changed[:, None].float(), SCALE)[:, 0] >= 0.5
