"""`calibrate` gives any checkpoint a decision from normal files, and says what is wrong with them."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_lib import load
from anomaly_lib.__main__ import main
from anomaly_lib.data.demo.items import demo_items, render
from anomaly_lib.detect.decision import Decision
from anomaly_lib.engine.checkpoint import save_checkpoint
from anomaly_lib.files import read_json
from anomaly_lib.systems.registry import SYSTEMS


@pytest.fixture(scope="module")
def undecided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PatchCore checkpoint without a decision, as conversions make them."""
    folder = tmp_path_factory.mktemp("run")
    result = SYSTEMS["detectors"].train(SYSTEMS["detectors"].tiny(output_dir=str(folder), obj="capsule"))
    checkpoint = SYSTEMS.read(result.checkpoint)
    extra = {**checkpoint.extra, "decision": None}
    return save_checkpoint(folder / "bare.pt", {**checkpoint.content, "extra": extra}, system="detectors")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Normal images (19) and cracked ones."""
    folder = tmp_path_factory.mktemp("parts")
    write(folder / "good", render("capsule", "good", 19, split="more", size=64)[0])
    write(folder / "bad", render("capsule", "crack", 3, size=64)[0])
    return folder


def write(folder: Path, pictures: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def calibrate(checkpoint: Path, normal: Path, *more: str) -> int:
    return main(["calibrate", "--checkpoint", str(checkpoint), "--normal", str(normal), *more])


def test_train_calibrate_predict(
    undecided: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--checkpoint", str(undecided), str(parts), "--out", str(tmp_path / "before")]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "no decision" in first
    assert "calibrate --checkpoint FILE --normal FOLDER" in first
    assert (tmp_path / "before" / "predictions.csv").read_text().startswith("path,score,error\n")

    before, decided = undecided.read_bytes(), tmp_path / "decided.pt"
    assert calibrate(undecided, parts / "good", "--output", str(decided)) == 0
    said = capsys.readouterr().out
    assert "at most 5.00% false alarms, from 19 normal files given to calibrate" in said
    assert not any(word in said for word in ("trained on", "drift", "skipped"))
    assert undecided.read_bytes() == before
    detector = load(decided)
    found = load(undecided).predict(sorted((parts / "good").iterdir()))
    wanted = Decision.promising(found.score, 0.05, of="normal files given to calibrate", maxima=found.map.amax((1, 2)))
    assert detector.decision == wanted
    content, other = (torch.load(path, weights_only=True) for path in (undecided, decided))
    assert set(content) == set(other)
    for name, value in content["model"].items():
        assert torch.equal(value, other["model"][name])

    assert main(["predict", "--checkpoint", str(decided), str(parts), "--out", str(tmp_path / "after")]) == 0
    assert "no decision" not in capsys.readouterr().out
    with (tmp_path / "after" / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["path", "score", "threshold", "p_value", "anomalous", "area", "error"]
    assert all(row[name] for row in rows for name in list(row)[:-1])
    normal = [row for row in rows if Path(row["path"]).parent.name == "good"]
    assert [row["anomalous"] for row in normal] == ["0"] * 19  # the largest of them is itself no alarm
    assert min(float(row["p_value"]) for row in normal) == pytest.approx(2 / 20)
    again = ["predict", "--checkpoint", str(decided), str(parts), "--out", str(tmp_path / "rate")]
    assert main([*again, "--false-alarms", "0.2"]) == 0
    with (tmp_path / "rate" / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sum(int(row["anomalous"]) for row in rows if Path(row["path"]).parent.name == "good") == 3
    assert float(rows[0]["threshold"]) == wanted.at_rate(0.2).threshold

    argv = ["evaluate", "--checkpoint", str(decided), "--false-alarms", "0.2", "--no-figures", "--bootstrap", "0"]
    assert main([*argv, "--output", str(tmp_path / "tables")]) == 0
    assert "(promised 20.0%), found " in capsys.readouterr().out
    record = read_json(tmp_path / "tables" / "metrics.json")["runs"][0]["decision"]
    assert Decision.from_plain(record) == wanted.at_rate(0.2)
    assert "capsule,crack,found," in (tmp_path / "tables" / "decisions.csv").read_text()


def test_a_defective_part_among_the_normal_files_is_named(
    undecided: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `calibrate`, and by `fit`, whose own normal images set the decision."""
    mixed = write(tmp_path / "parts" / "train" / "good", render("capsule", "good", 11, split="more", size=64)[0])
    Image.new("RGB", (64, 64), (255, 0, 255)).save(mixed / "odd.png")
    asked = "; good/odd.png scores far above the others: is it normal?)"
    assert calibrate(undecided, mixed, "--output", str(tmp_path / "decided.pt")) == 0
    assert asked in capsys.readouterr().out
    write(tmp_path / "parts" / "test" / "good", render("capsule", "good", 2, size=64)[0])
    small = ["--backbone", "demo-clip", "--image-size", "64", "--no-figures", "--output-dir", str(tmp_path / "run")]
    assert main(["fit", str(tmp_path / "parts"), "--model", "fewshot", *small]) == 0
    assert asked in capsys.readouterr().out


