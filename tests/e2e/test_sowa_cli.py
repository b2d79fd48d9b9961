"""Every SOWA command of the user's documents, at tiny scale: training, evaluation, sweeps, the five usual changes."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anomaly_lib
import evaluate
from anomaly_lib.data import open_dataset
from anomaly_lib.detect.choice import Choice
from anomaly_lib.errors import UserError
from anomaly_lib.systems.sowa.detector import SowaDetector
from anomaly_lib.systems.sowa.fit import TrainingSet
from anomaly_lib.systems.sowa.options import Args, tiny
from anomaly_lib.systems.sowa.train import best_epochs, train
from scripts.sowa import make_meta, train_sowa

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--backbone", "tiny-clip", "--weights", "random", "--cache", "ram", "--epochs", "2", "--device", "cpu"]
CLASSES = {"bolt": 0, "nut": 1, "ring": 2}


def picture(kind: int, number: int, *, scratched: bool) -> tuple[np.ndarray, np.ndarray]:
    """A striped 64x64 picture, with a bright square where it is scratched."""
    generator = np.random.default_rng((kind, number, scratched))
    rows, columns = np.mgrid[:64, :64]
    wave = np.sin((rows * (kind + 1) + columns * (3 - kind)) / 5 + number) * 40 + 110
    image = np.repeat((wave + generator.normal(0, 5, wave.shape))[..., None], 3, axis=2)
    mask = np.zeros((64, 64), dtype=bool)
    if scratched:
        top, left = generator.integers(4, 40, 2)
        mask[top : top + 16, left : left + 16] = True
        image[mask] = 250
    return image.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes in the MVTec layout."""
    root = tmp_path_factory.mktemp("parts")
    for name, kind in CLASSES.items():
        for folder, count in (("train/good", 4), ("test/good", 5), ("test/scratch", 5)):
            (root / name / folder).mkdir(parents=True)
            for number in range(count):
                image, mask = picture(kind, number + 100 * folder.startswith("test"), scratched="scratch" in folder)
                Image.fromarray(image).save(root / name / folder / f"{number:03d}.png")
                if "scratch" in folder:
                    truth = root / name / "ground_truth" / "scratch"
                    truth.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask.astype(np.uint8) * 255).save(truth / f"{number:03d}_mask.png")
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Command 10: training, here on two classes; zero-shot on the third."""
    run = tmp_path_factory.mktemp("sowa") / "run"
    flags = ["--dataset", "mvtec", "--data-path", str(data), "--test-classes", "ring", "--ablate-stages"]
    flags += ["--select", "last"]
    assert train_sowa.main([*FAST, *flags, "--output-dir", str(run)]) == 0
    return run


def test_training_leaves_everything(trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["train_classes"] == ["bolt", "nut"]
    assert record["test_classes"] == ["ring"]
    ranking = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro")
    assert set(record["metrics"]) == set(ranking)  # zero-shot: nothing decides
    assert "decision: none: no normal data of this class; give normal_data=" in (trained / "log.txt").read_text()
    for name in ("classes.csv", "stages.csv", "epochs.csv", "maps.png", "stages.png", "metrics.jsonl", "checkpoint.pt"):
        assert (trained / name).is_file(), name
    assert len((trained / "stages.csv").read_text().splitlines()) == 1 + 4 + 1
    assert record["seconds_uncached"] > record["seconds_epoch"] > 0
    losses = [json.loads(line)["loss"] for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert losses[1] < losses[0]
    saved = torch.load(trained / "checkpoint.pt", weights_only=True)["model"]
    assert not any("clip" in name or "resblocks" in name for name in saved)


def test_the_same_command_again_says_done(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "checkpoint.pt").stat().st_mtime_ns
    flags = ["--dataset", "mvtec", "--data-path", str(data), "--test-classes", "ring", "--ablate-stages"]
    flags += ["--select", "last"]
    capsys.readouterr()
    assert train_sowa.main([*FAST, *flags, "--output-dir", str(trained)]) == 0
    assert (trained / "checkpoint.pt").stat().st_mtime_ns == before
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"already done: {trained}")
    assert f"checkpoint: {trained / 'checkpoint.pt'}" in said
    metrics = json.loads((trained / "run.json").read_text())["metrics"]
    assert said[1].startswith(f"result: image_auroc {metrics['image_auroc']:.4f}")
    log = (trained / "log.txt").read_text()
    assert "epoch 1/2: loss " in log
    assert "epoch 2/2: loss " in log
    assert log.count("checkpoint: ") == 2  # at the end of training, and now


def test_interrupted_training_ends_with_the_same_weights(trained: Path, data: Path, tmp_path: Path) -> None:
    flags = [*FAST, "--dataset", "mvtec", "--data-path", str(data), "--test-classes", "ring", "--no-figures"]
    flags += ["--ablate-stages", "--select", "last", "--output-dir", str(tmp_path / "run")]
    assert train_sowa.main([*flags, "--epochs", "1", "--schedule", "constant"]) == 0
    assert train_sowa.main([*flags, "--epochs", "2", "--schedule", "constant", "--resume", "latest"]) == 0
    resumed = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    whole = torch.load(trained / "checkpoint.pt", weights_only=True)["model"]
    assert all(value.equal(whole[name]) for name, value in resumed.items())


def test_as_many_epochs_as_help_classes_left_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dataset", "mvtec", "--data-path", str(data), "--test-classes", "ring", "--no-figures"]
    assert train_sowa.main([*FAST, *flags, "--epochs", "3", "--output-dir", str(tmp_path / "a")]) == 0
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    curves = record["transfer"]
    assert sorted(curves) == ["bolt", "nut"]  # never the tested class
    assert [len(curve) for curve in curves.values()] == [4, 4]
    means = [sum(values) / 2 for values in zip(*curves.values(), strict=True)]
    saved = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)
    assert len(saved["history"]) == means.index(max(means))
    assert best_epochs({"one": [0.5, 0.7, 0.7], "two": [0.5, 0.6, 0.6]}) == 1
    assert best_epochs({"one": [0.5, 0.4], "two": [0.5, 0.5]}) == 0
    assert "training classes left out in turn" in capsys.readouterr().out
    alone = [*FAST, *flags, "--train-classes", "nut", "--epochs", "1", "--output-dir", str(tmp_path / "b")]
    assert train_sowa.main(alone) == 0
    assert "one training class (nut)" in capsys.readouterr().out


def test_torchrun_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train_sowa.main(["--output-dir", str(tmp_path / "r")]) == 2
    assert "sweep.py --gpus" in capsys.readouterr().err


def test_evaluate_zero_shot_and_few_shot(trained: Path, data: Path, tmp_path: Path) -> None:
    """Command 11, on the run's own classes and on another folder."""
    trained_metrics = json.loads((trained / "run.json").read_text())["metrics"]
    flags = ["--checkpoint", str(trained), "--bootstrap", "0", "--no-figures"]
    assert evaluate.main([*flags, "--output-dir", str(tmp_path / "own")]) == 0
    (entry,) = json.loads((tmp_path / "own" / "metrics.json").read_text())["runs"]
    assert entry["decision"] is None
    own = entry["metrics"]
    assert all(own[name] == pytest.approx(trained_metrics[name]) for name in own)
    few = [*flags, "--data-path", str(data), "--k-shot", "2", "--output-dir", str(tmp_path / "few")]
    assert evaluate.main(few) == 0
    found = json.loads((tmp_path / "few" / "metrics.json").read_text())["runs"][0]
    assert found["decision"] is None
    assert found["samples"] == 30
    assert found["facts"]["k"] == 2
    assert found["metrics"]["pixel_auroc"] > own["pixel_auroc"]
    one = [*flags, "--data-path", str(data), "--obj", "nut", "--output-dir", str(tmp_path / "one")]
    assert evaluate.main(one) == 0
    assert json.loads((tmp_path / "one" / "metrics.json").read_text())["runs"][0]["samples"] == 10


