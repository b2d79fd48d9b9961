"""Image and mask files of any encoding to arrays; every failure is one line that names the file."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from anomaly_lib.errors import UserError, reason_of
from anomaly_lib.files import check_file

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")  # what is behind these; no decoder that starts a program
LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".webp"})
LARGEST = 1e9  # of a float image; its brightest pixels are 1, or a sensor's counts


def list_images(folder: Path) -> list[Path]:
    """Image files directly in `folder`, sorted by name; hidden files (macOS leaves `._x.png`) are no images."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if not path.name.startswith("."))


def images_below(folder: Path) -> Iterator[Path]:
    """Image files in and below `folder`, folder by folder in the order of their names; hidden ones are left out."""
    for here, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(here) / name


def _open(path: Path, what: str = "image file") -> Image.Image:
    """The decoded picture of a file; see `decoded`."""
    check_file(path, what)
    try:
        with path.open("rb") as stream:  # by name, PIL 13 would map a turned TIFF of one channel wrongly
            return decoded(stream)
    except UserError as error:
        raise UserError(f"{path}: {error}; replace it or give on_error=skip") from None
    except OSError as error:
        raise UserError(f"{path}: unreadable image ({reason_of(error)}); replace it or give on_error=skip") from None


class TooManyPixels(UserError):
    """A picture whose header says that it is larger than is decoded."""


def decoded(stream: IO[bytes], most_pixels: int | None = None) -> Image.Image:
    """The picture of an open file as viewers show it: turned by its EXIF orientation; of several frames the first.

    Its header is read first: one of more than `most_pixels` is never decoded.
    """
    try:
        image = Image.open(stream, formats=FORMATS)
        if most_pixels is not None and image.width * image.height > most_pixels:
            raise TooManyPixels(f"an image of {image.width}x{image.height} pixels; at most {most_pixels:,} are taken")
        if image.format == "PNG":  # its checksums, which decoding alone does not compare
            image.verify()
            stream.seek(0)
            image = Image.open(stream, formats=FORMATS)
        image.load()
    except TooManyPixels:
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"unreadable image ({reason_of(error)})") from None
    except Exception as error:  # noqa: BLE001  (decoders of damaged files raise many kinds)
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else reason_of(error)
        raise UserError(f"unreadable image ({reason})") from None
    return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; a damaged EXIF block says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  (the pixels are whole; only the note beside them is not)
        return image


def read_image(path: Path | str) -> np.ndarray:
    """RGB [H, W, 3]: uint8 as PIL converts it; float32 for 16-bit (value / 65535) and float files (as stored)."""
    image = _open(Path(path))
    try:
        return rgb_of(image)
    except UserError as error:
        raise UserError(f"{path}: {error}; repair the file or give on_error=skip") from None


def rgb_of(image: Image.Image) -> np.ndarray:
    """A decoded picture as [H, W, 3], uint8 or float32; see `read_image`."""
    if not image.width or not image.height:
        raise UserError(f"an empty picture of {image.width}x{image.height} pixels")
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float32)
        if image.mode != "F":
            grey = grey / 65535.0
        check_values(grey)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def check_values(pixels: np.ndarray) -> None:
    """Refuse floats that are no brightness: a network would answer NaN, or anything."""
    if not np.isfinite(pixels).all():
        raise UserError("the image has non-finite values")
    largest = float(np.abs(pixels).max())
    if largest > LARGEST:
        raise UserError(f"the image has values up to {largest:.3g}, which is no brightness")


def read_mask(path: Path | str) -> np.ndarray:
    """Defect mask [H, W] bool: any non-zero colour counts (0/1, 0/255, label indices, palettes, 16-bit, RGBA)."""
    path = Path(path)
    image = _open(path, "mask file")
    if image.mode in ("P", "PA", "CMYK", "YCbCr"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise UserError(f"{path}: the mask has non-finite values; repair or remove it")
    if values.ndim == 3:
        # An opaque alpha channel is not a defect; alpha counts only where it is the only thing that varies.
        colour = values[:, :, : 1 if image.mode == "LA" else 3].max(axis=2)
        alpha = values[:, :, -1] if image.mode in ("RGBA", "LA") else None
        values = alpha if alpha is not None and colour.min() == colour.max() and alpha.min() == 0 else colour
    # Lossy compression rings around edges, so there "not exactly black" is no defect.
    return values > (127 if path.suffix.lower() in LOSSY_SUFFIXES else 0)
