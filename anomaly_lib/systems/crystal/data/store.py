"""All graphs of a data set in one memory-mapped file, made once, checked when opened, rebuilt when anything changed."""

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from anomaly_lib.errors import UserError
from anomaly_lib.files import write_atomic
from anomaly_lib.systems.crystal.data.graph import CrystalGraph, GraphBuilder
from anomaly_lib.systems.crystal.data.pool import worker_pool
from anomaly_lib.systems.crystal.data.settings import GraphSettings
from anomaly_lib.systems.crystal.data.structure import Crystal, read_crystal

_MAGIC = b"anomaly_lib crystal graphs 2\n"
_ARRAYS = ("atom_offsets", "edge_offsets", "numbers", "source", "target", "vectors")
_CHUNK = 64  # structures per task of a worker process
Source = Path | Crystal


def _body_start(header_size: int) -> int:
    """Where the arrays begin: behind the head, on a 64-byte border."""
    return -(-(len(_MAGIC) + 12 + header_size) // 64) * 64


def fingerprint(sources: Sequence[Source], settings: GraphSettings) -> str:
    """Changes when a setting changes, or a file is touched, added, removed or re-ordered."""
    digest = hashlib.sha256(json.dumps(settings.graph_options(), sort_keys=True).encode())
    for source in sources:
        if isinstance(source, Crystal):
            digest.update(source.lattice.tobytes() + source.frac_coords.tobytes() + source.numbers.tobytes())
        else:
            stat = source.stat() if source.is_file() else None
            when = stat and (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)  # the last no tool can set back
            digest.update(f"{source.absolute()}:{when}\n".encode())
    return digest.hexdigest()[:24]


class GraphStore(Sequence[CrystalGraph]):
    """Graphs as views into one file (or one set of arrays): about 1.4 kB a crystal, shared between processes."""

    def __init__(self, arrays: dict[str, np.ndarray], errors: dict[int, str]) -> None:
        self._arrays = arrays
        self.errors = errors  # position -> why there is no graph

    def __len__(self) -> int:
        return len(self._arrays["atom_offsets"]) - 1

    def __getitem__(self, index: int) -> CrystalGraph:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index in self.errors:
            raise UserError(self.errors[index])
        part = self._arrays
        atoms = slice(*part["atom_offsets"][index : index + 2])
        edges = slice(*part["edge_offsets"][index : index + 2])
        return CrystalGraph(
            part["numbers"][atoms], part["source"][edges], part["target"][edges], part["vectors"][edges]
        )

    @property
    def edge_counts(self) -> np.ndarray:
        """Edges of each graph, without touching the graphs."""
        return np.diff(self._arrays["edge_offsets"])

    @classmethod
    def from_graphs(cls, graphs: Sequence[CrystalGraph | str]) -> "GraphStore":
        """Concatenate graphs; a string in place of a graph is the reason why it is missing."""
        errors = {i: graph for i, graph in enumerate(graphs) if isinstance(graph, str)}
        empty = CrystalGraph(
            np.empty(0, np.uint8), np.empty(0, np.int32), np.empty(0, np.int32), np.empty((0, 3), np.float32)
        )
        whole = [empty if isinstance(graph, str) else graph for graph in graphs]

        def offsets(sizes: list[int]) -> np.ndarray:
            return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

        arrays = {name: np.concatenate([getattr(g, name) for g in [empty, *whole]]) for name in _ARRAYS[2:]}
        arrays["atom_offsets"] = offsets([len(g.numbers) for g in whole])
        arrays["edge_offsets"] = offsets([len(g.source) for g in whole])
        return cls(arrays, errors)

    def write(self, path: Path) -> None:
        """One file: sizes and a CRC-32 of all that follows, a JSON header, the arrays, each on a 64-byte border."""
        layout, position = {}, 0
        for name in _ARRAYS:
            array = np.ascontiguousarray(self._arrays[name])
            layout[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": position}
            position += -(-array.nbytes // 64) * 64
        header = json.dumps({"arrays": layout, "bytes": position, "errors": self.errors}).encode()
        checksum = zlib.crc32(header)
        for block in self._blocks():
            checksum = zlib.crc32(block, checksum)

        def fill(stream: IO[bytes]) -> None:
            stream.write(_MAGIC + len(header).to_bytes(8, "little") + checksum.to_bytes(4, "little") + header)
            stream.write(b"\0" * (_body_start(len(header)) - stream.tell()))
            for block in self._blocks():
                stream.write(block)

        write_atomic(path, fill)

    def _blocks(self) -> Iterator[bytes]:
        for name in _ARRAYS:
            raw = np.ascontiguousarray(self._arrays[name]).tobytes()
            yield raw + b"\0" * (-len(raw) % 64)

    @classmethod
    def open(cls, path: Path) -> "GraphStore | None":
        """The graphs in `path`, memory-mapped; None when the file is missing, cut short or damaged."""
        try:
            with open(path, "rb") as stream:
                if stream.read(len(_MAGIC)) != _MAGIC:
                    return None
                size, checksum = (int.from_bytes(stream.read(width), "little") for width in (8, 4))
                said = stream.read(size) if size <= path.stat().st_size else b""
            body = np.memmap(path, dtype=np.uint8, mode="r", offset=_body_start(size))
            if zlib.crc32(body.data, zlib.crc32(said)) != checksum:
                return None
            header = json.loads(said)
        except (OSError, ValueError, OverflowError):
            return None
        if len(body) != header["bytes"]:
            return None
        arrays = {}
        for name, entry in header["arrays"].items():
            size = int(np.prod(entry["shape"])) * np.dtype(entry["dtype"]).itemsize
            raw = body[entry["offset"] : entry["offset"] + size]
            arrays[name] = raw.view(entry["dtype"]).reshape(entry["shape"])
        return cls(arrays, {int(index): reason for index, reason in header["errors"].items()})


def _build_chunk(sources: list[Source], settings: GraphSettings) -> list[CrystalGraph | str]:
    build = GraphBuilder(settings)
    results: list[CrystalGraph | str] = []
    for source in sources:
        try:
            results.append(build(source if isinstance(source, Crystal) else read_crystal(source)))
        except UserError as error:
            results.append(str(error))
    return results


def _chunks(sources: Sequence[Source]) -> Iterator[list[Source]]:
    remaining = iter(sources)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk


def build_graphs(sources: Sequence[Source], settings: GraphSettings, *, workers: int = 0) -> GraphStore:
    """Read and build everything; a structure that cannot be read is kept as its reason in ``errors``."""
    if workers > 0 and len(sources) > _CHUNK:
        with worker_pool(workers) as pool:
            parts = list(pool.map(partial(_build_chunk, settings=settings), _chunks(sources)))
    else:
        parts = [_build_chunk(chunk, settings) for chunk in _chunks(sources)]
    return GraphStore.from_graphs([graph for part in parts for graph in part])


def cached_graphs(
    sources: Sequence[Source], settings: GraphSettings, *, cache_dir: Path | None, workers: int = 0
) -> tuple[GraphStore, bool]:
    """The graphs of `sources` and whether they came from the cache; `cache_dir` None builds in memory."""
    if cache_dir is None:
        return build_graphs(sources, settings, workers=workers), False
    path = cache_dir / f"crystal-graphs-{fingerprint(sources, settings)}.bin"
    stored = GraphStore.open(path)
    if stored is not None and len(stored) == len(sources):
        return stored, True
    built = build_graphs(sources, settings, workers=workers)
    built.write(path)
    return built, False