def test_few_shot_detector_scores_single_images(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--dataset", "mvtec", "--data-path", str(data), "--test-classes", "ring", "--k-shot", "4"]
    assert train_sowa.main([*FAST, *flags, "--fast-dev-run", "--no-figures", "--output-dir", str(run)]) == 0
    detector = anomaly_lib.load(run / "checkpoint.pt")
    assert isinstance(detector, SowaDetector)
    assert detector.decision is not None
    good = [picture(2, n, scratched=False)[0] for n in range(100, 105)]
    bad = [picture(2, n, scratched=True) for n in range(100, 105)]
    scores = detector.predict([*good, *(image for image, _ in bad)]).score
    alone = detector.predict(bad[3][0])
    torch.testing.assert_close(alone.score[0], scores[8], rtol=1e-4, atol=1e-5)
    assert float(scores[5:].min()) > float(scores[:5].max())
    heat = alone.map[0]
    mask = torch.from_numpy(bad[3][1])
    assert float(heat[mask].mean()) > float(heat[~mask].mean())
    assert alone.anomalous.tolist() == [bool(alone.score[0] >= detector.decision.threshold)]
    assert detector.decision.source.startswith(
        "at most 20.00% false alarms, from 4 support images, each left out of the memory (ring); "
    )
    named = detector.predict(bad[3][0], class_name="ring")
    assert named.score.equal(alone.score)
    with pytest.raises(UserError, match="remembers ring"):
        detector.predict(bad[3][0], class_name="nut")
    again = detector.predict(data / "ring" / "test" / "good" / "000.png")
    torch.testing.assert_close(again.score[0], scores[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shot", [0, 2])
def test_normal_images_of_a_folder_decide_for_their_class(shot: int, data: Path, tmp_path: Path) -> None:
    """Zero-shot and few-shot alike, and never by an image that the memory holds."""
    tested, folder = (["ring"], data / "ring" / "train" / "good") if shot == 0 else (["nut", "ring"], tmp_path / "good")
    for name in tested[: 2 * shot]:
        (tmp_path / "good").mkdir(exist_ok=True)
        (tmp_path / "good" / name).symlink_to(data / name / "train" / "good")
    few = {"dataset": "mvtec", "data_path": str(data), "train_classes": ["bolt"], "test_classes": tested, "shot": shot}
    result = train(tiny(**few, normal_data=str(folder), output_dir=str(tmp_path / "run")))
    detector = anomaly_lib.load(result.checkpoint)
    support = json.loads((result.run_dir / "run.json").read_text())["support"]
    for name in tested:
        paths = sorted((data / name / "train" / "good").iterdir())
        paths = [path for path in paths if str(path) not in support.get(name, [])]
        assert len(paths) == 4 - shot
        found = detector.predict(paths, class_name=name)
        decision = detector.decisions.each[name]
        np.testing.assert_allclose(decision.normal, np.sort(found.score.numpy()), rtol=2e-3)
        assert decision.false_alarms == 1 / (5 - shot)
        assert found.threshold == decision.threshold
    assert len(detector.decision.normal) == len(tested) * (4 - shot)
    assert f"normal images of {folder} ({', '.join(tested)})" in detector.decision.source
    items = detector.items(Choice(data_path=str(data), obj="bolt"))
    assert detector.decision_for(items) is None
    assert "no decision: no normal data of bolt" in detector.score(items).notes
    ring = detector.items(Choice(data_path=str(data), obj="ring"))
    assert detector.decision_for(ring).normal == detector.decisions.each["ring"].normal


def test_one_support_image_decides_by_its_views_and_a_wrong_folder_is_refused(data: Path, tmp_path: Path) -> None:
    few = {"dataset": "mvtec", "data_path": str(data), "train_classes": ["bolt"], "test_classes": ["ring"], "shot": 1}
    result = train(tiny(**few, output_dir=str(tmp_path / "run")))
    decision = anomaly_lib.load(result.checkpoint).decision
    assert (decision.stand_ins, decision.false_alarms, len(decision.normal)) == (True, None, 4)
    with pytest.raises(UserError, match=r"^normal_data=.*nothing: no such folder$"):
        train(tiny(**few, normal_data=str(tmp_path / "nothing"), output_dir=str(tmp_path / "no")))


def test_fast_dev_run_and_bf16(data: Path, tmp_path: Path) -> None:
    """Command 12 (--compile needs a compiler: see the slow test)."""
    flags = ["--dataset", "mvtec", "--data-path", str(data), "--fast-dev-run", "--precision", "bf16", "--no-figures"]
    flags += ["--k-shot", "2"]
    assert train_sowa.main([*FAST, *flags, "--output-dir", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "run.json").read_text())["metrics"]
    assert all(math.isfinite(value) for value in metrics.values())


def test_validation_and_early_stopping(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """B8: images kept from training are told about after every epoch, and end it when their loss no longer falls."""
    flags = [*FAST, "--dataset", "mvtec", "--data-path", str(data), "--test-classes", "ring", "--no-figures"]
    flags += ["--select", "last", "--enable-validation", "--validation-share", "0.4", "--lr", "2", "--epochs", "9"]
    flags += ["--schedule", "constant"]
    assert train_sowa.main([*flags, "--patience", "2", "--output-dir", str(tmp_path / "a")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["val_loss"] for row in rows]
    assert len(rows) < 9
    assert min(losses) == losses[-3]  # the best epoch, and two that did not beat it
    said = capsys.readouterr().out
    assert f"early stopping: no lower loss since epoch {len(rows) - 2}" in said
    assert [row["val_auroc_best"] for row in rows] == [
        max(row["val_auroc"] for row in rows[: number + 1]) for number in range(len(rows))
    ]
    assert all(0 <= row[f"{kind}_acc"] <= 1 for row in rows for kind in ("train", "val"))
    assert all(0 <= row["train_auroc"] <= 1 for row in rows)
    assert "val_auroc_best" in (tmp_path / "a" / "epochs.csv").read_text().splitlines()[0]


def test_what_is_kept_is_of_every_class_and_label(data: Path) -> None:
    items = [item for item in open_dataset("mvtec", data) if item.split == "test"]
    truth = TrainingSet(items, [str(item.path) for item in items], torch.tensor([item.label for item in items]),
                        torch.zeros(len(items), 4, 4))  # fmt: skip
    learned, kept = truth.divided(0.2, seed=3)
    assert sorted([*learned.tolist(), *kept.tolist()]) == list(range(len(items)))
    kinds = [(item.class_name, item.label) for item in truth.at(kept).items]
    assert sorted(kinds) == sorted((name, label) for name in CLASSES for label in (0, 1))  # one of five each
    assert truth.divided(0.2, seed=3)[1].equal(kept)
    assert not truth.divided(0.2, seed=4)[1].equal(kept)
    assert len(truth.divided(0.0, seed=3)[1]) == 0
    with pytest.raises(UserError, match=r"validation_share=0.01: of 30 images 0 would be kept"):
        truth.divided(0.01, seed=3)


def test_every_test_image_is_drawn(data: Path, tmp_path: Path) -> None:
    """B8: the original's callback: image, truth and heat map of each, by class, in training and in evaluation."""
    flags = [*FAST, "--dataset", "mvtec", "--data-path", str(data), "--test-classes", "ring", "--no-figures"]
    run, folder = tmp_path / "run", tmp_path / "pictures"
    words = [*flags, "--fast-dev-run", "--visualize", "--dirpath", str(folder), "--output-dir", str(run)]
    assert train_sowa.main(words) == 0
    pictures = sorted((folder / "ring").glob("*.png"))
    assert len(pictures) == 8  # fast-dev-run tests so many
    assert {path.name[5:12] for path in pictures} == {"good_00", "scratch"}
    scratched = np.asarray(Image.open(next(path for path in pictures if "scratch" in path.name)))
    assert scratched.shape == (64, 3 * 64, 3)
    truth = scratched[:, 64:128]
    assert set(np.unique(truth)) == {0, 255}
    assert (truth[..., 0] > 0).sum() == 256  # the square of 16 by 16
    assert scratched[:, :64][truth[..., 0] > 0].mean() > 200  # which is bright in the image
    words = ["--checkpoint", str(run), "--visualize", "--no-figures", "--bootstrap", "0"]
    assert evaluate.main([*words, "--output-dir", str(tmp_path / "e")]) == 0
    assert len(list((tmp_path / "e" / "visualizations" / "ring").glob("*.png"))) == 8


@pytest.mark.parametrize(
    "change",
    [
        ["--feature-map-idx", "1", "3"],
        ["--adapter", "linear", "--no-text-linear"],
        ["--window-size", "2,2,4,4", "--depth", "1,1,1,2", "--hidden-features", "16"],
        ["--adapter", "soldier", "soldier", "officer", "linear", "--num-heads", "4"],
        ["--share-weight", "--no-value-only", "--drop-path", "0.2"],
        ["--prompt-learner", "plain"],
        ["--prompt-learner", "zero", "--adapter", "none", "--epochs", "0"],
        ["--normal-templates", "{}", "a brand new {}", "--anomaly-templates", "damaged {}", "broken {}"],
        ["--normal-templates", "long", "--anomaly-templates", "long", "--class-names", "bolt", "ring"],
        ["--protocol", "paper", "--k-shot", "2", "--mosaic-rate", "0.5"],
        ["--vision", "residual", "--gamma", "0.2", "--k-shot", "2"],
        ["--map-calibration", "none", "--image-score", "text", "--text-rate", "1"],
        ["--image-size", "64", "96", "--window-size", "2"],
        ["--config", str(ROOT / "scripts" / "sowa" / "configs" / "sparc_prompt.json"), "--dataset", "mvtec",
         "--feature-map-idx", "0", "1", "2", "3", "--image-size", "64"],
        ["--config", str(ROOT / "scripts" / "sowa" / "configs" / "sowa_hfwa.json"), "--dataset", "mvtec",
         "--feature-map-idx", "0", "1", "2", "3", "--window-size", "0", "--image-size", "64"],
    ],
    ids=lambda change: " ".join(change)[:40].replace("/", "_"),
)  # fmt: skip
def test_usual_changes(change: list[str], data: Path, tmp_path: Path) -> None:
    """Command 14: other layers, adapters, adapter lists, prompts, configuration files."""
    flags = ["--dataset", "mvtec", "--data-path", str(data), "--fast-dev-run", "--no-figures"]
    assert train_sowa.main([*flags, *change, *FAST[:-4], "--device", "cpu", "--output-dir", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert 0 <= record["metrics"]["image_auroc"] <= 1
    assert hasattr(anomaly_lib.load(tmp_path / "checkpoint.pt"), "predict")


def test_meta_json_of_any_folder(data: Path, tmp_path: Path) -> None:
    """A new data set by meta.json: written by make_meta.py, read by --dataset meta."""
    assert make_meta.main(["mvtec", str(data)]) == 0
    content = json.loads((data / "meta.json").read_text())
    (data / "meta.json").unlink()
    assert make_meta.main(["--data-path", str(data), "--dataset", "mvtec"]) == 0
    assert json.loads((data / "meta.json").read_text()) == content
    assert sorted(content) == ["test", "train"]
    entry = next(e for e in content["test"]["ring"] if e["anomaly"])
    assert set(entry) == {"img_path", "mask_path", "cls_name", "specie_name", "anomaly"}
    by_meta = [(i.path.name, i.label, i.class_name, i.split) for i in open_dataset("meta", data)]
    by_layout = [(i.path.name, i.label, i.class_name, i.split) for i in open_dataset("mvtec", data)]
    assert by_meta == by_layout
    flags = ["--dataset", "meta", "--data-path", str(data), "--fast-dev-run", "--no-figures"]
    assert train_sowa.main([*FAST, *flags, "--output-dir", str(tmp_path)]) == 0
    (data / "meta.json").unlink()


def test_meta_json_of_dagm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("Train", "Test"):
        (tmp_path / "Class1" / split / "Label").mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8)).save(tmp_path / "Class1" / split / f"000{number}.PNG")
    Image.new("L", (8, 8), 255).save(tmp_path / "Class1" / "Test" / "Label" / "0001_label.PNG")
    assert make_meta.main(["dagm", str(tmp_path)]) == 0
    items = open_dataset("meta", tmp_path)
    assert [(i.split, i.path.name) for i in items if i.label] == [("test", "0001.PNG")]
    assert make_meta.main(["dagm", str(tmp_path / "Class1")]) == 2
    capsys.readouterr()
    assert make_meta.main(["--dataset", "dagn", "--data-path", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("make_meta.py: --dataset dagn: choose from btad, dagm, ")
    assert make_meta.main(["dagm"]) == 2
    assert capsys.readouterr().err == "make_meta.py: give --dataset NAME and --data-path FOLDER\n"


def test_meta_json_of_visa_and_btad(tmp_path: Path) -> None:
    def put(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 255).save(tmp_path / name)

    folder = "visa/candle/Data"
    put(f"{folder}/Images/Normal/0000.JPG", f"{folder}/Images/Anomaly/000.JPG", f"{folder}/Masks/Anomaly/000.png")
    rows = ["object,split,label,image,mask", "candle,train,normal,candle/Data/Images/Normal/0000.JPG,"]
    rows += ["candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png"]
    (tmp_path / "visa" / "split_csv").mkdir()
    (tmp_path / "visa" / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    assert make_meta.main(["visa", str(tmp_path / "visa")]) == 0
    bad = json.loads((tmp_path / "visa" / "meta.json").read_text())["test"]["candle"][0]
    assert (bad["img_path"], bad["mask_path"]) == (rows[2].split(",")[3], rows[2].split(",")[4])
    assert (bad["anomaly"], bad["cls_name"]) == (1, "candle")

    put("btad/01/train/ok/0.bmp", "btad/01/test/ok/1.bmp", "btad/01/test/ko/2.bmp", "btad/01/ground_truth/ko/2.bmp")
    assert make_meta.main(["btad", str(tmp_path / "btad")]) == 0
    items = open_dataset("meta", tmp_path / "btad")
    found = {i.path.name: (i.split, i.label, i.mask_path and i.mask_path.parent.name) for i in items}
    assert found == {"0.bmp": ("train", 0, None), "1.bmp": ("test", 0, None), "2.bmp": ("test", 1, "ko")}


def test_mistakes_are_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [*FAST, "--dataset", "mvtec", "--data-path", str(data)]
    for flags, message in {
        ("--test-classes", "screw"): "--test-classes screw: not in the data; there are bolt, nut, ring",
        ("--train-classes", "bolt", "--test-classes", "bolt"): "trained on and tested on",
        ("--feature-map-idx", "9"): "blocks 0..3",
        ("--normal-templates", "{}", "good {}"): "2 normal against 1",
        ("--k-shot", "9", "--epochs", "0"): "--shot 9",
        ("--adapter", "none", "--prompt-learner", "zero"): "trains nothing",
        ("--window-size", "2", "4"): "--window-size 2 4: give one value, or one per stage (4)",
        ("--stages", "4"): "--stages 4: the model has stages 0 to 3",
        ("--gamma", "0.2"): "--gamma 0.2: has no effect without --vision residual",
        ("--image-size", "64", "64", "64"): "--image-size 64 64 64: takes one or two numbers",
    }.items():
        assert train_sowa.main([*common, "--output-dir", str(tmp_path / flags[1]), *flags]) == 2, flags
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1], (flags, lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "papr"}, "protocol=papr: choose from clean, paper; did you mean paper?"),
        (
            {"adapter": "linaer"},
            "adapter=linaer: choose from window, soldier, officer, linear, none; did you mean linear?",
        ),
        ({"epochs": -1}, "epochs=-1: must be at least 0"),
        ({"normal_templates": ["{}", "good {}"]}, "2 normal against 1"),
        ({"class_names": "bottle"}, "class_names='bottle': takes a list"),
        ({"dataset": "mvtec"}, "dataset=mvtec: give data_path="),
    ],
)
def test_options_are_checked_where_they_are_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Args(**options)


def test_a_users_data_never_meet_the_demo_clip_unasked(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --data-path and no --backbone the published backbone; its missing weights are one line."""
    assert Args().backbone == "demo-clip"
    published = "ViT-L-14-336:openai"
    for options in ({"data_path": "x"}, {"dataset": "visa", "data_path": "x"}, {"eval_data_path": "x"}):
        assert Args(**options).backbone == published
    assert Args(data_path="x", backbone="demo-clip").backbone == "demo-clip"
    monkeypatch.setenv("ANOMALY_LIB_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    flags = ["--dataset", "mvtec", "--data-path", str(data), "--output-dir", str(tmp_path / "run"), "--device", "cpu"]
    assert train_sowa.main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"backbone {published} needs the weights" in line
    assert "--weights FILE" in line


def test_paper_protocol_is_a_preset_that_flags_override() -> None:
    paper, own = Args(protocol="paper"), Args(protocol="paper", decay="matrices", select="val")
    assert (paper.mosaic_rate, paper.loss, paper.decay, paper.text_rate, paper.select) == (
        0.2,
        "paper",
        "all",
        1.0,
        "last",
    )
    assert (paper.start, paper.map_calibration, paper.image_score) == ("random", "none", "text")
    assert (paper.mosaic_label, paper.score_scaling) == ("replaced", "transductive")
    assert (own.decay, own.select, own.loss) == ("matrices", "val", "paper")
    assert Args(**vars(paper)) == paper == Args.from_saved(vars(paper))


def shell(script: str, tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    command = ["bash", str(ROOT / "scripts" / "sowa" / script), *arguments]
    return subprocess.run(command, cwd=tmp_path, env=known, capture_output=True, text=True, timeout=300, check=False)


def test_sweep_over_shots(trained: Path, data: Path, tmp_path: Path) -> None:
    """Command 13."""
    done = shell(
        "infer_auto.sh", tmp_path, "--no-figures", "--bootstrap", "0", CHECKPOINT=str(trained / "checkpoint.pt"),
        DATA_PATH=str(data), K_SHOTS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    assert (tmp_path / "result" / "sowa" / "k_1" / "metrics.json").is_file()


@pytest.mark.slow
def test_sweeps_over_data_and_seeds(data: Path, tmp_path: Path) -> None:
    train = " ".join([*FAST, "--dataset", "mvtec", "--data-path", str(data), "--fast-dev-run", "--no-figures"])
    quick = ["--no-figures", "--bootstrap", "0"]
    done = shell("schedule.sh", tmp_path, *quick, SEEDS="0 1", K_SHOTS="0", TRAIN_FLAGS=train)
    assert done.returncode == 0, done.stderr[-500:]
    result = tmp_path / "result" / "sowa"
    assert all((result / f"seed_{seed}" / "k_0" / "metrics.json").is_file() for seed in (0, 1))
    checkpoint = str(result / "seed_0" / "run" / "checkpoint.pt")
    done = shell("infer_data.sh", tmp_path, *quick, CHECKPOINT=checkpoint, DATA_PATHS=f"{data}", K_SHOT="2")
    assert done.returncode == 0, done.stderr[-500:]
    assert (result / data.name / "k_2" / "metrics.json").is_file()


@pytest.mark.slow
def test_compile(data: Path, tmp_path: Path) -> None:
    flags = ["--dataset", "mvtec", "--data-path", str(data), "--fast-dev-run", "--no-figures", "--compile"]
    assert train_sowa.main([*FAST, *flags, "--output-dir", str(tmp_path)]) == 0
