"""scripts/convert_weights.py: same tensors, one file, readable by every loader."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from anomaly_lib.backbones.weights import file_sha256, read_state_dict
from scripts.convert_weights import main


def test_round_trip(tmp_path: Path) -> None:
    tied = torch.randn(4, 3)
    state = {"visual.a": tied, "visual.b": tied, "text.c": torch.arange(5), "visual.t": torch.randn(3, 4).T}
    torch.save({"state_dict": state}, tmp_path / "net.ckpt")
    assert main([str(tmp_path / "net.ckpt")]) == 0
    found = read_state_dict(tmp_path / "net.safetensors")
    assert found.keys() == state.keys()
    assert all(found[key].equal(value) for key, value in state.items())
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert file.metadata()["source_sha256"] == file_sha256(tmp_path / "net.ckpt")


def test_number_formats(tmp_path: Path) -> None:
    state = {"a": torch.randn(4).half(), "n": torch.arange(3), "s": torch.tensor(2.0), "b": torch.tensor([True])}
    torch.save(state, tmp_path / "net.pt")
    for option, kind in {"": torch.float32, "same": torch.float16, "bf16": torch.bfloat16}.items():
        target = tmp_path / "deep" / f"{option}.safetensors"
        assert main([str(tmp_path / "net.pt"), "-o", str(target), *(["--dtype", option] if option else [])]) == 0
        found = read_state_dict(target)
        assert found["a"].dtype == kind
        assert found["a"].equal(state["a"].to(kind))
        assert found["n"].equal(state["n"])
        assert found["s"] == 2
        assert found["b"].equal(state["b"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["absent.pt"], "absent.pt"),
        (["net.pt", "-o", "net.pt"], "--output net.pt: would overwrite its source"),
        ([], "give --source"),
        (["net.pt", "two.pt"], "unexpected argument 'two.pt'"),
        (["net.pt", "--dtype", "fp8"], "--dtype fp8: choose from same, fp32, fp16, bf16"),
        (["net.pt", "--keep", "visual."], "unknown option --keep"),  # half a network could not be loaded
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(2)}, tmp_path / "net.pt")
    assert main(more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]
