"""Defects of the demo surfaces. Each paints into the reflectance and returns exactly the pixels it touched."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from anomaly_lib.data.demo.draw import Draws, Scene, blend, edge, noise_field, path_distance, sample, smooth_step
from anomaly_lib.data.demo.surfaces import Surface

Painted = tuple[Tensor, Tensor]  # colour [n, 3, S, S], touched [n, S, S] bool
Paint = Callable[[Draws, Scene, Surface, Tensor], Painted]
Bend = Callable[[Draws, Scene, Tensor], tuple[Scene, Tensor]]


@dataclass(frozen=True)
class Defect:
    """Painted over the finished surface, or (bend) a distortion of the coordinates it is drawn in."""

    paint: Paint | None = None
    bend: Bend | None = None


def place(draws: Draws, inside: Callable[[Tensor, Tensor], Tensor], margin: float) -> tuple[Tensor, Tensor]:
    """A point [n, 1, 1] of the object at least `margin` from its edge, by rejection among 64 candidates."""
    u, v = draws.uniform(-0.85, 0.85, 64), draws.uniform(-0.85, 0.85, 64)
    distance = inside(u, v)
    fits = distance < -margin
    first = torch.where(fits.any(1), fits.float().argmax(1), distance.argmin(1))[:, None]
    return u.gather(1, first)[:, :, None], v.gather(1, first)[:, :, None]


def line(
    *,
    colours: list[list[float]],
    width: tuple[float, float],
    length: tuple[float, float],
    bow: float = 0.2,
    jagged: float = 0.0,
    lift: float = 0.0,
) -> Paint:
    """A scratch, crack, cut or fibre: a bowed path of 14 points; `lift` gives it a shadow, as if it lay on top."""

    def paint(draws: Draws, scene: Scene, surface: Surface, strength: Tensor) -> Painted:
        reach = draws.uniform(*length)
        cu, cv = place(draws, surface.inside, 0.04)
        angle = draws.uniform(0, torch.pi)
        t = torch.linspace(-0.5, 0.5, 14)
        along = reach[:, 0] * t  # [n, 14]
        across = reach[:, 0] * draws.uniform(-bow, bow)[:, 0] * (1 - 4 * t**2) + jagged * reach[:, 0] * draws.normal(14)
        c, s = angle[:, 0].cos(), angle[:, 0].sin()
        points = torch.stack([cu[:, 0] + c * along - s * across, cv[:, 0] + s * along + c * across], dim=-1)
        half = draws.uniform(*width) * (0.5 + 0.5 * strength)
        distance = path_distance(scene, points)
        ends = 1 + 0.35 * noise_field(draws, scene, 24, 24)  # uneven pressure along the line
        cover = edge(distance - half * ends.clamp(0.4, 1.6), scene.pixel) * smooth_step(
            -surface.inside(scene.u, scene.v) / 0.02 + 1
        )
        colour = surface.colour
        if lift:
            below = Scene(scene.u - lift, scene.v - lift, scene.pixel)
            shade = smooth_step(1.2 - path_distance(below, points) / (2.2 * half))
            colour = colour * (1 - 0.35 * strength * shade)[:, None]
        ink = draws.choice(colours)
        return blend(colour, ink, cover * (0.30 + 0.65 * strength)), cover > 0.3

    return paint


def blob(
    *,
    colours: list[list[float]],
    radius: tuple[float, float],
    rough: float = 0.5,
    soft: float = 0.25,
    opacity: float = 0.9,
    multiply: bool = False,
) -> Paint:
    """A stain, hole, drop or burn: an ellipse with a noisy outline; `multiply` tints like a liquid."""

    def paint(draws: Draws, scene: Scene, surface: Surface, strength: Tensor) -> Painted:
        size = draws.uniform(*radius)
        cu, cv = place(draws, surface.inside, 0.05)
        stretch, angle = draws.uniform(0.65, 1.0), draws.uniform(0, torch.pi)
        du, dv = scene.u - cu, scene.v - cv
        a = (angle.cos() * du + angle.sin() * dv) / size
        b = (angle.cos() * dv - angle.sin() * du) / (size * stretch)
        outline = 1 - torch.hypot(a, b) + rough * 0.35 * noise_field(draws, scene, 22, 22, 2)
        near = torch.hypot(a, b) < 2
        cover = smooth_step(outline / soft + 0.5) * near * smooth_step(-surface.inside(scene.u, scene.v) / 0.02 + 1)
        ink = draws.choice(colours)[:, :, None, None] * (1 + 0.10 * noise_field(draws, scene, 60, 60))[:, None]
        target = surface.colour * ink if multiply else ink
        return blend(surface.colour, target, cover * opacity * (0.30 + 0.70 * strength)), cover > 0.35

    return paint


def dent(*, radius: tuple[float, float], depth: float) -> Paint:
    """A pressed-in spot: one flank brighter, the opposite one darker, as light from the upper left makes it."""

    def paint(draws: Draws, scene: Scene, surface: Surface, strength: Tensor) -> Painted:
        size = draws.uniform(*radius)
        cu, cv = place(draws, surface.inside, 0.08)
        angle, stretch = draws.uniform(0, torch.pi), draws.uniform(0.5, 1.0)
        du, dv = (scene.u - cu) / size, (scene.v - cv) / size
        a, b = angle.cos() * du + angle.sin() * dv, (angle.cos() * dv - angle.sin() * du) / stretch
        bowl = torch.exp(-(a * a + b * b) * 1.6)
        flank = (du + 1.3 * dv) * bowl
        cover = bowl > 0.22
        factor = 1 + depth * (0.35 + 0.65 * strength) * flank * draws.sign()
        inside = smooth_step(-surface.inside(scene.u, scene.v) / 0.02 + 1)
        return blend(surface.colour, surface.colour * factor[:, None], inside), cover & (inside > 0.5)

    return paint


def take_away(
    *,
    half_length: tuple[float, float] = (0.1, 0.1),
    half_width: float = 0.1,
    pitch: float = 0.0,
    diagonal: bool = False,
) -> Paint:
    """A part, thread or wire piece is missing: what lies beneath shows in a part's own box, or in a strip that follows
    the structure (`pitch`: distance of the threads it is centred on; `diagonal`: wires run at 45 degrees)."""

    def paint(draws: Draws, scene: Scene, surface: Surface, strength: Tensor) -> Painted:
        if surface.boxes:
            picked = draws.choice(surface.boxes)[:, :, None, None]
            cu, cv, half_u, half_v = picked.unbind(1)
            half_u, half_v = half_u + 0.006, half_v + 0.006
        else:
            cu, cv = place(draws, surface.inside, 0.1)
            if pitch:
                cu, cv = ((torch.floor(c / pitch) + 0.5) * pitch for c in (cu, cv))
            half_u = draws.uniform(*half_length) * (0.4 + 0.6 * strength)
            half_v = torch.full_like(half_u, half_width)
        du, dv = scene.u - cu, scene.v - cv
        if diagonal:
            turn = torch.pi / 4 * draws.sign()
            du, dv = turn.cos() * du + turn.sin() * dv, turn.cos() * dv - turn.sin() * du
        elif not surface.boxes:
            upright = draws.sign() > 0
            du, dv = torch.where(upright, du, dv), torch.where(upright, dv, du)
        cover = edge(torch.maximum(du.abs() - half_u, dv.abs() - half_v), scene.pixel)
        painted = blend(surface.colour, surface.beneath, cover)
        changed = ((painted - surface.colour).abs().amax(1) > 0.02).float()
        near_change = (
            F.max_pool2d(changed, 7, stride=1, padding=3) > 0
        )  # pixels that happen to agree belong to the part
        return painted, (cover > 0.5) & near_change

    return paint


def shift_part(draws: Draws, scene: Scene, surface: Surface, strength: Tensor) -> Painted:
    """A part sits turned and off its place, its pads laid bare."""
    cu, cv, half_u, half_v = draws.choice(surface.boxes)[:, :, None, None].unbind(1)
    angle = draws.sign() * draws.uniform(0.12, 0.45) * (0.4 + 0.6 * strength)
    off_u, off_v = (draws.uniform(-0.5, 0.5) * half * strength for half in (half_u, half_v))
    du, dv = scene.u - cu - off_u, scene.v - cv - off_v
    ru, rv = angle.cos() * du + angle.sin() * dv, angle.cos() * dv - angle.sin() * du
    moved = _look_up(surface.colour, scene, cu + ru, cv + rv)
    new = edge(torch.maximum(ru.abs() - half_u, rv.abs() - half_v), scene.pixel)
    old = edge(torch.maximum((scene.u - cu).abs() - half_u - 0.006, (scene.v - cv).abs() - half_v - 0.006), scene.pixel)
    painted = blend(blend(surface.colour, surface.beneath, old), moved, new)
    return painted, torch.maximum(old, new) > 0.5


def _look_up(colour: Tensor, scene: Scene, u: Tensor, v: Tensor) -> Tensor:
    """Colours at canonical points: undo the pose by least squares (it is affine, so three pixels determine it)."""
    n, size = u.shape[0], u.shape[1]
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    du_dx, du_dy = scene.u[:, 0, -1] - scene.u[:, 0, 0], scene.u[:, -1, 0] - scene.u[:, 0, 0]
    dv_dx, dv_dy = scene.v[:, 0, -1] - scene.v[:, 0, 0], scene.v[:, -1, 0] - scene.v[:, 0, 0]
    span = axis[-1] - axis[0]
    determinant = (du_dx * dv_dy - du_dy * dv_dx)[:, None, None]
    pu, pv = u - scene.u[:, :1, :1], v - scene.v[:, :1, :1]
    x = axis[0] + span * (dv_dy[:, None, None] * pu - du_dy[:, None, None] * pv) / determinant
    y = axis[0] + span * (du_dx[:, None, None] * pv - dv_dx[:, None, None] * pu) / determinant
    assert x.shape == (n, size, size)
    return sample(colour, 1.5 * x, 1.5 * y)


def warp(*, radius: tuple[float, float], push: float) -> Bend:
    """A local push of the coordinates: bent wires, distorted weave, a squeezed object."""

    def bend(draws: Draws, scene: Scene, strength: Tensor) -> tuple[Scene, Tensor]:
        size = draws.uniform(*radius)
        cu, cv = draws.uniform(-0.7, 0.7), draws.uniform(-0.7, 0.7)
        angle = draws.uniform(0, 2 * torch.pi)
        amount = push * (0.40 + 0.60 * strength) * draws.sign()
        fall = torch.exp(-((scene.u - cu) ** 2 + (scene.v - cv) ** 2) / (size * size))
        moved = Scene(scene.u + amount * angle.cos() * fall, scene.v + amount * angle.sin() * fall, scene.pixel)
        return moved, (amount.abs() * fall) > 1.25 * scene.pixel

    return bend


def squeeze(*, outline: Callable[[Tensor, Tensor], Tensor], half_length: float, push: float) -> Bend:
    """The object is pinched at one place of its length; only the object and its edge count as defective."""

    def bend(draws: Draws, scene: Scene, strength: Tensor) -> tuple[Scene, Tensor]:
        at, width = draws.uniform(-half_length, half_length), draws.uniform(0.10, 0.22)
        fall = torch.exp(-(((scene.u - at) / width) ** 2))
        amount = push * (0.35 + 0.65 * strength)
        moved = Scene(scene.u, scene.v * (1 + amount * fall), scene.pixel)
        was_inside = outline(scene.u, scene.v) < 0.01
        return moved, was_inside & ((moved.v - scene.v).abs() > 1.25 * scene.pixel)

    return bend
