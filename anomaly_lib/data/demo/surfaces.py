"""The defect-free demo surfaces: two textures, a wire mesh and two objects, as functions of canonical coordinates."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from anomaly_lib.data.demo.draw import Draws, Scene, blend, edge, noise_field, sample, smooth_step
from anomaly_lib.data.demo.pen import Pen, as_field

# Boxes (u, v, half width, half height) of the parts of the circuit board.
CHIPS = ((-0.38, -0.30, 0.20, 0.20), (0.42, 0.34, 0.17, 0.13))
RESISTORS = tuple((0.20 + 0.22 * (i % 3), -0.52 + 0.18 * (i // 3), 0.080, 0.048) for i in range(6))
CAPACITORS = ((-0.56, 0.40, 0.10, 0.10), (-0.30, 0.52, 0.08, 0.08))
THREAD_PITCH = 2 / 26
CAPSULE_LENGTH, CAPSULE_RADIUS = 0.48, 0.30
PRINT_BOX = (-0.28, 0.02, 0.20, 0.10)


@dataclass
class Surface:
    """Colour of every pixel, what lies beneath it, where the object is, and boxes that can be taken away."""

    colour: Tensor  # [n, 3, S, S] reflectance in [0, 1]
    beneath: Tensor  # [n, 3, S, S]
    inside: Callable[[Tensor, Tensor], Tensor]  # signed distance of canonical points to the object, negative inside
    boxes: tuple[tuple[float, float, float, float], ...] = ()


def everywhere(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.95


def woven(draws: Draws, scene: Scene) -> Surface:
    """A twill of dark warp over light weft, with uneven threads and fibres."""
    pitch = THREAD_PITCH
    u = scene.u + 0.10 * pitch * noise_field(draws, scene, 9, 9, 2)
    v = scene.v + 0.10 * pitch * noise_field(draws, scene, 9, 9, 2)
    column, row = torch.floor(u / pitch), torch.floor(v / pitch)
    across_warp, across_weft = u / pitch - column - 0.5, v / pitch - row - 0.5  # -0.5 .. 0.5 over a thread
    tint_warp, tint_weft = 0.05 * draws.normal(64), 0.04 * draws.normal(64)
    fibre = torch.sin((across_warp * 2.2 + v / pitch * 0.8) * 6.2832 + noise_field(draws, scene, 40, 40))
    fibre_weft = torch.sin((across_weft * 2.2 + u / pitch * 0.8) * 6.2832 + noise_field(draws, scene, 40, 40))
    # Threads dive where they pass under their neighbour: darker towards the ends of a float.
    phase = torch.remainder(column + row, 4)
    warp_up = phase < 2
    dive = torch.where(phase == 0, 0.5 - across_weft, torch.where(phase == 1, 0.5 + across_weft, torch.zeros_like(u)))
    warp = (1 - 1.5 * across_warp**2) * (1 - 0.25 * dive**2) * (1 + 0.05 * fibre)
    weft = (1 - 1.5 * across_weft**2) * (1 + 0.05 * fibre_weft)
    warp = warp + _pick(tint_warp, column)
    weft = weft + _pick(tint_weft, row)
    base_warp, base_weft = torch.tensor([0.24, 0.31, 0.47]), torch.tensor([0.62, 0.63, 0.62])
    colour = torch.where(
        warp_up[:, None], warp[:, None] * base_warp[:, None, None], weft[:, None] * base_weft[:, None, None]
    )
    beneath = torch.tensor([0.18, 0.17, 0.16])[:, None, None] * (1 + 0.1 * noise_field(draws, scene, 30, 30))[:, None]
    return Surface(colour, beneath, everywhere)


def _pick(table: Tensor, index: Tensor) -> Tensor:
    """table [n, K] at integer positions index [n, S, S]."""
    rows = torch.remainder(index, table.shape[1]).long()
    return torch.gather(table, 1, rows.flatten(1)).view_as(index)


def brushed_metal(draws: Draws, scene: Scene) -> Surface:
    """Fine streaks along u of several lengths under a soft highlight band."""
    streaks = (
        0.030 * noise_field(draws, scene, 700, 14)
        + 0.024 * noise_field(draws, scene, 380, 5)
        + 0.018 * noise_field(draws, scene, 90, 3)
        + 0.012 * noise_field(draws, scene, 500, 70)
    )
    band = torch.exp(-(((scene.v - draws.uniform(-0.5, 0.5) + draws.uniform(-0.25, 0.25) * scene.u) / 0.45) ** 2))
    grey = 0.52 + streaks + draws.uniform(0.06, 0.22) * band
    colour = grey[:, None] * torch.tensor([1.0, 1.01, 1.04])[:, None, None]
    return Surface(colour, 0.45 * colour, everywhere)


def grid(draws: Draws, scene: Scene) -> Surface:
    """A diagonal mesh of round wires that pass over and under each other, above a dark felt."""
    pitch, radius = 2 / 6.5, 0.055
    wobble = 0.008 * noise_field(draws, scene, 6, 6)
    felt = (0.150 + 0.016 * noise_field(draws, scene, 100, 100) + 0.014 * noise_field(draws, scene, 8, 8))[:, None]
    felt = felt * torch.tensor([0.95, 0.98, 1.08])[:, None, None]
    sheen = 1 + 0.05 * noise_field(draws, scene, 60, 60)
    wires, shadow = [], torch.zeros_like(scene.u)
    for sign in (1.0, -1.0):
        across = (scene.u + sign * scene.v) / 2**0.5 + wobble
        along = (scene.u - sign * scene.v) / 2**0.5
        offset = torch.remainder(across / pitch, 1) * pitch - pitch / 2
        cast_offset = torch.remainder((across - 0.05) / pitch, 1) * pitch - pitch / 2
        shadow = torch.maximum(shadow, smooth_step(1.6 - cast_offset.abs() / radius))
        lit = (1 - (offset / radius) ** 2).clamp_min(0).sqrt() * (0.62 - 0.26 * sign * offset / radius) + 0.10
        height = torch.sin(along / pitch * torch.pi) * torch.where(torch.floor(across / pitch) % 2 == 0, 1.0, -1.0)
        wires.append((edge(offset.abs() - radius, scene.pixel), lit * (1 + 0.12 * height) * sheen, height * sign))
    colour = felt = felt * (1 - 0.45 * shadow)[:, None]
    steel = torch.tensor([1.0, 0.98, 0.93])[None, :, None, None]
    (cover_a, lit_a, height_a), (cover_b, lit_b, height_b) = wires
    a_on_top = (height_a > height_b)[:, None]
    over_a = blend(blend(felt, lit_b[:, None] * steel, cover_b), lit_a[:, None] * steel, cover_a)
    over_b = blend(blend(felt, lit_a[:, None] * steel, cover_a), lit_b[:, None] * steel, cover_b)
    colour = torch.where(a_on_top, over_a, over_b)
    return Surface(colour, felt, everywhere)


def capsule_distance(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot((u.abs() - CAPSULE_LENGTH).clamp_min(0), v) - CAPSULE_RADIUS


def capsule(draws: Draws, scene: Scene) -> Surface:
    """A glossy two-tone capsule with a printed number on a light, slightly structured table."""
    u, v, n = scene.u, scene.v, len(draws)
    table = 0.80 + 0.012 * noise_field(draws, scene, 120, 120) + 0.02 * noise_field(draws, scene, 5, 5)
    colour = table[:, None] * torch.tensor([1.0, 0.99, 0.96])[:, None, None]
    shadow = smooth_step(-capsule_distance(u - 0.035, v - 0.06) / 0.09 + 0.5)
    colour = colour * (1 - 0.45 * shadow)[:, None]
    depth = (-capsule_distance(u, v) / CAPSULE_RADIUS).clamp(0, 1)
    round_shade = 0.50 + 0.50 * (1 - (1 - depth) ** 2).sqrt()
    tilt = 0.14 * v / CAPSULE_RADIUS
    seam = 0.10 + draws.uniform(-0.01, 0.01)
    hue = 1 + 0.03 * draws.normal(3)
    cap, body = torch.tensor([0.20, 0.17, 0.16]) * hue, torch.tensor([0.80, 0.46, 0.17]) * hue
    which = smooth_step(0.5 - (u - seam) / (2 * scene.pixel))
    plain = blend(cap[:, :, None, None].expand(n, 3, *u.shape[1:]), body, which)
    plain = plain * (round_shade - tilt)[:, None] * (1 + 0.02 * noise_field(draws, scene, 40, 40))[:, None]
    plain = plain * (1 - 0.35 * torch.exp(-(((u - seam) / 0.010) ** 2)))[:, None]
    ink = sample(_capsule_print().expand(n, -1, -1, -1), u, v)[:, 0]
    printed = blend(plain, torch.tensor([0.16, 0.10, 0.08]).expand(n, 3), 0.85 * ink)
    gloss = torch.exp(-(((v + 0.45 * CAPSULE_RADIUS) / 0.035) ** 2)) * smooth_step((0.62 - u.abs()) / 0.12)
    gloss = (0.42 + draws.uniform(-0.08, 0.08)) * gloss * (1 + 0.15 * noise_field(draws, scene, 8, 8))
    cover = edge(capsule_distance(u, v), scene.pixel)
    return Surface(
        blend(colour, printed + gloss[:, None], cover),
        blend(colour, plain + gloss[:, None], cover),
        lambda a, b: capsule_distance(a, b) + 0.06,
        (PRINT_BOX,),
    )


@lru_cache(maxsize=1)
def _capsule_print() -> Tensor:
    """The imprint "500" in seven-segment strokes: [1, 1, H, W] coverage over [-1.5, 1.5]."""
    size = 1536
    image = Image.new("L", (size, size))
    pen = ImageDraw.Draw(image)
    strokes = {"5": "abgdc", "0": "abcdef"}
    for digit, centre in zip("500", (-0.40, -0.28, -0.16), strict=True):
        left, right, top, bottom = centre - 0.040, centre + 0.040, PRINT_BOX[1] - 0.075, PRINT_BOX[1] + 0.075
        middle = PRINT_BOX[1]
        lines = {
            "a": (left, top, right, top), "g": (left, middle, right, middle), "d": (left, bottom, right, bottom),
            "b": (left, top, left, middle) if digit == "5" else (right, top, right, middle),
            "c": (right, middle, right, bottom), "e": (left, middle, left, bottom), "f": (left, top, left, middle),
        }  # fmt: skip
        for name in strokes[digit]:
            pen.line([(x / 3 + 0.5) * size for x in lines[name]], fill=255, width=11)
    return F.avg_pool2d(torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None, None], 2)


def circuit_board(draws: Draws, scene: Scene) -> Surface:
    """A populated green board on a dark mat; every board has the same layout, parts vary in shade and seat."""
    n, u, v = len(draws), scene.u, scene.v
    full, bare = _board_atlases()
    seat = 0.004 * torch.stack([noise_field(draws, scene, 5, 5), noise_field(draws, scene, 5, 5)])
    grain = 1 + 0.035 * noise_field(draws, scene, 150, 150) + 0.03 * noise_field(draws, scene, 6, 6)
    mat = (0.21 + 0.02 * noise_field(draws, scene, 130, 130))[:, None].expand(n, 3, *u.shape[1:])
    mat = mat * (1 - 0.5 * smooth_step(-board_distance(u - 0.03, v - 0.04) / 0.08 + 0.5))[:, None]
    cover = edge(board_distance(u, v), scene.pixel)
    hue = (1 + 0.03 * draws.normal(3))[:, :, None, None]
    layers = []
    for atlas in (full, bare):
        board = sample(atlas.expand(n, -1, -1, -1), u + seat[0], v + seat[1]) * grain[:, None] * hue
        layers.append(blend(mat, board, cover))
    return Surface(layers[0], layers[1], lambda a, b: board_distance(a, b) + 0.08, (*CHIPS, *RESISTORS, *CAPACITORS))


def board_distance(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs() - 0.82, v.abs() - 0.78)


@lru_cache(maxsize=1)
def _board_atlases() -> tuple[Tensor, Tensor]:
    """The board with and without its parts, [1, 3, H, W] over [-1.5, 1.5]."""
    pen = Pen(2048, (26, 84, 52))
    _draw_bare_board(pen)
    bare = as_field(pen.image)
    _draw_parts(pen)
    return as_field(pen.image), bare


def _draw_bare_board(pen: Pen) -> None:
    track, gold, white, hole = (44, 118, 72), (196, 164, 84), (206, 210, 200), (20, 22, 22)
    for i in range(9):  # bundles of tracks with a 45 degree bend, as autorouters leave them
        low = -0.62 + 0.045 * i
        pen.track(-0.80, low, -0.10 - 0.02 * i, low, 0.10, low + 0.20, 0.10, 0.70 - 0.03 * i, width=9, fill=track)
        pen.track(0.80, 0.02 + 0.05 * i, 0.62 - 0.03 * i, 0.02 + 0.05 * i, 0.20, 0.62, width=7, fill=track)
    for i in range(15):  # connector row and vias
        if i < 14:
            pen.disc(-0.75 + 0.115 * i, 0.70, 0.030, gold)
            pen.disc(-0.75 + 0.115 * i, 0.70, 0.014, hole)
        pen.disc(-0.10 + 0.06 * (i % 5), 0.05 + 0.11 * (i // 5), 0.017, gold)
        pen.disc(-0.10 + 0.06 * (i % 5), 0.05 + 0.11 * (i // 5), 0.008, hole)
    for u, v in ((-0.74, -0.70), (0.74, -0.70), (0.74, 0.55)):
        pen.disc(u, v, 0.055, gold)
        pen.disc(u, v, 0.033, (48, 48, 50))
    for u, v, half_u, half_v in (*CHIPS, *RESISTORS, *CAPACITORS):  # silk-screen frames and solder pads
        pen.frame(u, v, half_u + 0.012, half_v + 0.012, white)
        for side in (-1, 1):
            pen.box(u + side * half_u * 0.8, v, half_u * 0.2, half_v * 0.85, gold)


def _draw_parts(pen: Pen) -> None:
    for u, v, half_u, half_v in CHIPS:
        for i in range(7):
            pen.box(u, v - half_v + (i + 0.5) * half_v * 2 / 7, half_u, half_v * 0.07, (186, 188, 190))
        pen.box(u, v, half_u * 0.80, half_v, (34, 34, 37))
        pen.box(u, v - half_v * 0.93, half_u * 0.80, half_v * 0.06, (66, 66, 70))
        pen.disc(u - half_u * 0.60, v - half_v * 0.72, 0.018, (84, 84, 86))
        for i, width in enumerate((0.55, 0.40)):
            pen.box(u, v + (i - 0.3) * 0.07, half_u * width, 0.013, (120, 120, 118))
    for index, (u, v, half_u, half_v) in enumerate(RESISTORS):
        pen.box(u, v, half_u, half_v * 0.8, (188, 190, 192))
        pen.box(u, v, half_u * 0.68, half_v * 0.8, (30, 30, 34) if index % 2 else (150, 112, 74))
    for u, v, radius, _ in CAPACITORS:
        pen.disc(u, v, radius, (62, 64, 74))
        pen.disc(u, v, radius * 0.86, (188, 192, 198))
        pen.wedge(u, v, radius * 0.86, (52, 54, 64))
        pen.disc(u - radius * 0.25, v - radius * 0.25, radius * 0.22, (222, 224, 228))
