"""Rows of one spec on disk: safe under kill -9 at any byte, several writers at once, flipped bytes and a full disk.

A shard is three files. `.rows` holds fixed-size rows; `.index` one record a row, appended after the row's bytes:

    key (16 bytes) | CRC-32 of each tensor of the row | CRC-32 of the layout and the record

Each writer owns its shard (a lock on `.lock`, released by the system when the process dies), so writers never meet.
A row without a whole record does not exist; the next writer of the shard cuts such leftovers off. Every read is checked
against the row's checksums; a damaged row is struck from the index and reported as missing. The layout carries its own
checksum and enters that of every record: a damaged layout counts as none, and a record never answers under another one.
Rows are read with pread into the caller's tensor: no mapping can go stale or fault when another process works on the
files.
"""

import errno
import io
import itertools
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import lock_descriptor

from anomaly_lib.errors import UserError
from anomaly_lib.features.layout import Bytes, Field, RowLayout, checksum_of
from anomaly_lib.files import alone_at, write_json

KEY_BYTES = 16
SHARD_BYTES = 1 << 30
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
Place = tuple[str, int, tuple[int, ...]]  # shard, row, CRC-32 of each tensor


class CacheWriteError(UserError):
    """The disk of the cache is full or may not be written; rows already there stay valid."""


