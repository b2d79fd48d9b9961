"""`scripts/demo_backbone/train.py` at a few steps: files that load, and a run that continues where it was cut."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anomaly_lib.backbones import create_backbone
from scripts.demo_backbone import training
from scripts.demo_backbone.train import main

PACKAGED = Path(__file__).parents[2] / "anomaly_lib" / "backbones" / "demo_clip.safetensors"
TINY = ["--products", "8", "--validation-products", "16", "--save-every", "2", "--threads", "1", "--warmup", "1"]


@pytest.fixture(autouse=True)
def _threads_and_draws_as_before() -> Iterator[None]:
    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(rng)


def test_trains_exports_and_continues_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    cut.mkdir()
    assert main(["--steps", "4", "--output-dir", str(whole), *TINY]) == 0
    for drawn in whole.glob("pool*"):
        (cut / drawn.name).symlink_to(drawn)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # killed right behind the first checkpoint
        patch.setattr(training, "export", stop)
        main(["--steps", "4", "--output-dir", str(cut), *TINY])
    assert not (cut / "demo_clip.safetensors").exists()
    assert main(["--steps", "4", "--output-dir", str(cut), *TINY]) == 0
    assert (whole / "demo_clip.safetensors").read_bytes() == (cut / "demo_clip.safetensors").read_bytes()
    trained = create_backbone(str(whole / "demo_clip.json"), weights=str(whole / "demo_clip.safetensors"))
    features = trained.encode(torch.rand(1, 3, *trained.image_size))
    assert all(value.isfinite().all() for value in features.values())


def test_start_is_where_training_begins(tmp_path: Path) -> None:
    still = ["--steps", "1", "--learning-rate", "0", "--other-rate", "0", "--output-dir", str(tmp_path), *TINY]
    assert main([*still, "--start", str(PACKAGED)]) == 0
    assert (tmp_path / "demo_clip.safetensors").read_bytes() == PACKAGED.read_bytes()


def test_a_start_of_another_network_is_refused_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, str(other))
    assert main(["--output-dir", str(tmp_path / "run"), "--start", str(other), *TINY]) == 2
    assert "is this the file of another network?" in capsys.readouterr().err
    assert not list(tmp_path.glob("run/pool*"))
