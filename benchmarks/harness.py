"""What every benchmark shares: medians, peak memory, a JSON file that names the machine and the versions."""

import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch

from anomaly_lib.config import Options, arg
from anomaly_lib.engine.memory import PeakMemory
from anomaly_lib.files import write_json


class Measure(NamedTuple):
    seconds: float  # median
    peak_mib: float  # resident memory above what was held before; nan where the kernel does not tell
    value: Any
    core_seconds: float = float("nan")  # median on a core, all threads together: holds on a busy machine too


def measure(work: Callable[[], Any], *, repeats: int = 5, warmup: int = 1) -> Measure:
    """Run `work`, give the median time, the peak memory of the last run and its result."""
    for _ in range(warmup):
        work()
    seconds, core, value, peak = [], [], None, PeakMemory(torch.device("cpu"))
    for _ in range(repeats):
        with peak:
            start, on_core = time.perf_counter(), time.process_time()
            value = work()
            seconds.append(time.perf_counter() - start)
            core.append(time.process_time() - on_core)
    return Measure(statistics.median(seconds), peak.mb * 1e6 / 2**20, value, statistics.median(core))


def in_turn(works: dict[str, Callable[[], Any]], *, repeats: int) -> dict[str, Measure]:
    """Each in turn, so that whatever else the machine does falls on all alike; the least disturbed turn of each."""
    turns = [{name: measure(work, repeats=1, warmup=0) for name, work in works.items()} for _ in range(repeats)]
    return {name: min((turn[name] for turn in turns), key=lambda found: found.core_seconds) for name in works}


def machine(*packages: str) -> dict[str, Any]:
    """Where and with what the numbers were measured."""
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return {
        "commit": head.stdout.strip(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "numpy", *packages)},
    }


@dataclass
class BenchmarkArgs(Options):
    """What every benchmark takes."""

    repeats: int = arg(5, "measurements behind each figure", at_least=1)
    output: Optional[str] = arg(None, "JSON file for the numbers", type=str)


def finish(report: dict[str, Any], output: str | None) -> None:
    """Write the report if a file was asked for."""
    if output is not None:
        write_json(Path(output), report)
        print(f"written to {output}")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
