"""Every registered detector trains, decides or says why not, and is scored and loaded alike, at tiny size."""

from pathlib import Path

import numpy as np
import pytest

import anomaly_lib
from anomaly_lib.detect.scores import summary
from anomaly_lib.models.detectors.registry import entries, entry_of
from anomaly_lib.systems.registry import SYSTEMS
from tests.unit.systems.test_detectors import write_class


@pytest.mark.parametrize("model", [entry.name for entry in entries()])
def test_a_detector_trains_decides_and_predicts_what_it_was_scored(model: str, tmp_path: Path) -> None:
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
