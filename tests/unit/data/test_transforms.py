import numpy as np
import pytest
import torch

from anomaly_lib.data.transforms import ImageTransform, clip_transform, stretch_transform
from anomaly_lib.errors import UserError

UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.mark.parametrize("resize", ["shorter", "stretch", "pad"])
@pytest.mark.parametrize("shape", [(256, 256), (384, 192), (160, 400)])
def test_mask_follows_image_geometry(resize: str, shape: tuple[int, int]) -> None:
    """A white rectangle on black: where the tensor is bright, the mask is set."""
    mask = np.zeros(shape, dtype=bool)
    mask[shape[0] // 3 : shape[0] // 3 * 2, shape[1] // 4 : shape[1] // 4 * 3] = True
    image = np.repeat(mask[:, :, None], 3, axis=2).astype(np.uint8) * 255
    crop = None if resize == "pad" else 128
    transform = ImageTransform(size=128, resize=resize, crop=crop, interpolation="bilinear", **UNIT)
    bright = transform(image)[0] > 0.5
    seen = transform.mask(mask)
    assert seen.shape == bright.shape == (128, 128)
    assert seen.any()
    # Antialiasing may move an edge by one pixel.
    assert (seen ^ bright).float().mean() < 0.05
    assert seen[bright].float().mean() > 0.9


def test_mask_size_keeps_detail_beyond_the_network_input() -> None:
    mask = np.zeros((256, 256), dtype=bool)
    mask[100, 57] = True
    assert stretch_transform(8, mean=UNIT["mean"], std=UNIT["std"]).mask(mask, 256).sum() == 1
    assert clip_transform(240).mask(mask, 256).nonzero().tolist() == [[100, 57]]


def test_float_images_keep_their_scale() -> None:
    image = np.full((10, 20, 3), 1.7, dtype=np.float32)
    tensor = ImageTransform(size=8, resize="stretch", **UNIT)(image)
    torch.testing.assert_close(tensor, torch.full((3, 8, 8), 1.7))


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_denormalise_inverts(channels: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    transform = ImageTransform(size=12, channels=channels)
    assert np.array_equal(transform.denormalise(transform(image)), image)


def test_describe_tells_transforms_apart() -> None:
    texts = {
        clip_transform(240).describe(),
        clip_transform(224).describe(),
        ImageTransform(size=240, crop=240, channels="bgr").describe(),
    }
    assert len(texts) == 3
    assert clip_transform(240).describe() == clip_transform(240).describe()


@pytest.mark.parametrize(
    "wrong",
    [{"resize": "shrink"}, {"interpolation": "cubic"}, {"channels": "grb"}, {"size": (3, 4)}, {"crop": 0, "size": 0}],
)
def test_wrong_settings_are_named(wrong: dict) -> None:
    with pytest.raises(UserError):
        ImageTransform(**{"size": 32, **wrong})


def test_wrong_array_is_refused() -> None:
    with pytest.raises(UserError, match="float64"):
        clip_transform(32)(np.zeros((4, 4, 3)))
