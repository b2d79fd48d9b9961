"""What it costs to compare a checkpoint's bytes with their checksums before anything of it is used.

    python benchmarks/bench_checkpoint.py [--output checkpoint.json]

Detectors of full published size with random weights: the time of the check beside that of loading the detector from its
file (reading, building the network, copying the tensors), which includes it.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import BenchmarkArgs, finish, in_turn, machine

from anomaly_lib.command_line import command
from anomaly_lib.config import to_plain
from anomaly_lib.engine.checkpoint import save_checkpoint, verify_records
from anomaly_lib.models.detectors import MemoryBank
from anomaly_lib.systems.detectors.build import TrainedPart, build
from anomaly_lib.systems.registry import SYSTEMS

MODELS = {
    "draem": {"model": "draem"},
    "reverse_distillation": {"model": "reverse_distillation", "weights": "random"},
    "patchcore": {"model": "patchcore", "backbone": "resnet18", "weights": "random"},
}
BANK = 20_000  # rows of PatchCore's memory, a tenth of 200 images of 1,024 patches


@dataclass
class Args(BenchmarkArgs):
    """The check of a checkpoint."""


def write(folder: Path, name: str) -> Path:
    """A checkpoint of a detector of full size."""
    options = SYSTEMS["detectors"].Args(**MODELS[name], dataset="mvtec", data_path="parts")
    module: Any = build(options, torch.device("cpu"))
    if name == "patchcore":
        module.bank = MemoryBank(torch.randn(BANK, 384), torch.arange(BANK) // 100)
    payload = {"args": to_plain(options), "model": TrainedPart(module).state_dict(), "epoch": 0, "history": []}
    return save_checkpoint(folder / f"{name}.pt", {**payload, "extra": {}}, system="detectors")


def run(args: Args) -> None:
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            path = write(Path(folder), name)
            found = in_turn(
                {
                    "check": lambda path=path: verify_records(path),  # type: ignore[misc]
                    "load": lambda path=path: SYSTEMS.load(path, device="cpu"),  # type: ignore[misc]
                },
                repeats=args.repeats,
            )
            check, load = found["check"].core_seconds, found["load"].core_seconds
            rows[name] = {
                "mib": path.stat().st_size / 2**20,
                "check_core_seconds": check,
                "load_core_seconds": load,
                "share": check / load,
            }
            size = f"{rows[name]['mib']:.0f} MiB"
            print(f"{name}: {size}, check {check:.3f} s, load {load:.3f} s, {100 * check / load:.1f} %")
    finish({"rows": rows, "machine": machine()}, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, run, argv, prog="bench_checkpoint.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
