"""Preprocessing, bit-identical to torchvision and open_clip on PIL images; masks follow the same geometry."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image

from anomaly_lib.data.names import RESIZE_MODES
from anomaly_lib.errors import UserError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MOST_PIXELS = 2**28  # of a picture whose shorter side is scaled up: 0.8 GB
Size = int | tuple[int, int]


def as_pair(size: Size) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Resize, crop and normalise one image to float32 [3, H, W].

    resize: `shorter` scales the shorter edge to `size` (torchvision's Resize(int)), `stretch` ignores the aspect,
    `pad` keeps it and pads with black. `crop` then cuts the centre. `first_resize` and `channels="bgr"` are quirks of
    PromptAD's reader (a bilinear 1024x1024 image first, and test images fed as BGR).
    """

    size: Size
    resize: str = "shorter"
    crop: Size | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    first_resize: Size | None = None
    channels: str = "rgb"

    def __post_init__(self) -> None:
        if self.resize not in RESIZE_MODES:
            raise UserError(f"resize must be one of {', '.join(RESIZE_MODES)}, got {self.resize!r}")
        if self.interpolation not in INTERPOLATION:
            raise UserError(f"interpolation must be one of {', '.join(INTERPOLATION)}, got {self.interpolation!r}")
        if self.channels not in ("rgb", "bgr"):
            raise UserError(f"channels must be rgb or bgr, got {self.channels!r}")
        if self.resize == "shorter" and not isinstance(self.size, int):
            raise UserError("resize 'shorter' needs one number as size; use 'stretch' for a height and a width")
        if min(as_pair(self.size) + as_pair(self.crop or 1)) < 1:
            raise UserError(f"image size must be at least 1, got size={self.size} crop={self.crop}")

    def describe(self) -> str:
        """One stable line: part of a FeatureSpec, so equal text must mean equal pixels."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items() if value is not None)

    def __call__(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        pixels = resize_image(self._source(image), self._resized(_height_width(image)), self.interpolation)  # [H, W, 3]
        if self.resize == "pad":
            pixels = _centre(pixels, as_pair(self.size))
        if self.crop is not None:
            pixels = _centre(pixels, as_pair(self.crop))
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        tensor = tensor.float().div(255) if tensor.dtype == torch.uint8 else tensor.float()
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        return tensor.sub_(mean).div_(std)  # [3, H, W]

    def mask(self, mask: np.ndarray, size: Size | None = None) -> torch.Tensor:
        """The same geometry for a mask [h, w] bool, at `size` (default: the image tensor's size).

        The region the image tensor shows is cut from the full-resolution mask first, so that a mask larger than the
        network's input keeps its detail.
        """
        height, width = mask.shape
        resized_h, resized_w = self._resized((height, width))
        shown_h, shown_w = self.output_size(height, width)
        window = (round(shown_h * height / resized_h), round(shown_w * width / resized_w))
        seen = _centre(mask, window)
        target = as_pair(size) if size is not None else (shown_h, shown_w)
        nearest = Image.fromarray(seen.astype(np.uint8) * 255).resize(target[::-1], Image.Resampling.NEAREST)
        return torch.from_numpy(np.asarray(nearest) > 0)  # [H', W']

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the tensor an image of this size becomes."""
        if self.crop is not None:
            return as_pair(self.crop)
        return as_pair(self.size) if self.resize == "pad" else self._resized((height, width))

    def denormalise(self, tensor: torch.Tensor) -> np.ndarray:
        """[..., 3, H, W] network input back to uint8 [..., H, W, 3], for pictures."""
        mean = torch.tensor(self.mean, device=tensor.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=tensor.device).view(3, 1, 1)
        pixels = (tensor.detach().float() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
        rgb = pixels.movedim(-3, -1).cpu().numpy()
        return rgb[..., ::-1].copy() if self.channels == "bgr" else rgb

    def _source(self, image: Image.Image | np.ndarray) -> np.ndarray:
        pixels = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[:, :, None], 3, axis=2)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype not in (np.uint8, np.float32):
            raise UserError(f"an image must be uint8 or float32 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
        if self.channels == "bgr":
            pixels = pixels[:, :, ::-1]
        if self.first_resize is not None:
            pixels = resize_image(pixels, as_pair(self.first_resize), "bilinear")
        return pixels

    def _resized(self, source: tuple[int, int]) -> tuple[int, int]:
        """Height and width after the main resize, before padding and cropping."""
        height, width = as_pair(self.first_resize) if self.first_resize is not None else source
        target_h, target_w = as_pair(self.size)
        if self.resize == "stretch":
            return target_h, target_w
        if self.resize == "pad":
            scale = min(target_h / height, target_w / width)
            return max(1, min(target_h, round(height * scale))), max(1, min(target_w, round(width * scale)))
        short, long = sorted((height, width))
        longer = int(target_h * long / short)  # torchvision truncates
        if target_h * longer > MOST_PIXELS:
            raise UserError(
                f"an image of {width}x{height} would be scaled to {target_h * longer} pixels; cut it into parts"
            )
        return (target_h, longer) if height <= width else (longer, target_h)


def _height_width(image: Image.Image | np.ndarray) -> tuple[int, int]:
    if isinstance(image, Image.Image):
        return image.height, image.width
    return image.shape[0], image.shape[1]


def resize_image(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """PIL's antialiased resize of [H, W, 3] uint8, or of float32 one channel at a time."""
    if pixels.shape[:2] == size:
        return pixels
    method, width_height = INTERPOLATION[interpolation], size[::-1]
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(width_height, method))
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(p)).resize(width_height, method))
        for p in pixels.transpose(2, 0, 1)
    ]
    return np.stack(planes, axis=2)


def _centre(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Centre crop, padding with zeros where the source is smaller (torchvision's CenterCrop and its rounding)."""
    pads = [
        (max(0, (want - have) // 2), max(0, (want - have + 1) // 2))
        for have, want in zip(pixels.shape, size, strict=False)
    ]
    if any(sum(pad) for pad in pads):
        pixels = np.pad(pixels, pads + [(0, 0)] * (pixels.ndim - 2))
    top, left = (round((have - want) / 2.0) for have, want in zip(pixels.shape, size, strict=False))
    return pixels[top : top + size[0], left : left + size[1]]


def clip_transform(size: int, *, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> ImageTransform:
    """open_clip's evaluation transform: shorter edge to `size` bicubic, centre crop, CLIP statistics."""
    return ImageTransform(size=size, crop=size, mean=_triple(mean), std=_triple(std))


def imagenet_transform(size: int, *, resize: int | None = None) -> ImageTransform:
    """torchvision's evaluation transform: shorter edge bilinear to `resize` (default 256/224 of size), centre crop."""
    edge = round(size * 256 / 224) if resize is None else resize
    return ImageTransform(size=edge, crop=size, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def stretch_transform(
    size: Size, *, mean: Sequence[float], std: Sequence[float], interpolation: str = "bicubic"
) -> ImageTransform:
    """Every pixel of the image, stretched to `size`: nothing at the border is lost to a crop."""
    return ImageTransform(
        size=size, resize="stretch", mean=_triple(mean), std=_triple(std), interpolation=interpolation
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
