"""Which images and other inputs the words of a command line stand for."""

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anomaly_lib.data.images import IMAGE_SUFFIXES, images_below
from anomaly_lib.data.layouts import is_list, read_list
from anomaly_lib.detect.contract import Detector
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.errors import UserError


def check_inputs(inputs: Sequence[str]) -> None:
    """Every input must exist and hold an image, before the model is loaded."""
    for text in inputs:
        if next(expand(text), None) is None:
            kind = "no image below it" if Path(text).is_dir() else "no such image, folder or match"
            raise UserError(f"{text}: {kind} (known suffixes: {' '.join(sorted(IMAGE_SUFFIXES))})")


def expand(text: str) -> Iterator[tuple[Path, Path]]:
    """(image, name of its overlay) of a file, a folder with everything below it, or a glob pattern."""
    path = Path(text)
    if path.is_file():
        yield path, Path(f"{path.name}.png")
    elif path.is_dir():
        for image in images_below(path):
            yield image, image.relative_to(path).with_name(f"{image.name}.png")
    else:
        fixed = Path(re.split(r"[*?\[]", text)[0] + "x").parent
        for match in sorted(glob.iglob(text, recursive=True)):
            image = Path(match)
            if image.suffix.lower() in IMAGE_SUFFIXES and image.is_file():
                yield image, image.relative_to(fixed).with_name(f"{image.name}.png")


def normal_inputs(detector: Detector, words: Sequence[str]) -> list[Any]:
    """The normal inputs that the words stand for, as `predict` takes them, each once, in the order of names.

    Of a CSV list of images (`read_list`) those that are good.
    """
    if isinstance(detector, ImageDetector):
        check_inputs([text for text in words if not is_list(text)])
        return list(dict.fromkeys(path for text in words for path in _normal_images(text)))
    return [one for text in words for one in detector.inputs_below(Path(text))]


def _normal_images(text: str) -> list[Path]:
    if not is_list(text):
        return [path for path, _ in expand(text)]
    good = [item.path for item in read_list(text) if not item.label]
    if not good:
        raise UserError(f"{text}: lists no good image")
    return good
