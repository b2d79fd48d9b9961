"""evaluate.py and `predict` on a checkpoint trained a moment ago, through their real entry points."""

import csv
import importlib.util
import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_lib.__main__ import main
from anomaly_lib.data.demo.items import render
from anomaly_lib.files import read_json
from anomaly_lib.systems.registry import SYSTEMS

ROOT = Path(__file__).resolve().parent.parent.parent
SPEC = importlib.util.spec_from_file_location("evaluate_script", ROOT / "evaluate.py")
assert SPEC is not None
assert SPEC.loader is not None
SCRIPT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SCRIPT)
evaluate = SCRIPT.main


def predict(argv: list[str]) -> int:
    return main(["predict", *argv])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    SYSTEMS["promptad"].train(SYSTEMS["promptad"].tiny(output_dir=str(folder), task="seg", figures=False))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    pixels, _ = render("capsule", "crack", 5, size=64)
    for index, image in enumerate(pixels):
        path = folder / ("inner" if index > 2 else ".") / f"{index} ü.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_reaches_the_number_training_printed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--checkpoint", str(run), "--output", str(tmp_path), "--report", str(tmp_path / "r"), "--verbose"]
    assert evaluate([*argv, "--bootstrap", "50"]) == 0
    out = capsys.readouterr().out
    assert "equals what training recorded" in out
    recorded = read_json(run / "run.json")["metrics"]
    found = read_json(tmp_path / "metrics.json")["runs"][0]
    for name, value in found["metrics"].items():
        assert value == pytest.approx(recorded[name], abs=1e-6), name
    table = json.loads((tmp_path / "table.json").read_text())["rows"][0]
    assert table["auroc"] == pytest.approx(recorded["image_auroc"], abs=1e-6)
    assert table["pixel_aupro"] == pytest.approx(recorded["pixel_aupro"], abs=1e-6)
    assert len(rows(tmp_path)) == 50
    assert out.count("score=") == 50
    for name in ("histogram", "roc_pr", "aupro", "failures", "overlays"):
        assert (tmp_path / "figures" / f"{name}.svg").stat().st_size > 1000, name
    page = (tmp_path / "r" / "index.html").read_text(encoding="utf-8")
    names = set(re.findall(r"[a-z_]+/\d+\.png", page))
    assert len(names) == 50, sorted(names)[:3]


def test_two_runs_in_one_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "--checkpoint",
        str(run),
        "--compare",
        str(run / "checkpoint.pt"),
        "--output",
        str(tmp_path),
        "--no-figures",
    ]
    assert evaluate([*argv, "--policy", "f1", "--bootstrap", "0"]) == 0
    assert "oracle" in capsys.readouterr().out
    assert len({row["run"] for row in rows(tmp_path)}) == 2


@pytest.mark.parametrize("content", ["foreign", "text", "missing"])
def test_foreign_files_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    path = tmp_path / "model.pt"
    if content == "foreign":
        torch.save({"state_dict": {}}, path)
    elif content == "text":
        path.write_text("hello")
    assert evaluate(["--checkpoint", str(path)]) == 2
    error = capsys.readouterr().err
    assert "model.pt" in error
    assert error.count("\n") == 1


def test_predict_scores_and_draws(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--checkpoint", str(run / "checkpoint.pt"), str(images), "--out", str(tmp_path), "--batch-size", "2"]
    assert predict(argv) == 0
    assert "5 images scored" in capsys.readouterr().out
    table = rows(tmp_path)
    assert [Path(row["path"]).name for row in table] == [f"{i} ü.png" for i in range(5)]
    detector = SYSTEMS.load(run / "checkpoint.pt")
    pixels = np.asarray(Image.open(images / "1 ü.png"))
    assert float(table[1]["score"]) == pytest.approx(float(detector.predict([pixels]).score[0]), abs=1e-5)
    for row in table:
        assert int(row["anomalous"]) == (float(row["score"]) >= detector.decision.threshold)
    assert (tmp_path / "overlays" / "inner" / "3 ü.png.png").is_file()
    overlays = sorted((tmp_path / "overlays").rglob("*.png"))
    assert len(overlays) == 5
    assert len({path.read_bytes() for path in overlays}) == 5
    assert predict(argv) == 0  # nothing is done twice
    assert "0 images scored" in capsys.readouterr().out
    assert rows(tmp_path) == table
    torn = (tmp_path / "predictions.csv").read_bytes()[:-9]
    (tmp_path / "predictions.csv").write_bytes(torn)  # killed in the middle of the last row
    assert predict(argv) == 0
    assert "1 images scored" in capsys.readouterr().out
    assert rows(tmp_path) == table
    assert predict([*argv, "--threshold", "0.1"]) == 2
    assert "another checkpoint or threshold" in capsys.readouterr().err


def test_predict_skips_or_fails(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "in" / "0 broken.png"
    broken.parent.mkdir()
    broken.write_bytes(b"nonsense")
    argv = ["--checkpoint", str(run / "checkpoint.pt"), str(broken), f"{images}/*.png", "--no-overlays"]
    assert predict([*argv, "--out", str(tmp_path / "a")]) == 2
    assert "0 broken.png" in capsys.readouterr().err
    assert predict([*argv, "--out", str(tmp_path / "b"), "--on-error", "skip"]) == 0
    assert "3 images scored" in capsys.readouterr().out
    assert "not an image" in rows(tmp_path / "b")[0]["error"]
    assert predict(["--checkpoint", str(run / "checkpoint.pt"), str(tmp_path / "nowhere")]) == 2
    assert "no such image" in capsys.readouterr().err
    assert predict([*argv, "--out", str(tmp_path / "c"), "--device", "cuda:99"]) == 2
    assert "--device cuda:99" in capsys.readouterr().err


def test_predict_watches_a_folder_that_fills(run: Path, images: Path, tmp_path: Path) -> None:
    """Files that arrive in two pieces are read whole; results below the watched folder are not taken for input."""
    watched = tmp_path / "watched"
    watched.mkdir()
    contents = [path.read_bytes() for path in sorted(images.rglob("*.png"))]

    def camera() -> None:
        for index, content in enumerate(contents):
            path = watched / f"{index}.png"
            path.write_bytes(content[: len(content) // 2])
            time.sleep(0.02)
            with path.open("ab") as stream:
                stream.write(content[len(content) // 2 :])
            time.sleep(0.1)

    thread = threading.Thread(target=camera)
    thread.start()
    out = watched / "out"
    argv = ["--checkpoint", str(run / "checkpoint.pt"), str(watched), "--out", str(out), "--watch"]
    assert predict([*argv, "--poll-seconds", "0.1", "--idle-seconds", "3"]) == 0
    thread.join()
    assert sorted(Path(row["path"]).name for row in rows(out)) == [f"{i}.png" for i in range(5)]
    assert all(row["error"] == "" for row in rows(out))


@pytest.mark.slow
def test_five_thousand_predictions_in_bounded_memory(run: Path, tmp_path: Path) -> None:
    import resource

    folder = tmp_path / "in"
    folder.mkdir()
    pixels, _ = render("capsule", "good", 8, size=256)
    for index in range(5000):
        Image.fromarray(pixels[index % 8]).save(folder / f"{index:05d}.png", compress_level=0)
    argv = ["--checkpoint", str(run / "checkpoint.pt"), "--no-overlays"]
    assert predict([*argv, f"{folder}/000*.png", "--out", str(tmp_path / "a")]) == 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert predict([*argv, str(folder), "--out", str(tmp_path / "b")]) == 0
    assert len(rows(tmp_path / "b")) == 5000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 60, f"{grown:.0f} MiB more for 5,000 images than for 100"
