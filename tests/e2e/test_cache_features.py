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
import torchvision
from PIL import Image

import train_cls
from anomaly_lib.backbones import FrozenBackbone, create_backbone
from anomaly_lib.data import open_dataset
from anomaly_lib.data.base import load_pixels, select
from anomaly_lib.data.demo.items import write_demo
from anomaly_lib.features import FeatureSpec, FeatureStore, item_key, store_info
from anomaly_lib.features.shards import ShardFolder
from scripts.cache_features import Args, image_transform, main
from scripts.sowa import train_sowa

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


@pytest.mark.parametrize(
    ("name", "media"), [("vjepa2-vitl", "videos"), ("tiny-ast", "spectrograms"), ("huggingface:matscibert", "texts")]
)
def test_encoders_of_other_media_are_refused(
    data: Path, capsys: pytest.CaptureFixture[str], name: str, media: str
) -> None:
    assert main([*arguments(data), "--backbone", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--backbone {name}: reads {media}" in line


def test_a_convolutional_network_on_the_built_in_data(tmp_path: Path) -> None:
    weights = tmp_path / "resnet18.pth"
    torch.manual_seed(1)
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    asked = ["--backbone", "resnet18", "--weights", str(weights), "--image-size", "64", "--layers", "layer1", "layer2"]
    chosen = ["--obj", "grid", "--split", "test", "--dtype", "fp16", "--device", "cpu"]
    assert main([*asked, *chosen, "--cache-dir", str(tmp_path / "cache")]) == 0
    (info,) = store_info(tmp_path / "cache")
    assert info.row == "layer1 [64, 16, 16] float16, layer2 [128, 8, 8] float16"
    items = select(open_dataset("demo", None, classes=["grid"]), split="test")
    assert info.rows == len(items) == 50
    net = create_backbone("resnet18", weights=weights, layers=["layer1", "layer2"], image_size=64)
    transform = image_transform(net, Args(image_size=[64]))
    spec = FeatureSpec(
        net.name, net.weights_id, net.outputs, transform.describe(), image_size=net.image_size or (), dtype="fp16"
    )
    some = items[::17]
    rows = FeatureStore(spec, root=tmp_path / "cache").rows([item_key(item) for item in some])
    fresh = net.encode(torch.stack([transform(load_pixels(item)[0]) for item in some]))
    for name, value in fresh.items():
        torch.testing.assert_close(rows[name].float(), value, rtol=2e-3, atol=2e-3)
        assert value.abs().mean() > 0.1


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    write_demo(root / "data", categories=["capsule", "grid"], size=64, train=4, test_good=3, per_defect=1)
    return root


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("something was encoded or stored although everything was cached")


@pytest.mark.parametrize("options", ["", "--protocol paper --memory-layers 1 3", "--visual-backbone"])
def test_promptad_training_finds_what_was_filled_for_it(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    if "visual" in options:
        weights = tmp_path / "dino.pt"
        torch.save(create_backbone("tiny-dinov2", weights="random").net.state_dict(), weights)  # type: ignore[union-attr]
        options = f"--visual-backbone tiny-dinov2 --visual-weights {weights}"
    common = ["--dataset", "mvtec", "--data-path", str(demo / "data"), "--obj", "grid", "--device", "cpu"]
    common += ["--backbone", "demo-clip"]
    common += ["--cache-dir", str(tmp_path / "cache"), "--cache", "disk"]
    assert main([*common, "--system", "promptad", f"--options={options}"]) == 0
    monkeypatch.setattr(FrozenBackbone, "encode", refuse)
    train = ["--epochs", "1", "--resolution", "64", "--no-figures", "--output-dir", str(tmp_path / "run")]
    assert train_cls.main([*common, *train, "--shot", "2", "--class-text", "object", *options.split()]) == 0


def test_sowa_training_finds_what_was_filled_for_it(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--dataset", "mvtec", "--data-path", str(demo / "data"), "--device", "cpu", "--backbone", "demo-clip"]
    common += ["--cache-dir", str(tmp_path / "cache"), "--cache", "disk"]
    assert main([*common, "--system", "sowa", "--options=--feature-map-idx 1 4"]) == 0
    monkeypatch.setattr(FeatureStore, "put", refuse)
    train = ["--train-classes", "grid", "--test-classes", "capsule", "--shot", "2", "--epochs", "1", "--select", "last"]
    train += ["--no-figures", "--output-dir", str(tmp_path / "run"), "--feature-map-idx", "1", "4"]
    assert train_sowa.main([*common, *train]) == 0


def test_options_that_contradict_the_system_are_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, said in (
        (["--system", "promptad", "--layers", "1"], "--layers 1: --system promptad decides it"),
        (["--options=--protocol paper"], "--options --protocol paper: has no effect without --system"),
        (["--system", "sowa", "--options=--protocol clear"], "--protocol"),
        (["--system", "sowa", "--backbone", "resnet18"], "resnet18"),
    ):
        assert main([*arguments(data), *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


def test_the_backbone_is_said_or_that_of_the_system(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data-path", str(data), "--dataset", "mvtec"]) == 2
    assert "give --backbone or the --system whose" in capsys.readouterr().err
    assert main(["--data-path", str(data), "--dataset", "mvtec", "--system", "sowa"]) == 2
    assert "backbone ViT-L-14-336:openai needs the weights" in capsys.readouterr().err  # never the demo's, unasked


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
