"""Shared fixtures: fixed seeds, few threads, and where real data lies (if anywhere)."""

import os
from pathlib import Path

import pytest
import torch

# Tiny tensors, several test processes side by side: one thread each is fastest, and the same everywhere.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor fill the user's feature cache."""
    os.environ["ANOMALY_LIB_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Root of the real data and weights; tests that use it are marked `data` and skip without it."""
    root = os.environ.get("ANOMALY_LIB_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("set $ANOMALY_LIB_DATA to a folder of real data and weights")
    return Path(root)
