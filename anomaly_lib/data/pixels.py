"""An `ImageTransform` as part of a network: uint8 pixels of any size in, what the transform gives of them out."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from anomaly_lib.data.transforms import ImageTransform, as_pair
from anomaly_lib.errors import UserError

FIXED_POINT = 2**22  # PIL multiplies uint8 pixels by weights of 22 binary places and rounds after each axis
BILINEAR = Image.Resampling.BILINEAR
REACH = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}  # of PIL's filters, in pixels of the smaller picture


class PixelTransform(nn.Module):
    """uint8 RGB [B, H, W, 3] of any height and width -> float32 [B, 3, h, w]: bit for bit what `transform` answers.

    Resizing is one matrix product an axis. The matrices follow from the sizes inside the graph, crop and padding are
    rows of them, so that the output's shape is fixed. Float64 holds PIL's integer sums exactly.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, transform: ImageTransform) -> None:
        super().__init__()
        if transform.resize == "shorter" and transform.crop is None:
            raise UserError(
                "an image keeps its aspect and is not cropped, so its size is not fixed: not to be exported"
            )
        if transform.interpolation not in REACH:
            raise UserError(f"interpolation={transform.interpolation}: cannot be exported; {', '.join(REACH)} can")
        self.transform = transform
        padded = [as_pair(transform.size)] if transform.resize == "pad" else []
        cropped = [as_pair(transform.crop)] if transform.crop is not None else []
        self.windows = [*padded, *cropped] or [as_pair(transform.size)]  # about the centre, each of the one before
        self.rows_may_lead = _rows_may_lead()
        self.register_buffer("mean", torch.tensor(transform.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(transform.std).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        planes = image.permute(0, 3, 1, 2)  # [B, 3, H, W]
        if self.transform.channels == "bgr":
            planes = planes.flip(1)
        source = [torch.full((), side, dtype=torch.float64, device=image.device) for side in planes.shape[2:]]
        if self.transform.first_resize is not None:
            size = as_pair(self.transform.first_resize)
            first = [torch.full((), side, dtype=torch.float64, device=image.device) for side in size]
            planes = self._resize(planes, source, first, [size], "bilinear")
            source = first
        planes = self._resize(planes, source, self._resized(source), self.windows, self.transform.interpolation)
        return (planes.float() / 255 - self.mean) / self.std

    def _resized(self, source: list[Tensor]) -> list[Tensor]:
        """`ImageTransform._resized` in tensors: height and width before padding and crop, whole numbers, float64 []."""
        target = [torch.full_like(source[0], side) for side in as_pair(self.transform.size)]
        if self.transform.resize == "stretch":
            return target
        if self.transform.resize == "pad":
            scale = torch.minimum(target[0] / source[0], target[1] / source[1])
            pairs = zip(source, target, strict=True)
            return [torch.minimum((side * scale).round(), most).clamp(min=1) for side, most in pairs]
        short = torch.minimum(source[0], source[1])
        return [(target[0] * side / short).floor() for side in source]

    def _resize(
        self, planes: Tensor, source: list[Tensor], resized: list[Tensor], windows: Sequence[tuple[int, int]], how: str
    ) -> Tensor:
        """[B, 3, H, W] whole numbers -> [B, 3, h, w] of the last window; each axis is rounded and cut to 0..255."""
        rows, columns = (
            axis_weights(planes.shape[2 + axis], source[axis], resized[axis], [w[axis] for w in windows], how)
            for axis in (0, 1)
        )
        columns = columns.mT.contiguous()
        if not self.rows_may_lead:
            return _columns_first(planes, rows, columns)
        less = source[0] - resized[0]
        lead = (less > 0) & (less > 2 * (source[1] - resized[1]))  # of PIL: then the rows come first
        if torch.compiler.is_compiling():  # the graph holds both ways and takes one
            both: Tensor = torch.cond(lead, _rows_first, _columns_first, (planes, rows, columns))
            return both
        return (_rows_first if lead else _columns_first)(planes, rows, columns)


def _rows_first(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _rounded(_rounded(rows @ planes.double()) @ columns)


def _columns_first(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _rounded(rows @ _rounded(planes.double() @ columns))


def _rounded(sums: Tensor) -> Tensor:
    return ((sums + FIXED_POINT // 2) / FIXED_POINT).floor().clamp(0, 255)


@cache
def _rows_may_lead() -> bool:
    """Does this PIL resize the height first where that saves work? Which is rounded first changes some values."""
    pixels = Image.fromarray((np.arange(97 * 8 * 3) * 7919 % 256).astype(np.uint8).reshape(97, 8, 3))
    whole, first = pixels.resize((6, 32), BILINEAR), pixels.resize((8, 32), BILINEAR).resize((6, 32), BILINEAR)
    return whole.tobytes() == first.tobytes()


def axis_weights(count: int, source: Tensor, resized: Tensor, windows: Sequence[int], how: str) -> Tensor:
    """Whole-number weights of PIL's resize of one axis from `source` to `resized` pixels; rows are those to be shown.

    Shown is the last of `windows`, each cut about the centre of the one before (`transforms._centre`); what lies beyond
    the picture has no weights, which makes it black. `count` is `source` as a number. [shown, count]
    """
    first, width = torch.zeros_like(resized), resized
    for window in windows:
        beyond = width - window
        first = first + torch.where(beyond < 0, -((-beyond) / 2).floor(), (beyond / 2).round())
        width = torch.full_like(resized, window)
    place = first + torch.arange(windows[-1], dtype=torch.float64, device=source.device)  # [shown]
    scale = source / resized
    wide = scale.clamp(min=1)
    centre, reach = (place + 0.5) * scale, REACH[how] * wide
    low, high = (centre - reach + 0.5).floor(), (centre + reach + 0.5).floor()  # pixels low .. high - 1 count
    pixel = torch.arange(count, dtype=torch.float64, device=source.device)
    weights = _filter((pixel - centre[:, None] + 0.5) / wide, how)
    weights = torch.where((pixel >= low[:, None]) & (pixel < high[:, None]), weights, 0.0)
    total = weights.sum(1, keepdim=True)
    weights = weights / torch.where(total == 0, 1.0, total)
    inside = (place >= 0) & (place < resized)
    whole = (weights.abs() * FIXED_POINT + 0.5).floor() * weights.sign()
    return torch.where(inside[:, None], whole, 0.0)


def _filter(x: Tensor, how: str) -> Tensor:
    """PIL's resampling filters."""
    x = x.abs()
    if how == "bilinear":
        return (1 - x).clamp(min=0)
    if how == "bicubic":
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    turn = x * torch.pi
    lanczos = torch.where(x == 0, 1.0, 3 * turn.sin() * (turn / 3).sin() / torch.where(x == 0, 1.0, turn * turn))
    return torch.where(x < 3, lanczos, 0.0)
