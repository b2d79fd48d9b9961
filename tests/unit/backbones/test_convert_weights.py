"""scripts/convert_weights.py: same tensors, one file, readable by every loader."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open

from anomaly_lib.backbones.weights import file_sha256, read_state_dict

SCRIPT = Path(__file__).parents[3] / "scripts" / "convert_weights.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_weights", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_round_trip(script: ModuleType, tmp_path: Path) -> None:
    tied = torch.randn(4, 3)
    state = {"visual.a": tied, "visual.b": tied, "text.c": torch.arange(5), "visual.t": torch.randn(3, 4).T}
    torch.save({"state_dict": state}, tmp_path / "net.ckpt")
    assert script.main([str(tmp_path / "net.ckpt")]) == 0
    found = read_state_dict(tmp_path / "net.safetensors")
    assert found.keys() == state.keys()
    assert all(found[key].equal(value) for key, value in state.items())
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert file.metadata()["source_sha256"] == file_sha256(tmp_path / "net.ckpt")


def test_half_precision_and_one_tower(script: ModuleType, tmp_path: Path) -> None:
    torch.save({"visual.a": torch.randn(4), "visual.n": torch.arange(2), "text.c": torch.ones(2)}, tmp_path / "net.pt")
    target = tmp_path / "deep" / "image.safetensors"
    assert script.main([str(tmp_path / "net.pt"), "-o", str(target), "--dtype", "bf16", "--keep", "visual."]) == 0
    found = read_state_dict(target)
    assert {key: value.dtype for key, value in found.items()} == {
        "visual.a": torch.bfloat16,
        "visual.n": torch.int64,
    }


def test_mistakes_are_one_line(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "net.pt")
    assert script.main([str(tmp_path / "absent.pt")]) == 2
    assert script.main([str(tmp_path / "net.pt"), "--keep", "x."]) == 2
    assert script.main([str(tmp_path / "net.pt"), "-o", str(tmp_path / "net.pt")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "absent.pt" in lines[0]
