"""Exported detectors run by onnxruntime and by torch.export give the detector's own scores and maps."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anomaly_lib import load
from anomaly_lib.data.demo.items import render
from anomaly_lib.evaluation.export import load_exported
from anomaly_lib.models.detectors.registry import entries
from anomaly_lib.systems.registry import SYSTEMS

ROOT = Path(__file__).resolve().parent.parent.parent
SPEC = importlib.util.spec_from_file_location("export_script", ROOT / "scripts" / "export.py")
assert SPEC is not None
assert SPEC.loader is not None
SCRIPT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SCRIPT)


def train(system: str, folder: Path) -> Path:
    """The checkpoint of a tiny run of a system, or of a registered detector."""
    changes: dict[str, Any] = {"task": "seg"} if system == "promptad" else {}
    name, own = (system, changes) if system in SYSTEMS else ("detectors", {"model": system})
    result = SYSTEMS[name].train(SYSTEMS[name].tiny(output_dir=str(folder), **own))
    assert result.checkpoint is not None
    return result.checkpoint


def description_inside(path: Path) -> str:
    """What a reader finds in the exported file itself."""
    if path.suffix == ".onnx":
        import onnxruntime

        return str(onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map["anomaly_lib"])
    files = {"anomaly_lib.json": ""}
    torch.export.load(path, extra_files=files)
    return files["anomaly_lib.json"]


EXPORTED = ["promptad", "sowa", *(entry.name for entry in entries() if not entry.transductive)]
QUICK = ("promptad", "patchcore")


@pytest.mark.parametrize(
    "system", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EXPORTED]
)
def test_parity_of_both_formats(system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    checkpoint = train(system, tmp_path)
    detector = load(checkpoint)
    picture = render("woven", "cut", 1, size=96)[0][0]
    batch = detector.transform(picture)[None]
    wanted = detector.predict(batch)
    for kind, suffix in (("onnx", ".onnx"), ("torch", ".pt2")):
        assert SCRIPT.main(["--checkpoint", str(checkpoint), "--format", kind, "--repeats", "1"]) == 0
        assert "milliseconds" in capsys.readouterr().out
        path = checkpoint.parent / "export" / f"{checkpoint.stem}{suffix}"
        score, score_map = load_exported(path)(batch)
        np.testing.assert_allclose(score, wanted.score.numpy(), rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(score_map, wanted.map.numpy(), rtol=2e-3, atol=2e-4)
        description = json.loads(path.with_suffix(".json").read_text())
        how = description["decision"].pop("how") if detector.decision is not None else {}
        assert description["decision"] == (None if detector.decision is None else detector.decision.plain())
        assert how.get("anomalous") == (None if detector.decision is None else "score >= threshold")
        assert description["cell"] == wanted.cell
        inside = json.loads(description_inside(path))
        assert inside["decision"] == json.loads(path.with_suffix(".json").read_text())["decision"]
        assert description["input"]["shape"] == list(batch.shape)
    other = detector.transform(render("woven", "good", 1, size=96)[0][0])[None]
    assert not torch.equal(detector.predict(other).map, wanted.map)  # the input matters


def test_what_cannot_be_exported_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert SCRIPT.main([]) == 2
    assert SCRIPT.main(["--checkpoint", str(tmp_path / "none.pt")]) == 2
    assert "none.pt" in capsys.readouterr().err
