"""Peak memory of a piece of work; and what an epoch's end writes first."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from anomaly_lib.engine.checkpoint import TrainState
from anomaly_lib.engine.memory import PeakMemory
from anomaly_lib.engine.run import Run


def test_peak_memory_counts_what_was_freed_again() -> None:
    with PeakMemory(torch.device("cpu")) as peak:
        block = torch.ones(16_000_000)  # 64 MB
        del block
    if math.isnan(peak.mb):
        pytest.skip("this kernel does not tell")
    assert 55 < peak.mb < 120
    with PeakMemory(torch.device("cpu")) as small:
        torch.ones(10)
    assert small.mb < 30


def test_the_best_epoch_is_written_before_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    run = Run("test", SimpleNamespace(save_every=1, epochs=2), tmp_path)
    monkeypatch.setattr(run, "save", lambda state, done, name="checkpoint.pt": written.append(f"{name} {done}"))
    state = TrainState(model=nn.Linear(1, 1))
    run.end_epoch(state, 0, {"loss": 1.0}, best="best_model.pt")
    run.end_epoch(state, 1, {"loss": 2.0})
    assert written == ["best_model.pt 1", "checkpoint.pt 1", "checkpoint.pt 2"]
    assert [row["loss"] for row in state.history] == [1.0, 2.0]
