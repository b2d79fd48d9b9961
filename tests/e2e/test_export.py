"""Exported files, run without this library and without torch, give the detector's own scores, maps and decisions."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomaly_lib import load
from anomaly_lib.backbones.weights import file_sha256
from anomaly_lib.data.demo.items import render
from anomaly_lib.evaluation.graph import load_exported
from anomaly_lib.models.detectors.registry import entries
from anomaly_lib.systems.registry import SYSTEMS
from tests.support.alone import run_alone

ROOT = Path(__file__).resolve().parent.parent.parent
SPEC = importlib.util.spec_from_file_location("export_script", ROOT / "scripts" / "export.py")
assert SPEC is not None
assert SPEC.loader is not None
SCRIPT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SCRIPT)

LARGE = {"image_size": [96, 96], "tile": 64}
OPTIONS: dict[str, dict[str, Any]] = {
    "promptad": {"task": "seg"},
    "draem": {"model": "draem", "epochs": 8},  # after one epoch nearly all pictures have one score
    "draem_sevnet": {"model": "draem_sevnet", "epochs": 8},
    "tiled": {"model": "patchcore", **LARGE},
    "tiled promptad": {"task": "cls", "shot": 2, "keep_aspect": True, **LARGE},
    "tiled sowa": {"keep_aspect": True, **LARGE},
}


def train(system: str, folder: Path) -> Path:
    """The checkpoint of a tiny run of a system, or of a registered detector."""
    name = next((one for one in ("promptad", "sowa") if one in system), "detectors")
    own = OPTIONS.get(system, {} if name == system else {"model": system})
    result = SYSTEMS[name].train(SYSTEMS[name].tiny(output_dir=str(folder), **own))
    assert result.checkpoint is not None
    return result.checkpoint


def pictures(folder: Path, count: int) -> list[str]:
    """Files of drawn parts, good and damaged, of many sizes and shapes; JPEG among them, and one that is turned."""
    folder.mkdir()
    rng, files = np.random.default_rng(0), []
    drawn = [one for kind in ("good", "cut", "hole", "stain") for one in render("woven", kind, 5, size=128)[0]]
    for index in range(count):
        pixels = np.roll(drawn[index % len(drawn)], (7 * index, 5 * index), axis=(0, 1))
        height, width = rng.integers(33, 129, 2)
        path = folder / f"{index:03d}{'.jpg' if index % 3 == 0 else '.png'}"
        exif = Image.Exif()
        if index == 1:
            exif[0x0112] = 6
        Image.fromarray(pixels[:height, : width // (3 if index % 7 == 0 else 1)]).save(path, exif=exif)
        files.append(str(path))
    return files


EXPORTED = dict.fromkeys(["sowa", *OPTIONS, *(entry.name for entry in entries() if not entry.transductive)])
QUICK = ("patchcore",)


@pytest.mark.parametrize(
    "system", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EXPORTED]
)
def test_one_file_decides_as_the_detector_does(system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the file's bytes alone: no flipped decision on 200 pictures, scores to 1e-4."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from anomaly_lib.evaluation import runner

    checkpoint = train(system, tmp_path)
    assert SCRIPT.main(["--checkpoint", str(checkpoint), "--repeats", "1", "--tolerance", "1e-4"]) == 0
    assert "milliseconds" in capsys.readouterr().out
    path = checkpoint.parent / "export" / f"{checkpoint.stem}.onnx"
    detector, files = load(checkpoint), pictures(tmp_path / "parts", 200)
    found, wanted = run_alone(path, files, tmp_path), detector.predict(files)
    np.testing.assert_allclose(found["score"], wanted.score.numpy(), rtol=1e-4)
    np.testing.assert_allclose(found["map"], wanted.map.numpy(), rtol=1e-4, atol=1e-4 * float(wanted.map.abs().max()))
    assert len(np.unique(found["score"])) > 100  # the input matters
    assert ("anomalous" in found) == (wanted.anomalous is not None)
    if wanted.anomalous is not None:
        np.testing.assert_array_equal(found["anomalous"], wanted.anomalous.numpy())
    if wanted.p_value is not None:
        np.testing.assert_allclose(found["p_value"], wanted.p_value.numpy())
    three = [np.asarray(Image.open(file).convert("RGB").resize((70, 60))) for file in files[:3]]
    together = load_exported(path)(np.stack(three))  # any number of pictures
    np.testing.assert_allclose(together["score"], detector.predict(three).score.numpy(), rtol=1e-4)

    about = json.loads(path.with_suffix(".json").read_text())
    assert about == runner.Detector(path).about  # the file itself holds what stands beside it
    assert about["checkpoint"] == {"name": checkpoint.name, "sha256": file_sha256(checkpoint)}
    assert about["commit"]
    assert about["classes"] == detector.class_names
    assert about["outputs"] == list(found)
    assert about["cell"] == wanted.cell
    if detector.decision is None:
        assert about["decision"] is None
    else:
        assert about["alpha"] == detector.decision.false_alarms
        assert about["decision"].pop("how")["anomalous"] == "score >= threshold"
        assert about["decision"] == detector.decision.plain()


def test_a_torch_file_takes_the_same_pictures(tmp_path: Path) -> None:
    checkpoint = train("padim", tmp_path)
    out = tmp_path / "out"
    words = ["--checkpoint", str(checkpoint), "--repeats", "1", "--format", "torch", "--output", str(out)]
    assert SCRIPT.main([*words, "--tolerance", "1e-6"]) == 0
    path, detector = out / f"{checkpoint.stem}.pt2", load(checkpoint)
    run = load_exported(path)
    for height, width in ((60, 70), (140, 40)):
        images = np.random.default_rng(height).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
        found, wanted = run(images), detector.predict(list(images))
        np.testing.assert_allclose(found["score"], wanted.score.numpy(), rtol=1e-6)
        np.testing.assert_array_equal(found["anomalous"], wanted.anomalous.numpy())
    assert json.loads(path.with_suffix(".json").read_text())["input"]["shape"] == ["batch", "height", "width", 3]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["fp16"], ["int8"], ["int8", "--calibration"]])
def test_less_precision_says_what_it_costs(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is smaller, its loss is measured on the test images, printed and kept."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    checkpoint, files = train("padim", tmp_path), pictures(tmp_path / "parts", 12)
    given = ["--checkpoint", str(checkpoint), "--repeats", "1"]
    assert SCRIPT.main(given) == 0
    normal = [str(tmp_path / "parts")] if words[-1] == "--calibration" else []
    assert SCRIPT.main([*given, "--precision", *words, *normal]) == 0
    said = capsys.readouterr().out
    small = checkpoint.parent / "export" / f"{checkpoint.stem}_{words[0]}.onnx"
    assert small.stat().st_size < 0.75 * small.with_name(f"{checkpoint.stem}.onnx").stat().st_size
    measured = json.loads(small.with_suffix(".json").read_text())["measured"]
    assert abs(measured["auroc"] - measured["auroc_of_fp32"]) < 0.1
    assert f"AUROC {measured['auroc']:.4f}, in fp32 {measured['auroc_of_fp32']:.4f}" in said
    found = run_alone(small, files, tmp_path)["score"]
    wanted = load(checkpoint).predict(files).score.numpy()
    assert np.corrcoef(found, wanted)[0, 1] > 0.95
    assert not np.array_equal(found, wanted)


@pytest.mark.slow
def test_openvino_answers_the_same(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    checkpoint = train("padim", tmp_path)
    words = ["--checkpoint", str(checkpoint), "--repeats", "1", "--format", "openvino", "--tolerance", "1e-3"]
    assert SCRIPT.main(words) == 0


@pytest.mark.slow
def test_a_detector_of_several_classes_is_exported_for_one_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = SYSTEMS["sowa"].tiny(test_classes=["capsule", "grid"], shot=2, output_dir=str(tmp_path))
    checkpoint = SYSTEMS["sowa"].train(args).checkpoint
    words = ["--checkpoint", str(checkpoint), "--repeats", "1", "--format", "torch", "--tolerance", "1e-4"]
    assert SCRIPT.main(words) == 2
    assert "remembers capsule, grid: say which with --obj" in capsys.readouterr().err
    assert SCRIPT.main([*words, "--obj", "nut"]) == 2
    assert "--obj nut: this detector remembers capsule, grid" in capsys.readouterr().err
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    found = {}
    for name in ("capsule", "grid"):
        out = tmp_path / name
        assert SCRIPT.main([*words, "--obj", name, "--output", str(out)]) == 0
        path = out / "checkpoint.pt2"
        found[name], wanted = load_exported(path)(image[None]), load(checkpoint).predict(image, class_name=name)
        np.testing.assert_allclose(found[name]["score"], wanted.score.numpy(), rtol=1e-4)
        assert json.loads(path.with_suffix(".json").read_text())["classes"] == [name]
    assert found["capsule"]["score"] != found["grid"]["score"]


def test_what_cannot_be_exported_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert SCRIPT.main([]) == 2
    assert SCRIPT.main(["--checkpoint", str(tmp_path / "none.pt")]) == 2
    assert "none.pt" in capsys.readouterr().err
    assert SCRIPT.main(["--checkpoint", "x.pt", "--format", "torch", "--precision", "int8"]) == 2
    assert "precision" in capsys.readouterr().err


def test_the_runner_is_short() -> None:
    """Sixty lines that a person reads before it goes onto the line, and nothing of ours or of torch."""
    text = (ROOT / "anomaly_lib" / "evaluation" / "runner.py").read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line.strip()]) <= 60
    assert "import torch" not in text
    assert "from anomaly_lib" not in text


@pytest.mark.parametrize(("mode", "message"), [("I;16", "more than 8 bits"), (None, "cannot identify")])
def test_the_runner_refuses_what_the_file_does_not_take(mode: str | None, message: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from anomaly_lib.evaluation import runner

    path = tmp_path / "one.png"
    if mode is None:
        path.write_bytes(b"no picture")
    else:
        Image.fromarray(np.full((4, 4), 300, dtype=np.uint16)).save(path)
    with pytest.raises((ValueError, OSError), match=message):
        runner.read(path)
