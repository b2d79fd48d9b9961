"""A detector of one's own images in a few lines: data of every shape, the answer in a notebook, and what is wrong."""

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anomaly_lib
from anomaly_lib.__main__ import main
from anomaly_lib.command_line import parse
from anomaly_lib.data.demo.items import write_demo
from anomaly_lib.detect.shown import PICTURES
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.fitting import Fitted
from anomaly_lib.systems.detectors.options import Args
from anomaly_lib.systems.detectors.train import train

OPTIONS: dict[str, Any] = {"backbone": "demo-clip", "layers": ["layer.1"], "image_size": 64, "figures": False}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One class of the built-in parts as files, below train/ and test/."""
    folder = tmp_path_factory.mktemp("data")
    write_demo(folder, categories=["woven"], size=64, train=8, test_good=3, per_defect=1)
    return folder / "woven"


@pytest.fixture(scope="module")
def fitted(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    found = anomaly_lib.fit("padim", parts, output_dir=str(tmp_path_factory.mktemp("fit") / "run"), **OPTIONS)
    assert isinstance(found, Fitted)
    return found


def good_files(parts: Path) -> list[Path]:
    return sorted((parts / "train" / "good").iterdir())


def test_it_is_the_run_of_the_command_line(fitted: Fitted, parts: Path, tmp_path: Path) -> None:
    words = ["--model", "padim", "--dataset", "folder", "--data-path", str(parts), "--backbone", "demo-clip"]
    words += ["--layers", "layer.1", "--image-size", "64", "--no-figures", "--output-dir", str(tmp_path / "run")]
    run = train(parse(Args, words))
    other, files = anomaly_lib.load(run.checkpoint), sorted((parts / "test").rglob("*.png"))
    found, wanted = fitted.predict(files), other.predict(files)
    assert torch.equal(found.score, wanted.score)
    assert found.threshold == wanted.threshold
    assert fitted.evaluate().metrics == pytest.approx(run.metrics)
    assert fitted.evaluate(parts).metrics == fitted.evaluate().metrics


def test_single_images_of_every_kind_are_one_data_set(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = good_files(parts)
    pictures = [Image.open(path).convert("RGB") for path in files]
    kinds: list[list[Any]] = [[str(path) for path in files], [np.asarray(one) for one in pictures], pictures]
    runs = [anomaly_lib.fit("padim", kind, **OPTIONS) for kind in kinds]
    scores = [run.predict(parts / "test").score for run in runs]
    assert torch.equal(scores[0], scores[1])
    assert runs[1].checkpoint == runs[2].checkpoint  # the same pixels: the finished run is read again
    assert runs[0].checkpoint.parts[:2] == ("runs", "detectors")


def test_a_folder_of_good_images_and_nothing_else(parts: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in good_files(parts):
        (flat / path.name).symlink_to(path)
    found = anomaly_lib.fit("fewshot", flat, shot=2, output_dir=tmp_path / "run", **OPTIONS)
    assert found.evaluate().scores.labels.tolist() == [0, 0]  # of eight good images six are to be learned
    assert np.isnan(found.evaluate().metrics["image_auroc"])


@pytest.mark.parametrize(
    ("layout", "tested"),
    [
        ({"good": 8, "bad": 2}, 4),  # of eight good images six are to be learned
        ({"train/good": 6, "test/good": 2, "test/bad": 1}, 3),
        ({"Train/OK": 6, "Test/Normal": 2, "Test/Scratch": 2}, 4),
        ({"": 8}, 2),
        ({"list": 8}, 2),
    ],
)
def test_the_command_takes_folders_of_every_layout(
    layout: dict[str, int], tested: int, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, data = iter(good_files(parts) * 2), tmp_path / "my parts"
    listed = []
    for place, count in layout.items():
        (data / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            file = data / place / f"{number}.png"
            file.write_bytes(next(pictures).read_bytes())
            listed.append(f"{file.relative_to(data).as_posix()},good")
    if "list" in layout:
        data = data / "parts.csv"
        data.write_text("\n".join(["path,truth", *listed]), encoding="utf-8")
    words = ["--model", "padim", "--backbone", "demo-clip", "--layers", "layer.1", "--image-size", "64", "--no-figures"]
    assert main(["fit", str(data), *words, "--output-dir", str(tmp_path / "run")]) == 0
    assert "decision: anomalous from score" in capsys.readouterr().out
    detector = anomaly_lib.load(next(tmp_path.glob("run/*.pt")))
    scores = detector.score(detector.items())
    assert len(scores) == tested
    assert set(scores.groups) == {"parts" if "list" in layout else "my parts"}


def test_an_array_keeps_its_values(tmp_path: Path) -> None:
    from anomaly_lib.data.images import read_image
    from anomaly_lib.fitting.training import _folder_of

    grey = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    colour = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    folder = _folder_of([grey, colour, colour / np.float32(255)], tmp_path)
    first, second, third = [read_image(path) for path in sorted((folder / "good").iterdir())]
    assert np.array_equal(first[:, :, 0], grey)
    assert np.array_equal(second, colour)
    assert np.array_equal(third, colour)
    assert _folder_of([grey, colour, colour / np.float32(255)], tmp_path) == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing is left over


def test_a_prediction_indexes_and_iterates(fitted: Fitted, parts: Path) -> None:
    found = fitted.predict(parts / "test")
    names = [f"{path.parent.name}/{path.name}" for path in sorted((parts / "test").rglob("*.png"))]
    assert len(found) == len(names) == 9
    assert len(set(names)) == 9
    assert found[-1].score.tolist() == found.score[-1:].tolist()
    assert [one.score.item() for one in found] == found.score.tolist()
    assert found[1:3].rows() == found.rows()[1:3]
    assert np.array_equal(found[2].picture(), found.picture(2))
    with pytest.raises(IndexError, match="there are 9"):
        found[9]
    assert [row["input"] for row in found.rows()] == names
    assert set(found.rows()[0]) == {"input", "score", "p_value", "anomalous", "area"}
    assert repr(found[0]).startswith("1 prediction, anomalous from score")
    assert names[0] in repr(found)


def test_a_table_for_pandas(fitted: Fitted, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fitted.predict(good_files(parts)[0])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas; rows"):
        found.to_frame()
    monkeypatch.undo()
    pandas = pytest.importorskip("pandas")
    assert isinstance(found.to_frame(), pandas.DataFrame)
    assert found.to_frame().to_dict("records") == found.rows()


class Tags(HTMLParser):
    """Open elements, pictures and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attrs))
        else:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_notebook_shows_it_with_nothing_fetched(fitted: Fitted, parts: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<b>&'\".png"
    odd.write_bytes(good_files(parts)[0].read_bytes())
    page = fitted.predict([odd, *[good_files(parts)[1]] * PICTURES])._repr_html_()
    tags = Tags(page)
    assert tags.open == []
    assert odd.name in tags.text
    assert [one["alt"] for one in tags.pictures[:2]] == [odd.name, f"heat map of {odd.name}"]
    assert len(tags.pictures) == 2 * PICTURES
    assert all(str(one["src"]).startswith("data:image/jpeg;base64,") for one in tags.pictures)
    assert "and 1 more" in tags.text
    assert "p-value" in tags.text
    assert str(tmp_path) not in page
    assert "http" not in page
    assert len(page) < 40_000 * PICTURES


def test_the_picture_is_what_was_given(fitted: Fitted, parts: Path) -> None:
    file = good_files(parts)[0]
    pixels = np.asarray(Image.open(file).convert("RGB"))  # 64 pixels, which is the size of the network's input
    for given in (file, pixels, Image.fromarray(pixels), fitted.detector.transform(pixels)[None]):
        assert np.array_equal(fitted.predict(given).picture(), pixels)


def test_a_good_part_stays_dark(fitted: Fitted, parts: Path) -> None:
    found = fitted.predict(good_files(parts)[0])
    plain, limit = found.picture().astype(float), found.limit
    assert limit is not None
    with_scale = np.abs(found.overlay() - plain).max()
    found.limit = None
    assert with_scale < np.abs(found.overlay() - plain).max()


def test_saved_exported_and_reported(fitted: Fitted, parts: Path, tmp_path: Path) -> None:
    files = sorted((parts / "test").rglob("*.png"))
    saved = Fitted(fitted.save(tmp_path / "deep" / "part.pt"))
    assert torch.equal(saved.predict(files).score, fitted.predict(files).score)
    assert repr(saved).startswith("padim detector, anomalous from score")
    page = fitted.report(tmp_path / "report")
    assert page == tmp_path / "report" / "index.html"
    assert str(parts) not in page.read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"ends in .onnx, in .pt2"):
        fitted.export(tmp_path / "part.tflite")
    exported = fitted.export(tmp_path / "out" / "part.pt2", false_alarms=0.3)
    assert sorted(path.name for path in exported.parent.iterdir()) == ["part.json", "part.pt2"]
    promised = json.loads((tmp_path / "out" / "part.json").read_text(encoding="utf-8"))["decision"]
    assert promised["false_alarms"] == 0.3
    assert promised["threshold"] < fitted.detector.decision.threshold


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("nowhere", {}, r"^nowhere: no such folder of images$"),
        ("empty", {}, r"^data_path=empty: found no good/, ok/, normal/ folder"),
        ([], {}, r"^data=\[\]: no images; give a folder, or a list"),
        (np.zeros((0, 8, 8, 3), np.uint8), {}, r"^data=\[\]: no images; give a folder, or a list"),
        (["empty/../nothing.png"], {}, r"nothing.png: no such"),
        ("empty", {"shott": 4}, r"^Args has no option 'shott'; did you mean shot\?$"),
        ("empty", {"shot": 0}, r"^shot=0: must be at least 1$"),
        ("empty", {"data_path": "x"}, r"^data_path=x: the second argument"),
        ("empty", {"model_name": 1}, r"^Args has no option .model_name.; did you mean model"),
    ],
)
def test_what_is_wrong_is_one_line(
    data: Any, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(UserError, match=message) as error:
        anomaly_lib.fit("padim", data, **options)
    assert "\n" not in str(error.value)
    assert not list(Path().glob("runs/*/*"))


@pytest.mark.parametrize(
    ("model", "offered"), [("patchcore", True), ("fewshot", True), ("promptad", True), ("reverse_distillation", False)]
)
def test_the_demo_backbone_is_offered_where_weights_are_missing(
    model: str, offered: bool, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALY_LIB_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match="needs the weights") as error:
        anomaly_lib.fit(model, parts, output_dir=tmp_path / "run")
    assert ("backbone=demo-clip, the small demo backbone" in str(error.value)) == offered
    assert "\n" not in str(error.value)


def test_an_unknown_model_names_those_there_are() -> None:
    with pytest.raises(OptionError, match=r"^model=promptadd: choose from .*padim.*sowa; did you mean promptad\?$"):
        anomaly_lib.fit("promptadd", "parts")
