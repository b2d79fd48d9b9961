"""Every registered detector trains, decides or says why not, is loaded, scored, evaluated and reported, at tiny size.

What scores images alone is exported by tests/e2e/test_export.py; the rest is refused.
"""

from pathlib import Path

import numpy as np
import pytest

import anomaly_lib
import evaluate
from anomaly_lib.detect.scores import summary
from anomaly_lib.files import read_json
from anomaly_lib.models.detectors.registry import entries, entry_of
from anomaly_lib.systems.registry import SYSTEMS
from scripts import export
from tests.unit.systems.test_detectors import write_class


@pytest.mark.parametrize("model", [entry.name for entry in entries()])
def test_a_detector_trains_decides_predicts_and_is_evaluated(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_class(tmp_path, "nut")
    system = SYSTEMS["detectors"]
    data = {"dataset": "mvtec", "data_path": str(tmp_path), "obj": "nut", "output_dir": str(tmp_path / "run")}
    own = {"coreset_size": 20} if model == "patchcore" else {}
    result = system.train(system.tiny(model=model, image_size=[64], **data, **own))
    detector = anomaly_lib.load(result.checkpoint)
    scores = detector.score(detector.items())
    assert summary(scores, detector.decision) == pytest.approx(result.metrics)
    found = detector.predict(scores.paths)
    np.testing.assert_allclose(found.score.numpy(), scores.scores, rtol=1e-4, atol=1e-6)
    assert found.map.shape == (4, 64, 64)
    if entry_of(model).leaves_out:
        assert len(detector.decision.normal) == 4
    else:
        assert detector.decision is None  # four images are too few to keep some from training
        assert detector.undecided
    words = ["--checkpoint", str(result.checkpoint), "--bootstrap", "0", "--no-figures"]
    report = tmp_path / "report"
    assert evaluate.main([*words, "--output-dir", str(tmp_path / "out"), "--report", str(report)]) == 0
    assert f"equals what training recorded ({len(result.metrics)} metrics)" in capsys.readouterr().out
    (run,) = read_json(tmp_path / "out" / "metrics.json")["runs"]
    assert run["metrics"] == pytest.approx(result.metrics)
    page = (report / "index.html").read_text()
    assert all(name in page for name in ("hole/000.png", "good/001.png"))
    assert ("no decision" in page) == (detector.decision is None)
    if entry_of(model).transductive:
        assert export.main(["--checkpoint", str(result.checkpoint)]) == 2
        said = "scores images by one another, a file scores one alone: it cannot be exported"
        assert capsys.readouterr().err.splitlines() == [
            f"export.py: {result.run_dir / 'export' / 'checkpoint.onnx'}: {said}"
        ]