def test_in_place_and_too_few(undecided: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.pt"
    own.write_bytes(undecided.read_bytes())
    (parts / "good" / "0 odd.png").write_text("no image")
    assert calibrate(own, parts / "good", "--false-alarms", "0.01") == 2
    assert own.read_bytes() == undecided.read_bytes()
    assert "0 odd.png" in capsys.readouterr().err
    assert calibrate(own, parts / "good", "--false-alarms", "0.01", "--on-error", "skip") == 0
    (parts / "good" / "0 odd.png").unlink()
    said = capsys.readouterr().out
    assert "skipped: " in said
    assert (
        "false_alarms=0.01: 19 scores of normal data can promise 5.00% at least, which is used (99 are needed)" in said
    )
    assert load(own).decision.false_alarms == 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["own.pt"]  # no leftovers of the atomic write


def test_files_of_the_training_are_named(undecided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By what is in them: other names, another place."""
    trained = [item.image for item in demo_items(categories=["capsule"]) if item.split == "train"]
    folder = write(tmp_path / "elsewhere", np.stack(trained[:3]))
    write(tmp_path / "elsewhere" / "new", render("capsule", "good", 2, split="more", size=256)[0])
    assert calibrate(undecided, folder, "--output", str(tmp_path / "x.pt")) == 0
    said = capsys.readouterr().out
    assert "3 of 5 normal files are those it was trained on" in said
    assert "elsewhere/000.png" in said


def test_a_change_of_brightness_is_said(
    undecided: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Along the names of the normal files, against the stored decision, and while a folder is watched."""
    pictures = render("capsule", "good", 60, split="more", size=64)[0].astype(float)
    pictures *= np.linspace(1, 0.3, 60)[:, None, None, None]
    folder = write(tmp_path / "dusk", pictures.astype(np.uint8))
    assert calibrate(undecided, folder, "--output", str(tmp_path / "x.pt")) == 0
    assert "drift: the scores of the normal files rise along their order" in capsys.readouterr().out
    assert calibrate(tmp_path / "x.pt", parts / "good") == 0
    assert "the normal files score lower than the normal data of the stored decision" in capsys.readouterr().out
    pictures = render("capsule", "good", 120, split="line", size=64)[0].astype(float)
    pictures *= np.linspace(1, 0.7, 120)[:, None, None, None]
    folder = write(tmp_path / "line", pictures.astype(np.uint8))
    argv = ["predict", "--checkpoint", str(tmp_path / "x.pt"), str(folder), "--out", str(tmp_path / "out")]
    assert main([*argv, "--watch", "--idle-seconds", "0.2", "--poll-seconds", "0.05", "--no-overlays"]) == 0
    said = capsys.readouterr().out
    assert said.count("drift: after ") == 1
    with (tmp_path / "out" / "predictions.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 120


def test_what_cannot_be_calibrated_says_so(
    undecided: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate"]) == 2
    assert "--normal FOLDER" in capsys.readouterr().err
    assert calibrate(undecided, tmp_path / "nowhere") == 2
    assert "nowhere: no such image" in capsys.readouterr().err
    assert calibrate(tmp_path / "none.pt", parts) == 2
    assert "none.pt: no such file, and no checkpoint" in capsys.readouterr().err
    assert calibrate(undecided, parts, "--obj", "nut") == 2
    assert "--obj nut: has no meaning for a trained detectors detector" in capsys.readouterr().err
    assert calibrate(undecided, parts, "--false-alarms", "0.7") == 2
    assert "--false-alarms 0.7: must be at most 0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_weld_detectors_take_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from anomaly_lib.systems.weld.data.demo import write_weld_demo

    write_weld_demo(tmp_path / "welds", seed=3)
    result = SYSTEMS["video_ae"].train(SYSTEMS["video_ae"].tiny(output_dir=str(tmp_path / "run")))
    assert calibrate(result.checkpoint, tmp_path / "welds", "--output", str(tmp_path / "x.pt")) == 0
    assert "false alarms, from " in capsys.readouterr().out
    decision = load(tmp_path / "x.pt").decision
    assert decision.origin == "normal files given to calibrate"
    assert decision.map_threshold is None
