"""How much memory a piece of work needs beyond what was held before it."""

import ctypes
import gc
from pathlib import Path
from types import TracebackType

import torch


class PeakMemory:
    """``with PeakMemory(device) as peak: work()``; `peak.mb` is the rise in MB (NaN where the kernel is silent)."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.mb, self._held = device, float("nan"), float("nan")

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._held = torch.cuda.memory_allocated(self.device) / 1e6
        else:
            self._held = _forget_peak()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) / 1e6 if cuda else _resident("VmHWM")
        self.mb = peak - self._held


def highest_resident() -> float:
    """The highest resident memory of this process so far, in MB (NaN where the kernel is silent)."""
    return _resident("VmHWM")


def _forget_peak() -> float:
    """Return freed memory, let Linux forget the highest resident size so far, and say what is held now (MB)."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return float("nan")
    return _resident("VmRSS")


def _resident(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field)), float("nan"))
