"""Causal-FiLM as one file from features: scores, p-values and decisions of `predict`, without torch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly_lib import load
from anomaly_lib.__main__ import main
from anomaly_lib.evaluation.graph import load_exported
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld.data.manifest import RawRun, WeldRun
from tests.support.alone import run_alone


def trained(folder: Path, **options: Any) -> Path:
    result = SYSTEMS["causal_film"].train(SYSTEMS["causal_film"].tiny(output_dir=str(folder), **options))
    assert result.checkpoint is not None
    return result.checkpoint


def without(run: WeldRun, *parts: str) -> WeldRun:
    """A drawn run that lacks some recordings."""

    def render(wanted: Any) -> RawRun:
        assert run.render is not None
        return replace(run.render(wanted), **dict.fromkeys(parts))

    name = f"{run.run_id}-{'-'.join(parts)}"
    return WeldRun(
        name, run.class_name, run.split, Path(name), facts={**run.facts, "without": str(parts)}, render=render
    )


def runs_of(detector: Any) -> list[WeldRun]:
    """The drawn test runs, and the first one without each of its recordings."""
    runs = list(detector.items().items)
    return [*runs, *(without(runs[0], part) for part in ("video", "audio", "sensors"))]


def test_a_program_from_features_decides_as_the_detector_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained(tmp_path / "run")
    path = tmp_path / "out" / "v5.pt2"
    words = ["export", "--checkpoint", str(checkpoint), "--output", str(path), "--repeats", "1", "--tolerance", "1e-4"]
    assert main(words) == 0
    assert "milliseconds a sample" in capsys.readouterr().out
    detector = load(checkpoint)
    runs = runs_of(detector)
    given, wanted = detector.feature_graph().of(runs), detector.predict(runs)
    found = load_exported(path)(*(one.numpy() for one in given.values()))
    np.testing.assert_allclose(found["score"], wanted.score.numpy(), rtol=1e-4)
    np.testing.assert_array_equal(found["anomalous"], wanted.anomalous.numpy())
    assert len(np.unique(found["score"].round(5))) == len(runs)  # each recording matters
    about = json.loads(path.with_suffix(".json").read_text())
    assert list(about["inputs"]) == list(given)
    assert about["inputs"]["sensors"]["shape"] == ["batch", 16, 6]

    blind = {name: one.clone() for name, one in given.items()}
    blind["views"][0] = False  # nothing to judge
    found = load_exported(path)(*(one.numpy() for one in blind.values()))
    assert np.isnan(found["score"][0])
    assert np.isnan(found["p_value"][0])
    assert np.isfinite(found["score"][1:]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"sensor_steps": 128, "demo_good": 10, "demo_defects": 4},
        {"modulator": "gru"},
        {"modulator": "transformer"},
        {"decoder": "linear_attention"},
        {"split_film": True, "view_pool": "mean", "preset": "doc"},
        {"align": True, "learning_rate": 0.01},
    ],
)
def test_one_file_without_torch(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    checkpoint, path = trained(tmp_path / "run", **options), tmp_path / "v5.onnx"
    words = ["export", "--checkpoint", str(checkpoint), "--output", str(path), "--repeats", "1", "--tolerance", "1e-4"]
    assert main(words) == 0
    detector = load(checkpoint)
    runs = runs_of(detector)
    given, files = detector.feature_graph().of(runs), []
    for index in range(len(runs)):
        files.append(str(tmp_path / f"{index}.npz"))
        np.savez(files[-1], **{name: one[index].numpy() for name, one in given.items()})
    found, wanted = run_alone(path, files, tmp_path), detector.predict(runs)
    np.testing.assert_allclose(found["score"], wanted.score.numpy(), rtol=1e-4)
    np.testing.assert_array_equal(found["anomalous"], wanted.anomalous.numpy())
    if wanted.p_value is not None:
        np.testing.assert_allclose(found["p_value"], wanted.p_value.numpy())
    together = load_exported(path)(*(one.numpy() for one in given.values()))
    np.testing.assert_allclose(together["score"], wanted.score.numpy(), rtol=1e-4)


def test_what_has_no_graph_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = SYSTEMS["video_ae"].tiny(output_dir=str(tmp_path / "run"))
    words = ["export", "--checkpoint", str(SYSTEMS["video_ae"].train(args).checkpoint)]
    assert main([*words, "--output", str(tmp_path / "v.onnx")]) == 2
    assert "video_ae has no graph of pictures or features; it cannot be exported" in capsys.readouterr().err
    assert main([*words, "--output", "v.onnx", "--format", "torch"]) == 2
    assert "--format torch: --output-dir v.onnx says onnx" in capsys.readouterr().err
