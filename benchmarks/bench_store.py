"""Feature store: fill and read rate against the disk's own sequential rate, and an epoch cached against uncached.

    python benchmarks/bench_store.py [--rows 400] [--folder DIR] [--output store.json]

Rows are those of PromptAD on ViT-B-16-plus-240: two taps of 225 x 896 and a pooled vector, as float16. The encoder of
the epoch is a ResNet-18 with random weights (its features are stored under an invented identity): the slowest honest
case
for a cache, because few backbones are cheaper.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from harness import BenchmarkArgs, Measure, finish, machine, measure

from anomaly_lib.backbones import create_backbone
from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.features import FeatureSpec, FeatureStore, array_key, clear_store, extract


@dataclass
class Args(BenchmarkArgs):
    """The feature store."""

    rows: int = arg(400, "rows", at_least=1)
    images: int = arg(64, "images of an epoch", at_least=1)
    folder: Optional[str] = arg(None, "on the disk to measure; None = the system's temporary folder", type=str)


SHAPES = {"layer.5": (225, 896), "layer.11": (225, 896), "pooled": (640,)}
BATCH = 16


def spec(outputs: tuple[str, ...], **other: Any) -> FeatureSpec:
    return FeatureSpec(backbone="bench", weights="00", outputs=outputs, transform="none", dtype="fp16", **other)


def plain_write(folder: Path, block: bytes, count: int) -> None:
    """What the disk itself does: the same bytes to one file, in the same portions, brought to the disk at the end."""
    (folder / "plain").unlink(missing_ok=True)
    with (folder / "plain").open("wb", buffering=0) as stream:
        for _ in range(count):
            stream.write(block)
        os.fsync(stream.fileno())


def plain_read(folder: Path, size: int) -> int:
    buffer, total = bytearray(size), 0
    with (folder / "plain").open("rb", buffering=0) as stream:
        while got := stream.readinto(buffer):
            total += got
    return total


def rates(folder: Path, rows: int, repeats: int) -> dict[str, Measure]:
    keys = [array_key(np.array(i)) for i in range(rows)]
    batch = {name: torch.randn(BATCH, *shape).half() for name, shape in SHAPES.items()}
    size = sum(tensor[0].numel() * 2 for tensor in batch.values())
    block = os.urandom(size * BATCH)

    def write_store() -> None:
        clear_store(folder / "store")
        with FeatureStore(spec(tuple(SHAPES)), root=folder / "store", cache="disk") as store:
            for start in range(0, rows, BATCH):
                part = keys[start : start + BATCH]
                store.put(part, {name: tensor[: len(part)] for name, tensor in batch.items()})

    # Taken in turn, each into fresh files: a virtual disk is slow at first and its rate drifts.
    turns = [
        (
            measure(lambda: plain_write(folder, block, -(-rows // BATCH)), repeats=1, warmup=0),
            measure(write_store, repeats=1, warmup=0),
        )
        for _ in range(repeats + 1)
    ][1:]
    plain, fill = (sorted(turn, key=lambda one: one.seconds)[len(turns) // 2] for turn in zip(*turns, strict=True))
    result = {
        "plain write": plain,
        "store fill": fill,
        "plain read": measure(lambda: plain_read(folder, size * BATCH), repeats=repeats),
    }
    store = FeatureStore(spec(tuple(SHAPES)), root=folder / "store", cache="disk")

    def read(names: list[str] | None) -> None:
        for start in range(0, rows, BATCH):
            store.rows(keys[start : start + BATCH], names)

    result["store read, checked"] = measure(lambda: read(None), repeats=repeats)
    result["store read, one tap of two"] = measure(lambda: read(["layer.11"]), repeats=repeats)
    return result


def epochs(folder: Path, images: int, repeats: int) -> dict[str, Measure]:
    net = create_backbone("resnet18", weights="random", layers=["pooled"])
    pixels = torch.randn(images, 3, 224, 224)
    described = spec(("pooled",), views="epoch")

    def epoch(cache: str) -> torch.Tensor:
        with FeatureStore(described, root=folder / "epoch", cache=cache) as store:
            keys = extract(
                net.encode,
                range(images),
                store,
                load=lambda i: pixels[i],
                key=lambda i: array_key(np.array(i)),
            )
            return store.rows(keys)["pooled"]

    found = {
        "epoch uncached": measure(lambda: epoch("off"), repeats=repeats),
        "epoch cached": measure(lambda: epoch("disk"), repeats=repeats),
    }
    assert torch.equal(found["epoch uncached"].value, found["epoch cached"].value), "the cache changed a feature"
    return {name: row._replace(value=None) for name, row in found.items()}


def bench(args: Args) -> None:
    """Measure, print, write."""
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        rows = rates(Path(name), args.rows, args.repeats)
        mib = args.rows * sum(int(np.prod(shape)) * 2 for shape in SHAPES.values()) / 2**20
        for label, row in rows.items():
            part = mib / 2 if "one tap" in label else mib
            print(f"{label:28s} {row.seconds * 1000:8.1f} ms  {part / row.seconds:8.0f} MiB/s")
        epoch = epochs(Path(name), args.images, args.repeats)
    for label, row in epoch.items():
        print(f"{label:28s} {row.seconds * 1000:8.1f} ms  {args.images / row.seconds:8.0f} images/s")
    summary = {
        "fill against the disk's own write": rows["plain write"].seconds / rows["store fill"].seconds,
        "checked read against the plain read (page cache)": rows["plain read"].seconds
        / rows["store read, checked"].seconds,
        "epoch: times faster cached": epoch["epoch uncached"].seconds / epoch["epoch cached"].seconds,
    }
    for text, value in summary.items():
        print(f"{text}: {value:.2f}")
    report = {label: row._asdict() for label, row in (rows | epoch).items()}
    finish({"machine": machine(), "MiB": mib, "rows": report, "summary": summary}, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_store.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
