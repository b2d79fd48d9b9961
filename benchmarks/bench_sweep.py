"""A sweep of methods, shots and seeds on one category with the store, beside one encoding and the same sweep without.

    python benchmarks/bench_sweep.py [--shots 2 4 8 16] [--seeds 0 1 2 3 4] [--output sweep.json]

All methods read the same two taps of one ViT-Tiny (drawn, not trained) and the images as they are. Without the store
only `--uncached` runs of each method are made, at the largest shot, and the rest is reckoned from them. Seconds are
those of one core; passes are images encoded by all runs over images there are. Where anomalib is installed, its
PatchCore and ours on a ResNet-18 run as a command for each shot, which stands for all seeds.
"""

import contextlib
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from bench_detect import ROOT, ours, run, write_images, write_weights
from harness import BenchmarkArgs, finish, machine

from anomaly_lib.backbones import create_backbone
from anomaly_lib.backbones.base import FrozenBackbone
from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.data.base import ImageDataset
from anomaly_lib.systems.detectors.build import build
from anomaly_lib.systems.detectors.data import image_transform, open_class
from anomaly_lib.systems.detectors.inputs import Inputs, images_of
from anomaly_lib.systems.detectors.options import Args as DetectorArgs
from anomaly_lib.systems.registry import SYSTEMS

METHODS: dict[str, dict[str, Any]] = {  # on the images as they are, so that all read the same features
    "patchcore": {},
    "padim": {},
    "anomalydino": {"rotations": 1},
    "subspacead": {"rotations": 0},
    "visionad": {"augment_support": False, "augment_query": False},
}
FROZEN = {"backbone": "timm:vit_tiny_patch16_224", "layers": ["layer.5", "layer.8"], "image_size": [224]}


@dataclass
class Args(BenchmarkArgs):
    """Sweep."""

    shots: list[int] = arg([2, 4, 8, 16], "normal images of a run (PaDiM needs two)", at_least=2)
    seeds: list[int] = arg([0, 1, 2, 3, 4], "seeds of the draws")
    images: int = arg(40, "normal images there are", at_least=1)
    test_images: int = arg(60, "test images, half of them with a defect", at_least=4)
    uncached: int = arg(1, "runs of each method without the store", at_least=1)


def options(work: Path, cache: str | None) -> dict[str, Any]:
    """`cache`: the store's folder below `work`; None: nothing is kept."""
    kept = {"cache": "off"} if cache is None else {"cache_dir": str(work / cache)}
    data = {"dataset": "mvtec", "data_path": str(work / "data"), "obj": "woven"}
    return data | kept | FROZEN | {"weights": str(work / "net.pth")}


def train(work: Path, method: str, shot: int, seed: int, cache: str | None = "cache") -> None:
    system = SYSTEMS["detectors"]
    args = system.Args(
        **options(work, cache), model=method, shot=shot, seed=seed, output_dir=str(work / "run"), figures=False,
        fresh=True, **METHODS[method],
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        system.train(args)


def encode_once(work: Path, folder: str) -> float:
    """Core seconds of one pass over all images: a store that is empty before."""
    args = DetectorArgs(**options(work, folder))
    began = time.process_time()
    data = ImageDataset(open_class("mvtec", args.data_path, args.obj)[1], transform=image_transform(args))
    device = torch.device("cpu")
    inputs = Inputs(build(args, device), images_of(data, args, 3), args, device, learnt=True)
    assert len(inputs.keys) == len(data)
    return time.process_time() - began


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """How many images each pass of a frozen network sees."""
    seen: list[int] = []
    encode = FrozenBackbone.encode
    FrozenBackbone.encode = lambda self, batch: (seen.append(len(batch)), encode(self, batch))[1]
    try:
        yield seen
    finally:
        FrozenBackbone.encode = encode


def timed(work: Path, runs: Iterator[tuple[str, int, int]], cache: str | None = "cache") -> list[float]:
    spent = []
    for method, shot, seed in runs:
        began = time.process_time()
        train(work, method, shot, seed, cache)
        spent.append(time.process_time() - began)
    return spent


def beside_peer(work: Path, args: Args) -> dict[str, Any]:
    """PatchCore alone through shots and seeds, each run a process of its own, here and by anomalib."""
    write_weights(work / "resnet18.pth")
    spent: dict[str, list[float]] = {"here": [], "anomalib": []}
    for shot in args.shots:
        few = shutil.copytree(work / "data", work / f"shot-{shot}")
        for image in sorted((few / "woven" / "train" / "good").iterdir())[shot:]:
            image.unlink()
        theirs = [str(ROOT / "benchmarks" / "anomalib_command.py"), "patchcore", str(few), str(work / "resnet18.pth")]
        spent["here"].append(run([*ours("patchcore", work, "cache-peer"), "--shot", str(shot)]).core)
        spent["anomalib"].append(run(theirs).core)
        print(f"PatchCore, {shot} images:", {side: some[-1] for side, some in spent.items()}, flush=True)
    sweep = {side: sum(some) * len(args.seeds) for side, some in spent.items()}
    return {
        "shots": args.shots,
        "core_seconds_of_a_run": spent,
        "sweep_core_seconds_reckoned": sweep,
        "ratio": sweep["anomalib"] / sweep["here"],
    }


def bench(args: Args) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_images(work / "data", args.images, args.test_images)
        torch.save(create_backbone(FROZEN["backbone"], weights="random").net.state_dict(), work / "net.pth")
        train(work, "patchcore", args.shots[-1], 0, cache=None)  # imports, once
        encoding = sorted(encode_once(work, f"once-{turn}") for turn in range(3))[1]
        grid = list(product(METHODS, args.shots, args.seeds))
        with counted() as seen:
            stored = timed(work, iter(grid))
        again = timed(work, iter(grid))  # nothing left to encode: searches, metrics and files
        plain = timed(
            work, ((m, args.shots[-1], s) for m in METHODS for s in islice(args.seeds, args.uncached)), cache=None
        )
        peer = beside_peer(work, args) if find_spec("anomalib") else None
    report = {
        "machine": machine("anomalib"),
        "runs": len(grid),
        "images": [args.images, args.test_images],
        "encoding_core_seconds": encoding,
        "sweep_core_seconds": sum(stored),
        "everything_but_encoding_core_seconds": sum(again),
        "passes": sum(seen) / (args.images + args.test_images),
        "sweep_less_searches_in_encodings": (sum(stored) - sum(again)) / encoding,
        "uncached_core_seconds_reckoned": sum(plain) / len(plain) * len(grid),
        "uncached_runs_measured": len(plain),
    }
    report["ratio_uncached"] = report["uncached_core_seconds_reckoned"] / report["sweep_core_seconds"]
    if peer is not None:
        report["patchcore_beside_anomalib"] = peer
    print({name: value for name, value in report.items() if name != "machine"})
    finish(report, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_sweep.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
