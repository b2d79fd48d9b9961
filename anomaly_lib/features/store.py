"""The feature store: rows by key, in memory or on disk, never a wrong one."""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import Tensor

from anomaly_lib.errors import UserError
from anomaly_lib.features.layout import Bytes, Field, RowLayout, as_bytes
from anomaly_lib.features.shards import KEY_BYTES, CacheWriteError, ShardFolder
from anomaly_lib.features.spec import ROW_DTYPES, FeatureSpec
from anomaly_lib.files import alone_at, write_json

MODES = ("auto", "ram", "disk", "off")
GIB = 1 << 30
LARGE_FILL = GIB


class MissingFeatures(LookupError):
    """Rows that are not in the store (or were damaged and struck out), and that this process has not extracted."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(
            f"{len(keys)} of the features asked for are not stored (first key {keys[0][:16]}); extract them"
        )
        self.keys = list(keys)


def default_cache_dir() -> Path:
    """$ANOMALY_LIB_CACHE or ~/.cache/anomaly_lib."""
    return Path(os.environ.get("ANOMALY_LIB_CACHE") or Path.home() / ".cache" / "anomaly_lib")


class FeatureStore:
    """Rows of named tensors for one `FeatureSpec`.

    `cache`: "disk" keeps rows for later runs under `root`; "ram" for this process; "off" only until the next `extract`;
    "auto" is disk, or RAM where that cannot be (random weights, which have no identity, or a full or read-only disk).
    """

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        root: Path | str | None = None,
        cache: str = "auto",
        notice: Callable[[str], None] | None = None,
    ) -> None:
        if cache not in MODES:
            raise UserError(f"cache={cache}: choose from {', '.join(MODES)}")
        if cache == "disk" and spec.is_random:
            raise UserError(
                "cache=disk: features of random weights have no identity and cannot be kept; give cache=ram"
            )
        self.spec = spec
        self.cache = cache
        self.notice = notice or (lambda _: None)
        self.folder = Path(root or default_cache_dir()).expanduser() / spec.folder_name
        self._ram: dict[bytes, Bytes] = {}
        self._ram_layout: RowLayout | None = None
        self._disk: ShardFolder | None = None
        self._writes_to_disk = False
        self._planned = 0  # rows the fill under way has still to write
        self._sources: dict[bytes, tuple[Callable[[int], Mapping[str, Tensor]], int]] = {}
        self._verified: set[bytes] = set()  # rows this process has found whole; reading checks them again anyway
        if cache == "disk" or (cache == "auto" and not spec.is_random):
            self._open_disk()

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        raw = _raw(key)
        return raw in self._ram or (self._disk is not None and raw in self._disk)

    def __len__(self) -> int:
        return len(self._ram) + (len(self._disk) if self._disk is not None else 0)

    @property
    def on_disk(self) -> bool:
        """Will rows put from now on be there in the next run?"""
        return self._writes_to_disk

    @property
    def layout(self) -> RowLayout | None:
        """Names, shapes and types of a row; None before the first one."""
        return self._disk.layout if self._disk is not None and self._disk.layout is not None else self._ram_layout

    def refresh(self) -> None:
        """Take in rows that other processes have written meanwhile."""
        if self._disk is not None:
            self._disk.refresh()

    def busy(self) -> bool:
        """Is another process writing to this store right now?"""
        self.close()
        return self._disk is not None and self._disk.busy()

    def missing(self, keys: Iterable[str], *, verify: bool = False) -> list[str]:
        """The keys without a row, each once, in order. `verify` reads the stored rows and counts damaged ones as
        missing.
        """
        self.refresh()
        return [key for key in dict.fromkeys(keys) if key not in self or (verify and not self._whole(key))]

    def put(self, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Store one row per key: `tensors` holds [B, ...] per name; floats are rounded to the spec's dtype."""
        layout = self.layout or RowLayout.of(tensors, ROW_DTYPES[self.spec.dtype])
        rows, raw = layout.pack(tensors), [_raw(key) for key in keys]
        if self._disk is not None and self._writes_to_disk:
            try:
                self._disk.append(raw, layout, rows)
                self._planned -= len(rows)
                return
            except CacheWriteError as error:
                self._go_on_in_memory(error, max(self._planned, len(rows)) * layout.row_bytes)
        self._ram_layout = layout
        self._ram.update(zip(raw, rows, strict=True))

    def rows(self, keys: Sequence[str], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """[N, ...] per name (all by default) in the order of `keys`, in the stored dtype; checked.

        What is damaged or gone is encoded again if this process has extracted it, else `MissingFeatures`.
        """
        if not keys:
            raise UserError("no features were asked for: the list of keys is empty")
        if absent := [key for key in keys if key not in self]:
            self._encode_again(absent)
        layout = self.layout
        assert layout is not None  # a row is there
        answer = {}
        for name in names if names is not None else [field.name for field in layout.fields]:
            field = layout.field(name)
            answer[name] = field.empty(len(keys))
            if not field.size:
                continue
            for out, key in zip(as_bytes(answer[name]), keys, strict=True):
                if not self._read(key, field, out):
                    self._encode_again([key])
                    if not self._read(key, field, out):
                        raise MissingFeatures([key])
        return answer

    def remember(self, where: Mapping[str, int], encode: Callable[[int], Mapping[str, Tensor]]) -> None:
        """`extract` says how rows that may get damaged on disk are made again: `encode(where[key])`."""
        if self._disk is not None:
            self._sources.update((_raw(key), (encode, index)) for key, index in where.items())

    def plan(self, count: int) -> None:
        """Say what a large fill of `count` rows will take, and refuse (or go to RAM) where there is no room for it."""
        self._planned = count
        if self.layout is None:
            return
        need = count * self.layout.row_bytes
        if self._writes_to_disk and need > (free := shutil.disk_usage(self.folder).free):
            text = f"the features need {_gib(need)}, {self.folder} has {_gib(free)} free"
            if self.cache == "disk":
                raise UserError(f"{text}: free some, or give another cache_dir= or cache=ram")
            self.notice(f"{text}: they are kept in memory")
            self._writes_to_disk = False
        if not self._writes_to_disk:
            _check_memory(need)
        if need >= LARGE_FILL:
            where = self.folder if self._writes_to_disk else "memory"
            self.notice(
                f"encoding {count} samples: {self.layout.row_bytes / 1024:.0f} KiB each, {_gib(need)} in {where}"
            )

    def begin(self) -> None:
        """`extract` calls this first: with ``cache="off"`` nothing is kept from one extraction to the next."""
        if self.cache == "off":
            self._ram.clear()

    def close(self) -> None:
        """Release the shard being written; the store can be used again afterwards."""
        if self._disk is not None:
            try:
                self._disk.close()
            except CacheWriteError as error:  # the last rows may not have reached the disk; what did not is missing
                self._go_on_in_memory(error, 0)

    def _go_on_in_memory(self, error: CacheWriteError, need: int) -> None:
        """After a failed write: `need` more bytes go to memory if they may and there is room."""
        if self.cache == "disk":
            raise error
        if not self._writes_to_disk:
            return  # said before
        _check_memory(need, f"{error}; ")
        self.notice(f"{error}; the remaining features are kept in memory")
        self._writes_to_disk = False

    def _open_disk(self) -> None:
        try:
            self._disk, self._writes_to_disk = ShardFolder(self.folder), True
            if not (self.folder / "spec.json").exists():
                with alone_at(self.folder / "spec.json"):
                    write_json(self.folder / "spec.json", asdict(self.spec))
        except OSError as error:
            if self.cache == "disk":
                raise UserError(f"{self.folder}: cannot be used ({error.strerror}); give another cache_dir=") from None
            self.notice(f"{self.folder}: {error.strerror}; features are kept in memory")
            self._disk, self._writes_to_disk = None, False

    def _read(self, key: str, field: Field, out: Bytes) -> bool:
        raw = _raw(key)
        if (row := self._ram.get(raw)) is not None:
            out[:] = row[field.start : field.start + field.size]
            return True
        if self._disk is not None and self._disk.read(raw, field, out):
            return True
        self._verified.discard(raw)
        return False

    def _encode_again(self, keys: Sequence[str]) -> None:
        if unknown := [key for key in keys if _raw(key) not in self._sources]:
            raise MissingFeatures(unknown)
        for key in self.missing(keys):  # another process may have mended them
            self.notice(f"{self.folder}: the row of {key[:16]} was damaged or gone and is encoded again")
            encode, index = self._sources[_raw(key)]
            self.put([key], encode(index))
        self.close()

    def _whole(self, key: str) -> bool:
        raw = _raw(key)
        if raw in self._ram or self._disk is None or self._disk.layout is None:
            return raw in self._ram
        fields = self._disk.layout.fields
        if raw not in self._verified and all(
            self._disk.read(raw, f, np.empty(f.size, np.uint8)) for f in fields if f.size
        ):
            self._verified.add(raw)
        return raw in self._verified


def _check_memory(need: int, why: str = "") -> None:
    if need > (free := available_memory()):
        raise UserError(f"{why}the features need {_gib(need)} of memory, {_gib(free)} are free: give cache=disk")


def available_memory() -> int:
    """Bytes of memory that can be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None  # Windows has no such question
        return sys.maxsize if pages is None else pages * os.sysconf("SC_PAGE_SIZE")


def _raw(key: str) -> bytes:
    return bytes.fromhex(key)[:KEY_BYTES]


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.1f} MiB"
