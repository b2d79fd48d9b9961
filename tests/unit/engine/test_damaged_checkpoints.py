"""No changed byte of a checkpoint is used: the file is refused, or holds what was written."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_lib.engine.checkpoint import load_checkpoint, save_checkpoint
from anomaly_lib.errors import UserError


def equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    return type(one) is type(other) and one == other


def attempt(path: Path) -> tuple[str | None, object]:
    """What is said when the file is refused, or its content."""
    try:
        return None, load_checkpoint(path)
    except UserError as error:
        return str(error), None


@pytest.mark.parametrize("flips", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_flipped_bits_are_refused_or_change_nothing(flips: int, tmp_path: Path) -> None:
    content = {"args": {"epochs": 3}, "model": {"weight": torch.randn(64, 48), "bias": torch.arange(7)}, "epoch": 3}
    path = save_checkpoint(tmp_path / "whole.pt", content, system="test")
    whole, wanted = path.read_bytes(), load_checkpoint(path)
    rng, damaged, refused = np.random.default_rng(0), tmp_path / "damaged.pt", 0
    for place, bit in zip(rng.integers(0, len(whole), flips), rng.integers(0, 8, flips), strict=True):
        changed = bytearray(whole)
        changed[place] ^= 1 << bit
        damaged.write_bytes(changed)
        said, found = attempt(damaged)
        refused += said is not None
        assert said is None or "\n" not in said
        assert said is not None or equal(found, wanted), f"byte {place}, bit {bit}: other content was loaded"
    assert refused > flips / 2  # most bytes are tensors


def test_a_cut_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "whole.pt", {"model": torch.randn(1000)}, system="test")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"whole\.pt: ") as refused:
        load_checkpoint(path)
    assert "\n" not in str(refused.value)
