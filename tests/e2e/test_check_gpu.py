"""The prepared check for a machine with a GPU: refused without one, and rehearsed on the CPU."""

import json
from pathlib import Path

import pytest
import torch

from scripts.check_gpu import main


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "out.json")]) == 2
    said = capsys.readouterr()
    assert said.err == "check_gpu.py: --device cuda: this machine has no CUDA; --device cpu rehearses the check\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_rehearsal_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert main(["--device", "cpu", "--systems", "video_ae", "--seconds", "2000", "--output", str(out)]) == 0
    parts = json.loads(out.read_text(encoding="utf-8"))["parts"]
    assert list(parts) == ["kernels", "parity video_ae", "throughput", "sweep", "bf16 video_ae", "fp16 video_ae"]
    assert parts["parity video_ae"]["largest_difference"] == 0
    assert parts["parity video_ae"]["cpu"] == parts["parity video_ae"]["device"]
    assert {"encode_and_fit_images_a_second", "predict_images_a_second", "predict_peak_mb"} <= set(parts["throughput"])
    assert len(parts["sweep"]["run_seconds"]) == 3


def test_a_part_that_fails_hinders_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts import check_gpu

    def broken(*_: object, **__: object) -> dict[str, object]:
        raise ZeroDivisionError("nothing there")

    monkeypatch.setattr(check_gpu, "throughput", broken)
    for name in ("parity", "sweep", "number_format"):
        monkeypatch.setattr(check_gpu, name, lambda *_, **__: {"fine": True})
    out = tmp_path / "out.json"
    assert main(["--device", "cpu", "--systems", "crystal", "--output", str(out)]) == 1
    parts = json.loads(out.read_text(encoding="utf-8"))["parts"]
    assert parts["throughput"]["failed"] == "ZeroDivisionError: nothing there"
    assert parts["sweep"]["fine"]
