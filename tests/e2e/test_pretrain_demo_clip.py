"""`scripts/pretrain_demo_clip.py` at a few steps: files that load, and a run that continues where it was cut."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anomaly_lib.backbones import create_backbone

SCRIPTS = Path(__file__).parents[2] / "scripts"
TINY = ["--size", "128", "--products", "8", "--validation-products", "16", "--save-every", "2"]
TINY += ["--threads", "1", "--warmup", "1"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import pretrain_demo_clip

    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    yield pretrain_demo_clip
    torch.set_num_threads(threads)
    torch.set_rng_state(rng)
    sys.modules.pop("pretrain_demo_clip", None)


def test_trains_exports_and_continues_exactly(script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    cut.mkdir()
    assert script.main(["--steps", "4", "--output-dir", str(whole), *TINY]) == 0
    for drawn in whole.glob("pool*"):
        (cut / drawn.name).symlink_to(drawn)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # killed right behind the first checkpoint
        patch.setattr(script, "export", stop)
        script.main(["--steps", "4", "--output-dir", str(cut), *TINY])
    assert not (cut / "demo_clip.safetensors").exists()
    assert script.main(["--steps", "4", "--output-dir", str(cut), *TINY]) == 0
    assert (whole / "demo_clip.safetensors").read_bytes() == (cut / "demo_clip.safetensors").read_bytes()
    trained = create_backbone(str(whole / "demo_clip.json"), weights=str(whole / "demo_clip.safetensors"))
    assert trained.image_size == (128, 128)
    features = trained.encode(torch.rand(1, 3, *trained.image_size))
    assert all(value.isfinite().all() for value in features.values())


def test_begins_with_weights_of_another_size(script, tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    assert script.main(["--steps", "1", "--output-dir", str(small), *TINY]) == 0
    resized = ["--size", "160", "--start", str(small / "demo_clip.safetensors"), "--output-dir", str(large)]
    assert script.main([*TINY, *resized, "--steps", "1", "--learning-rate", "0", "--other-rate", "0"]) == 0
    before, after = (load_file(folder / "demo_clip.safetensors") for folder in (small, large))
    assert after.pop("visual.positional_embedding").shape == (1 + 20 * 20, 128)
    assert all(torch.allclose(tensor, before[name], atol=1e-3) for name, tensor in after.items())
