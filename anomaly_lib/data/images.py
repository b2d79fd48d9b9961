"""Image and mask files of any encoding to arrays; every failure is one line that names the file."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from anomaly_lib.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".webp"})


def list_images(folder: Path) -> list[Path]:
    """Image files directly in `folder`, sorted by name; hidden files (macOS leaves `._x.png`) are no images."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if not path.name.startswith("."))


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"{path}: unreadable image ({reason}); replace it or give on_error=skip") from None


def read_image(path: Path | str) -> np.ndarray:
    """RGB [H, W, 3]: uint8 as PIL converts it; float32 for 16-bit (value / 65535) and float files (as stored)."""
    image = _open(Path(path))
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float32)
        if image.mode != "F":
            grey = grey / 65535.0
        if not np.isfinite(grey).all():
            raise UserError(f"{path}: the image has non-finite values; repair the file or give on_error=skip")
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def read_mask(path: Path | str) -> np.ndarray:
    """Defect mask [H, W] bool: any non-zero colour counts (0/1, 0/255, label indices, palettes, 16-bit, RGBA)."""
    path = Path(path)
    image = _open(path)
    if image.mode in ("P", "PA", "CMYK", "YCbCr"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 3:
        # An opaque alpha channel is not a defect; alpha counts only where it is the only thing that varies.
        colour = values[:, :, : 1 if image.mode == "LA" else 3].max(axis=2)
        alpha = values[:, :, -1] if image.mode in ("RGBA", "LA") else None
        values = alpha if alpha is not None and colour.min() == colour.max() and alpha.min() == 0 else colour
    # Lossy compression rings around edges, so there "not exactly black" is no defect.
    return values > (127 if path.suffix.lower() in LOSSY_SUFFIXES else 0)
