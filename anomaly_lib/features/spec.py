"""What decides the value of a feature, and the key of the thing it is a feature of."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomaly_lib.errors import UserError

FORMAT_VERSION = 3  # 2: a checksum of the layout enters that of every record; 3: images are turned by their EXIF
ROW_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class FeatureSpec:
    """Everything the value of a stored row depends on besides the source; two specs that differ anywhere share
    nothing.
    """

    backbone: str
    weights: str  # sha256 of the weight file, or "random": such features live in memory only
    outputs: tuple[str, ...]  # names of the tensors of a row
    transform: str  # ImageTransform.describe() or the like
    image_size: tuple[int, ...] = ()
    views: str = ""  # augmentations, crops, frame sampling: whatever else is done to the source before encoding
    dtype: str = "fp32"  # of the stored rows
    precision: str = "fp32"  # the encoder ran in
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name, value in (("row dtype", self.dtype), ("precision", self.precision)):
            if value not in ROW_DTYPES:
                raise UserError(f"unknown {name} {value!r}; choose from {', '.join(ROW_DTYPES)}")

    @property
    def key(self) -> str:
        """Hash over all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:20]

    @property
    def folder_name(self) -> str:
        readable = "".join(c if c.isalnum() or c in "-." else "_" for c in self.backbone)
        return f"{readable}-{self.key}"

    @property
    def is_random(self) -> bool:
        return self.weights == "random"


def item_key(item: Any, *, by: str = "stat") -> str:
    """Key of a data item: of its in-memory `image` if it has one, else of the file at `path`."""
    image = getattr(item, "image", None)
    return array_key(image) if image is not None else file_key(item.path, by=by)


def file_key(*paths: Path | str, by: str = "stat") -> str:
    """Key of one or several files, or folders of files (video frames): a changed source gets another key.

    `stat`: path, size and the times of last change (ctime too, which no tool can set back). `content`: the bytes, so
    that moved or copied data are known again.
    """
    digest = hashlib.sha256(by.encode())
    for path in map(Path, paths):
        try:
            files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
            for file in files:
                digest.update(_file_identity(file, by))
        except OSError as error:
            raise UserError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def array_key(array: np.ndarray) -> str:
    """Key of data that lie in memory."""
    header = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def _file_identity(file: Path, by: str) -> bytes:
    if by == "content":
        return hashlib.sha256(file.read_bytes()).digest()
    if by != "stat":
        raise UserError(f"a file key is made by 'stat' or 'content', not {by!r}")
    stat = file.stat()
    return f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}\n".encode()
