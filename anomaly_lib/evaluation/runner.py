"""Run an exported detector without torch: python runner.py part.onnx IMAGE... (onnxruntime, numpy and pillow only).

A file that is made of features takes .npz files of them instead, each with the arrays that `about["inputs"]` names.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Detector:
    """`Detector("part.onnx")("a.png")` -> {"score": 0.3, "map": [h, w], "p_value": 0.5, "anomalous": False}.

    `about` is what the file says of itself: classes, thresholds, the promised share of false alarms, where it is from.
    """

    def __init__(self, path: str | Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map["anomaly_lib"])

    def __call__(self, given: Any) -> dict[str, Any]:
        """Of an image file or uint8 RGB [H, W, 3]; of a .npz file or a dict of features by name."""
        if "inputs" in self.about:
            features = given if isinstance(given, dict) else dict(np.load(given))
            inputs = {name: features[name][None] for name in self.about["inputs"]}
        else:
            inputs = {"image": (given if isinstance(given, np.ndarray) else read(given))[None]}
        found = self.session.run(self.outputs, inputs)
        values = {name: value[0] for name, value in zip(self.outputs, found, strict=True)}
        return {name: value if value.ndim else value.item() for name, value in values.items()}


def read(path: Any) -> np.ndarray:
    """uint8 RGB [H, W, 3] of an image file, turned by its EXIF orientation as viewers do."""
    with Path(path).open("rb") as stream:
        image = Image.open(stream, formats=("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"))
        image.load()
    try:
        picture = ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  (a damaged EXIF block says nothing)
        picture = image
    if picture.mode.startswith("I") or picture.mode == "F":
        raise ValueError(f"{path}: has more than 8 bits a channel ({picture.mode}), which this detector does not take")
    return np.asarray(picture.convert("RGB"))


def main(words: Sequence[str]) -> int:
    """A line an image: the decision, where the file has one, and the numbers."""
    if len(words) < 2:
        sys.stdout.write(f"{__doc__}\n")
        return 2
    try:
        detector = Detector(words[0])
        for image in words[1:]:
            found = detector(image)
            verdict = ["anomalous" if found["anomalous"] else "normal"] if "anomalous" in found else []
            numbers = [f"{name} {value:.6g}" for name, value in found.items() if type(value) is float]
            sys.stdout.write(f"{image}: {', '.join([*verdict, *numbers])}\n")
    except Exception as error:  # noqa: BLE001  (files that are missing, damaged, or no pictures)
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
