"""Which data a run was trained and tested on: names, labels and bytes, so that replaced or added files are noticed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from os import stat_result
from pathlib import Path
from stat import S_ISREG
from typing import Any

from anomaly_lib.data.base import Item
from anomaly_lib.data.layouts import is_list

CHUNK = 1 << 20


@dataclass(frozen=True)
class DataFingerprint:
    """The data of a run. Equal data have equal `content` wherever they lie; `seen` is the cheap sign of no change."""

    facts: tuple[str, ...]  # what else decides the data: labels, splits, targets, seeds of drawn ones
    files: tuple[tuple[str, Path], ...] = ()  # name below the data folder, where it lies now

    @classmethod
    def of(
        cls, facts: Iterable[object], files: Iterable[Path | str] = (), root: Path | str | None = None
    ) -> "DataFingerprint":
        """Names are relative to `root`, so that moved data are the same data."""
        named = {relative_name(path, root): Path(path) for path in files}
        return cls(tuple(map(str, facts)), tuple(sorted(named.items())))

    @cached_property
    def content(self) -> str:
        """Hash of the facts and of every file's name and bytes. Reads all files once."""
        digest = sha256(repr(self.facts).encode())
        for name, path in self.files:
            digest.update(f"{name}\n".encode(errors="surrogateescape"))
            digest.update(_hash_file(path))
        return digest.hexdigest()[:32]

    @cached_property
    def seen(self) -> str:
        """Hash of the facts and of every file's name, size and times; reads no file."""
        digest = sha256(repr(self.facts).encode())
        for name, path in self.files:
            stat = _stat(path)
            signs = "absent" if stat is None else f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
            digest.update(f"{name} {signs}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:32]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(stat.st_size for _, path in self.files if (stat := _stat(path)) is not None)

    def plain(self) -> dict[str, Any]:
        """What run.json keeps."""
        return {"content": self.content, "seen": self.seen, "files": len(self.files), "bytes": self.bytes}

    def looks_like(self, noted: Mapping[str, Any]) -> bool:
        """Have all files the sizes and times that `plain` noted? Then they need not be read."""
        return bool(noted.get("seen") == self.seen)

    def equals(self, noted: Mapping[str, Any]) -> bool:
        """Are these the data that `plain` described? Bytes are compared only where sizes or times have changed."""
        if self.looks_like(noted):
            vars(self)["content"] = noted.get("content")  # known without reading the files again
            return True
        return bool(noted.get("content") == self.content)


def fingerprint_of_items(items: Sequence[Item], root: Path | str | None) -> DataFingerprint:
    """Images with their masks, labels, splits and classes; drawn ones are known by their names."""
    root = Path(root or "").parent if is_list(root) else root
    facts = [
        (relative_name(i.path, root), i.label, i.class_name, i.split, i.defect, i.domain, i.mask_path is not None)
        for i in items
    ]
    images = [item.path for item in items if item.image is None]
    masks = [item.mask_path for item in items if item.mask is None and item.mask_path is not None]
    return DataFingerprint.of(facts, [*images, *masks], root)


def relative_name(path: Path | str, root: Path | str | None) -> str:
    """The path below `root`, or the whole of it where it lies elsewhere."""
    path = Path(path)
    return path.relative_to(root).as_posix() if root and path.is_relative_to(root) else path.as_posix()


def files_below(folder: Path | str) -> list[Path]:
    """All files of a folder and of the folders in it."""
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def _stat(path: Path) -> stat_result | None:
    """Facts of a regular file; None for anything else, which is never opened (a pipe would wait for ever)."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat if S_ISREG(stat.st_mode) else None


def _hash_file(path: Path) -> bytes:
    digest = sha256()
    if _stat(path) is None:
        return b"absent"  # the reader of the data says what is wrong, or leaves it out
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    except OSError:
        return b"unreadable"
    return digest.digest()
