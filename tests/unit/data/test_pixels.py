"""The preprocessing inside an exported graph gives the transform's values bit for bit."""

import numpy as np
import pytest
import torch

from anomaly_lib.data.pixels import PixelTransform
from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.errors import UserError

TRANSFORMS = {
    "bilinear": ImageTransform(size=(64, 48), resize="stretch", interpolation="bilinear"),
    "bicubic": ImageTransform(size=(64, 48), resize="stretch"),
    "lanczos": ImageTransform(size=(64, 48), resize="stretch", interpolation="lanczos"),
    "padded": ImageTransform(size=(64, 48), resize="pad", interpolation="bilinear"),
    "cut": ImageTransform(size=60, crop=(48, 50)),
    "cut beyond the edge": ImageTransform(size=40, crop=(48, 50)),
    "padded, cut": ImageTransform(size=(64, 64), resize="pad", crop=51, interpolation="lanczos"),
    "padded twice": ImageTransform(size=(64, 64), resize="pad", crop=83),
    "the original PromptAD reader": ImageTransform(size=(48, 48), resize="stretch", first_resize=101, channels="bgr"),
}
SHAPES = ((64, 48), (200, 333), (31, 17), (5, 400), (300, 299), (1, 1), (97, 64), (48, 64), (400, 30))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_equal_to_pillow_bit_for_bit(name: str) -> None:
    """Sizes up and down, both orders of the axes (Pillow resizes a tall picture's height first), extreme pixels."""
    transform, rng = TRANSFORMS[name], np.random.default_rng(0)
    module = PixelTransform(transform)
    for height, width in SHAPES:
        for levels in (256, 2):  # overshoot of the filters is cut at black and white
            pixels = (rng.integers(0, levels, (2, height, width, 3)) * (255 // (levels - 1))).astype(np.uint8)
            found = module(torch.from_numpy(pixels))
            wanted = torch.stack([transform(one) for one in pixels])
            assert torch.equal(found, wanted), (height, width, levels)


def test_what_has_no_fixed_size_is_refused() -> None:
    with pytest.raises(UserError, match="size is not fixed"):
        PixelTransform(ImageTransform(size=64))
    with pytest.raises(UserError, match="interpolation=nearest"):
        PixelTransform(ImageTransform(size=(64, 64), resize="stretch", interpolation="nearest"))
