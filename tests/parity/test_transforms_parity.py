"""Our transforms equal torchvision's and open_clip's on PIL images, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_lib.data.transforms import ImageTransform, clip_transform, imagenet_transform

pytestmark = pytest.mark.parity
SHAPES = [(256, 256), (300, 211), (97, 240), (240, 240), (100, 53)]


def noise(shape: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
def test_clip_equals_open_clip(shape: tuple[int, int]) -> None:
    open_clip_transform = pytest.importorskip("open_clip.transform")
    image = noise(shape)
    want = open_clip_transform.image_transform(240, is_train=False)(image)
    assert torch.equal(clip_transform(240)(image), want)
    assert torch.equal(clip_transform(240)(np.asarray(image)), want)


@pytest.mark.parametrize("shape", SHAPES)
def test_imagenet_equals_torchvision(shape: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    reference = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    assert torch.equal(imagenet_transform(224)(noise(shape)), reference(noise(shape)))


def test_crop_larger_than_image_pads_as_torchvision() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = noise((97, 60))
    ours = ImageTransform(size=31, crop=(40, 37), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))(image)
    bicubic = transforms.InterpolationMode.BICUBIC
    reference = transforms.Compose(
        [transforms.Resize(31, bicubic), transforms.CenterCrop((40, 37)), transforms.ToTensor()]
    )
    assert torch.equal(ours, reference(image))


def test_promptad_reader_chain() -> None:
    """OpenCV's BGR image through a bilinear 1024 resize, then PIL bicubic 240 and a crop, without a channel swap."""
    image = noise((200, 260))
    first = image.resize((1024, 1024), Image.Resampling.BILINEAR)
    swapped = Image.fromarray(np.asarray(first)[:, :, ::-1].copy())
    want = clip_transform(240)(swapped)
    assert torch.equal(ImageTransform(size=240, crop=240, first_resize=1024, channels="bgr")(image), want)
