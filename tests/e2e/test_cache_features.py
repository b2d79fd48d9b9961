"""scripts/cache_features.py: fills once, continues, shares the work between ranks, and its rows equal a fresh
encoding.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_lib.backbones import create_backbone
from anomaly_lib.data import open_dataset
from anomaly_lib.data.base import load_pixels, select
from anomaly_lib.features import FeatureSpec, FeatureStore, item_key, store_info
from anomaly_lib.features.shards import ShardFolder
from scripts.cache_features import Args, image_transform, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eleven training pictures in the MVTec layout."""
    folder = tmp_path / "data" / "part" / "train" / "good"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "part" / "test" / "good").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(12):
        coarse = generator.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        place = folder if number else folder.parents[1] / "test" / "good"
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(place / f"{number:03d}.png")
    return tmp_path / "data"


def arguments(data: Path) -> list[str]:
    cache = ["--cache-dir", str(data.parent / "cache"), "--device", "cpu"]
    return ["--backbone", "demo-clip", "--dataset", "mvtec", "--data-path", str(data), "--split", "train", *cache]


def test_fill_again_and_read(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(data)) == 0
    said = capsys.readouterr().out
    (info,) = store_info(data.parent / "cache")
    assert f"{info.rows} images are cached, {info.rows} of them new" in said
    assert main(arguments(data)) == 0
    assert "0 of them new" in capsys.readouterr().out
    net = create_backbone("demo-clip")
    transform = image_transform(net, Args())
    items = select(open_dataset("mvtec", data), split="train")
    spec = FeatureSpec(
        backbone=net.name,
        weights=net.weights_id,
        outputs=net.outputs,
        transform=transform.describe(),
        image_size=net.image_size or (),
    )
    rows = FeatureStore(spec, root=data.parent / "cache").rows([item_key(item) for item in items])
    fresh = net.encode(torch.stack([transform(load_pixels(item)[0]) for item in items]))
    assert list(rows) == list(fresh)
    for name, value in fresh.items():
        torch.testing.assert_close(rows[name], value, rtol=1e-5, atol=1e-6)
        assert value.abs().mean() > 1e-3


def test_a_damaged_picture_stops_the_run_or_is_left_out(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "part" / "train" / "good" / "bad.png").write_bytes(b"not a picture")
    assert main(arguments(data)) == 2
    assert "bad.png" in capsys.readouterr().err
    assert main([*arguments(data), "--on-error", "skip"]) == 0
    said = capsys.readouterr().out
    assert "left out" in said
    assert "11 images are cached" in said


def test_random_weights_are_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(data), "--weights", "random"]) == 2
    assert "never cached on disk" in capsys.readouterr().err


@pytest.mark.slow
def test_under_torchrun_each_rank_fills_its_share(data: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = [str(ROOT / "scripts" / "cache_features.py"), *arguments(data)]
    done = subprocess.run(
        [*command, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (info,) = store_info(data.parent / "cache")
    items = select(open_dataset("mvtec", data), split="train")
    assert info.rows == len({item_key(item) for item in items})
    layout = ShardFolder(info.folder).layout
    assert layout is not None
    written = sum(file.stat().st_size for file in info.folder.glob("*.rows"))
    assert written == info.rows * layout.row_bytes  # no picture was encoded by both ranks