class ShardFolder:
    """All shards of one folder as one map from key to row."""

    def __init__(self, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.layout: RowLayout | None = None
        self._places: dict[bytes, Place] = {}
        self._seen: dict[str, int] = {}  # shard -> records read so far
        self._rows_files: dict[str, int] = {}  # shard -> open file descriptor
        self._writer: ShardWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def refresh(self) -> None:
        """Take in what this and other processes have appended since the last look."""
        if self.layout is None and not self._read_layout():
            return
        assert self.layout is not None
        record = _record(self.layout)
        for path in sorted(self.folder.glob("*.index")):
            seen = self._seen.get(path.stem, 0)
            try:
                with path.open("rb") as stream:
                    stream.seek(seen * record.size)
                    block = stream.read()
            except OSError:
                continue  # cleared by another process, or a disk that cannot be read: its rows are missing
            count = len(block) // record.size
            for row in range(count):
                raw = block[row * record.size : (row + 1) * record.size]
                if zlib.crc32(raw[:-4], self.layout.checksum) == int.from_bytes(raw[-4:], "little"):
                    key, *sums, _ = record.unpack(raw)
                    self._places[key] = (path.stem, seen + row, tuple(sums))
            self._seen[path.stem] = seen + count

    def read(self, key: bytes, field: Field, out: Bytes) -> bool:
        """Copy one tensor of one row into `out` [size]; False if it is not there or damaged (then it is struck out)."""
        if key not in self._places or self.layout is None:
            return False
        if self._read_checked(self._places[key], field, out):
            return True
        self._strike(key)
        return False

    def append(self, keys: Sequence[bytes], layout: RowLayout, rows: Bytes) -> None:
        """Write rows [B, row_bytes], then their records."""
        with self._writing():
            if self.layout is None and not self._read_layout():
                with alone_at(self.folder / "layout.json"):
                    write_json(self.folder / "layout.json", {"fields": layout.to_plain(), "crc": layout.checksum})
                self._read_layout()
            if self.layout != layout:
                raise UserError(f"{self.folder} holds rows of another shape; delete this folder and run again")
            if self._writer is None or self._writer.process != os.getpid():
                self._writer = ShardWriter.open(self.folder, layout, shard_bytes=self.shard_bytes)
            self._writer.append(keys, rows)
        if self._writer.bytes_written >= self.shard_bytes:
            self._close_writer()
        self.refresh()

    def busy(self) -> bool:
        """Does another process hold one of the shards?"""
        self._close_writer()
        for path in self.folder.glob("*.index"):
            lock = _lock(path)
            if lock is None:
                return path.exists() and os.access(path, os.W_OK)
            lock.close()
        return False

    def close(self) -> None:
        for descriptor in self._rows_files.values():
            os.close(descriptor)
        self._rows_files.clear()
        self._close_writer()

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and writer.process == os.getpid():
            with self._writing():
                writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = "no space left" if error.errno in NO_SPACE else f"cannot be written ({error.strerror})"
            raise CacheWriteError(
                f"feature cache {self.folder}: {why}; mend that, or give another cache_dir= or cache=ram"
            ) from None

    def _read_layout(self) -> bool:
        """Take in layout.json; a damaged one counts as none, and the next rows written replace it."""
        try:
            plain = json.loads((self.folder / "layout.json").read_bytes())
            if plain["crc"] == checksum_of(plain["fields"]):
                self.layout = RowLayout.from_plain(plain["fields"])
        except (OSError, ValueError, LookupError, TypeError):
            pass
        return self.layout is not None

    def _read_checked(self, place: Place, field: Field, out: Bytes) -> bool:
        assert self.layout is not None
        shard, row, sums = place
        try:
            if shard not in self._rows_files:
                self._rows_files[shard] = os.open(
                    self.folder / f"{shard}.rows", os.O_RDONLY | getattr(os, "O_BINARY", 0)
                )
            got = _read_at(self._rows_files[shard], row * self.layout.row_bytes + field.start, out.data)
        except OSError:
            return False
        return got == field.size and sums[self.layout.fields.index(field)] == zlib.crc32(out.data)

    def _strike(self, key: bytes) -> None:
        """Forget a damaged row, here and (if the folder may be written) for all later runs."""
        assert self.layout is not None
        shard, row, _ = self._places.pop(key)
        record = _record(self.layout)
        try:
            with (self.folder / f"{shard}.index").open("r+b", buffering=0) as index:
                index.seek(row * record.size)
                index.write(bytes(record.size))
        except OSError:
            return


class ShardWriter:
    """Appends to one shard that nobody else writes."""

    def __init__(self, lock: io.FileIO, index: io.FileIO, rows: io.FileIO, layout: RowLayout) -> None:
        self.process = os.getpid()
        self._lock, self._index, self._rows, self._layout = lock, index, rows, layout
        self._record = _record(layout)
        self._count = os.fstat(index.fileno()).st_size // self._record.size
        self._cut()

    @classmethod
    def open(cls, folder: Path, layout: RowLayout, *, shard_bytes: int) -> "ShardWriter":
        """Continue a shard whose writer is gone, else begin a new one."""
        for path in sorted(folder.glob("*.index")):
            rows = path.with_suffix(".rows")
            if rows.exists() and rows.stat().st_size < shard_bytes and (lock := _lock(path)) is not None:
                try:
                    return cls(lock, path.open("r+b", buffering=0), rows.open("r+b", buffering=0), layout)
                except (FileNotFoundError, PermissionError):  # cleared meanwhile, or not ours to write
                    lock.close()
        for number in itertools.count():
            path = folder / f"{number:05d}.index"
            if path.exists() or (lock := _lock(path)) is None:
                continue
            if path.exists():  # another process has made and left it since
                lock.close()
                continue
            own = path.with_suffix(".rows").open("w+b", buffering=0)  # before the index, which alone makes it a shard
            return cls(lock, path.open("x+b", buffering=0), own, layout)
        raise AssertionError("unreachable")

    @property
    def bytes_written(self) -> int:
        return self._count * self._layout.row_bytes

    def append(self, keys: Sequence[bytes], rows: Bytes) -> None:
        records = bytearray()
        for key, row in zip(keys, rows, strict=True):
            sums = [zlib.crc32(row[f.start : f.start + f.size].data) for f in self._layout.fields]
            raw = self._record.pack(key, *sums, 0)[:-4]
            records += raw + zlib.crc32(raw, self._layout.checksum).to_bytes(4, "little")
        try:
            _write_all(self._rows, np.ascontiguousarray(rows).reshape(-1).data)
            _write_all(self._index, memoryview(records))
        except OSError:
            self._cut()
            raise
        self._count += len(keys)

    def close(self) -> None:
        """Bring everything to the disk (rows before records) and let go of the shard, whatever the disk says."""
        with self._lock, self._index, self._rows:
            os.fsync(self._rows.fileno())
            os.fsync(self._index.fileno())

    def _cut(self) -> None:
        """Remove what a killed or failed write left behind the last whole record."""
        os.ftruncate(self._rows.fileno(), self._count * self._layout.row_bytes)
        os.ftruncate(self._index.fileno(), self._count * self._record.size)
        self._rows.seek(0, os.SEEK_END)
        self._index.seek(0, os.SEEK_END)


def _record(layout: RowLayout) -> struct.Struct:
    return struct.Struct(f"<{KEY_BYTES}s{len(layout.fields)}II")


def _lock(index: Path) -> io.FileIO | None:
    """The open lock file of a shard, locked, if no other process writes the shard; else None."""
    try:
        stream = index.with_suffix(".lock").open("ab", buffering=0)
    except PermissionError:
        return None
    if lock_descriptor(stream.fileno(), blocking=False):
        return stream
    stream.close()
    return None


def _read_at(descriptor: int, start: int, out: memoryview) -> int:
    """Bytes read into `out`. Processes forked from one another share a descriptor's position, so it is not used."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [out], start)
    os.lseek(descriptor, start, os.SEEK_SET)  # Windows: nothing is forked
    content = os.read(descriptor, len(out))
    out[: len(content)] = content
    return len(content)


def _write_all(stream: io.FileIO, data: memoryview) -> None:
    while len(data):
        data = data[stream.write(data) :]
