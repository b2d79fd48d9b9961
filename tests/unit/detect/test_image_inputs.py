"""What an image detector takes: one picture in many forms has one score, and everything else is refused in one line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Facts, Selection
from anomaly_lib.detect.images import ImageDetector, pictures_of
from anomaly_lib.detect.scores import Scores
from anomaly_lib.errors import UserError
from anomaly_lib.types import Prediction

GREY = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
RGB = np.repeat(GREY[:, :, None], 3, axis=2)


class Means(ImageDetector):
    """The score of a picture is the mean of its first column's left half: turned pictures have another one."""

    system, honours, facts = "means", frozenset(), Facts()
    transform = ImageTransform(size=(8, 8), resize="stretch", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def _items(self, choice: Choice) -> Selection:
        raise NotImplementedError

    def _score(self, selection: Selection) -> Scores:
        raise NotImplementedError

    def predict_batch(self, images: Tensor) -> Prediction:
        assert images.dtype == torch.float32
        assert images.shape[1:] == (3, 8, 8)
        return Prediction(score=images[..., :4, 0].mean((1, 2)))


EXPECTED = float(RGB[:4, 0].mean() / 255)
FORMS: dict[str, Any] = {
    "rgb": RGB, "grey": GREY, "one channel": GREY[:, :, None], "opacity": np.dstack([RGB, GREY]),
    "float64": RGB / 255, "float16": (RGB / 255).astype(np.float16), "uint16": GREY.astype(np.uint16) * 257,
    "pil": Image.fromarray(GREY), "pil palette": Image.fromarray(GREY).convert("P"), "list": [RGB], "tuple": (GREY,),
    "array of one": RGB[None], "uint8 tensor": torch.from_numpy(RGB).permute(2, 0, 1),
    "uint8 tensors": torch.from_numpy(RGB).permute(2, 0, 1)[None], "grey uint8 tensor": torch.from_numpy(GREY)[None],
    "batch": torch.from_numpy(RGB).permute(2, 0, 1)[None] / 255, "one": torch.from_numpy(RGB).permute(2, 0, 1) / 255,
    "one-channel batch": torch.from_numpy(GREY)[None, None] / 255,
    "double batch": torch.from_numpy(RGB).permute(2, 0, 1)[None].double() / 255,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_one_picture_in_any_form_has_one_score(form: str) -> None:
    found = Means().predict(FORMS[form])
    assert found.score.tolist() == [pytest.approx(EXPECTED, abs=1e-3 if form == "float16" else 1e-6)]


def test_a_picture_in_memory_is_turned_as_the_same_file_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=exif)
    score = float(Means().predict(tmp_path / "x.png").score)
    assert score == pytest.approx(float(np.rot90(RGB, -1)[:4, 0].mean() / 255), abs=1e-6)
    assert float(Means().predict(Image.open(tmp_path / "x.png")).score) == score


def nan_at(images: Any, place: Sequence[int]) -> Any:
    images[tuple(place)] = float("nan")
    return images


WRONG: dict[str, tuple[Any, str]] = {
    "none": (None, "cannot score NoneType: give a file, an array"),
    "number": (3, "cannot score int: give"),
    "bytes": (b"", "cannot score bytes: give"),
    "bytearray": (bytearray(b"ab"), "cannot score bytearray: give"),
    "set": (set(), "cannot score set: give"),
    "dict": ({"a": 1}, "cannot score dict: give"),
    "generator": ((one for one in [RGB]), "cannot score generator: give"),
    "nothing": ([], r"got no images: give"),
    "list of none": ([RGB, None], "input 1: cannot score NoneType"),
    "nested list": ([[RGB]], "input 0: cannot score list"),
    "0x0": (np.zeros((0, 0), np.uint8), r"an array \[H, W, 3\] or \[H, W\], got uint8 \[0, 0\]"),
    "0x0x3": (np.zeros((0, 0, 3), np.uint8), r"got uint8 \[0, 0, 3\]"),
    "no pictures": (np.zeros((0, 4, 4, 3), np.uint8), "got no images"),
    "channels first": (RGB.transpose(2, 0, 1), r"an array \[H, W, 3\].*\[3, 8, 8\]"),
    "line": (GREY[0], r"got uint8 \[8\]"),
    "five axes": (RGB[None, None], r"got uint8 \[1, 1, 8, 8, 3\]"),
    "int64": (GREY.astype(np.int64), r"uint8, uint16 or float 0..1, got int64 \[8, 8\]; convert it"),
    "complex": (GREY.astype(complex), "got complex128"),
    "object": (GREY.astype(object), "got object"),
    "text": (np.array([["a"]]), "got <U1"),
    "nan": (nan_at(RGB / 255, (1, 1, 1)), "input 0: the image has non-finite values"),
    "second has nan": ([RGB, nan_at(RGB / 255, (1, 1, 1))], "input 1: the image has non-finite values"),
    "not divided": (RGB.astype(np.float32), r"an image of floats holds 0..1, this one 24\d; divide it, or give uint8"),
    "1e300": (np.full((4, 4), 1e300), "no brightness"),
    "empty pil": (Image.new("RGB", (0, 0)), "an empty picture of 0x0 pixels"),
    "empty tensor": (torch.zeros(0), r"\[B, 3, H, W\].*got \[0\]"),
    "no images": (torch.zeros(0, 3, 8, 8), r"got \[0, 3, 8, 8\]"),
    "two channels": (torch.zeros(1, 2, 8, 8), r"got \[1, 2, 8, 8\]"),
    "other size": (torch.zeros(1, 3, 9, 8), r"\[B, 3, 8, 8\].*got \[1, 3, 9, 8\]"),
    "matrix": (torch.zeros(8, 8), r"got \[8, 8\]"),
    "nan tensor": (nan_at(torch.zeros(2, 3, 8, 8), (1, 0, 0, 0)), "input 1: the image has non-finite values"),
    "int64 tensor": (torch.zeros(3, 8, 8, dtype=torch.int64), "uint8, got int64"),
    "empty uint8 tensor": (torch.zeros(3, 0, 0, dtype=torch.uint8), "got uint8"),
    "no such file": ("nowhere.png", "nowhere.png: no such image file"),
    "empty name": ("", r"\.: a folder, no image file"),
    "zero byte": ("a\0b.png", "control characters"),
}


@pytest.mark.parametrize("case", WRONG)
def test_everything_else_is_refused_in_one_line(case: str) -> None:
    given, said = WRONG[case]
    with pytest.raises(UserError, match=said) as refused:
        Means().predict(given)
    assert "\n" not in str(refused.value)


def test_pictures_are_read_as_files_are() -> None:
    deep, flag = pictures_of([GREY.astype(np.uint16), GREY > 99])
    assert deep.dtype == np.float32
    np.testing.assert_allclose(deep[:, :, 1], GREY / 65535, rtol=1e-6)
    assert flag.dtype == np.uint8
    assert set(np.unique(flag)) == {0, 255}
