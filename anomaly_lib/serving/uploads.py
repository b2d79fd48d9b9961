"""Uploaded bytes: their pixels, decoded as those of files are, and a name that can be shown."""

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from anomaly_lib.data.images import FORMATS, decoded, rgb_of
from anomaly_lib.errors import UserError

LONGEST_SHOWN = 100
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "BMP": ".bmp", "DIB": ".bmp", "TIFF": ".tif",
            "WEBP": ".webp", "PPM": ".ppm"}  # fmt: skip


@dataclass(frozen=True)
class Upload:
    """One image of a request."""

    name: str  # to be shown; never a path
    content: bytes

    def pixels(self, most_pixels: int) -> np.ndarray:
        """RGB [H, W, 3], uint8 or float32, as `read_image` gives them of a file."""
        try:
            return rgb_of(decoded(io.BytesIO(self.content), most_pixels))
        except UserError as error:
            raise type(error)(f"{self.name}: {error}") from None

    @cached_property
    def sha(self) -> str:
        """What the image is known by: the beginning of the hash of its bytes."""
        return hashlib.sha256(self.content).hexdigest()[:12]

    @property
    def suffix(self) -> str:
        """The ending of a file of these bytes, by what they are."""
        with Image.open(io.BytesIO(self.content), formats=FORMATS) as image:
            return SUFFIXES.get(image.format or "", ".png")


def shown_name(text: str | None) -> str:
    """The last part of an uploaded file's name, printable and short."""
    last = PurePosixPath((text or "").replace("\\", "/")).name
    clean = "".join(letter for letter in last if letter.isprintable())
    return clean[:LONGEST_SHOWN] or "image"
