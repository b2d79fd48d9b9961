"""What the server says of an image, and the pictures that go with it."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from anomaly_lib.detect.shown import Shown
from anomaly_lib.serving.records import finite
from anomaly_lib.serving.service import Service
from anomaly_lib.viz.overlays import as_array
from anomaly_lib.viz.report import heat_layer, outline_layer


def row_of(found: Shown) -> dict[str, Any]:
    """Score, and what else is known: p_value, anomalous, area. Numbers may be infinite."""
    (row,) = found.rows()
    return {name: value for name, value in row.items() if name != "input"}


def result_of(name: str, sha: str, found: Shown) -> dict[str, Any]:
    """A result of JSON: nothing in it is empty or no number."""
    threshold = {} if found.threshold is None else {"threshold": found.threshold}
    return {"name": name, "sha": sha, **finite({**row_of(found), **threshold})}


def pictures_of(found: Shown, kind: str) -> dict[str, str]:
    """PNGs in base64. `kind` "true": what the detector saw, and the overlay; "layers": the overlay's layers."""
    seen = found.picture()
    pictures = {"picture": _png(seen)}
    if found.map is None or kind == "false":
        return pictures
    if kind == "true":
        return {**pictures, "overlay": _png(found.overlay())}
    size = seen.shape[:2]
    pictures["heat"] = _text(heat_layer(as_array(found.map[0].float()), found.value_range(), size))
    region = None if found.region is None else outline_layer(as_array(found.region[0]), size, width=_line_of(size))
    return pictures if region is None else {**pictures, "region": _text(region)}


def _line_of(size: tuple[int, int]) -> int:
    return max(1, size[0] // 160)


def _png(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=3)
    return _text(out.getvalue())


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def columns_of(service: Service) -> list[str]:
    """What this detector says of every image."""
    decision = service.detector.decision
    known = {
        "score": True,
        "p_value": decision is not None and decision.has_p_values,
        "anomalous": decision is not None,
        "area": decision is not None and decision.map_threshold is not None,
    }
    return [name for name, there in known.items() if there]


def described(service: Service) -> dict[str, Any]:
    """A detector in words and numbers, as far as they are known."""
    detector, decision = service.detector, service.detector.decision
    said: dict[str, Any] = {"name": service.name, "system": detector.system}
    if decision is None:
        said["undecided"] = detector.undecided
    else:
        promised = {} if decision.false_alarms is None else {"false_alarms": decision.false_alarms}
        said |= {"decision": decision.describe(), **finite({"threshold": decision.threshold, **promised})}
    remarks = detector.facts.remarks()
    return {**said, "remarks": remarks} if remarks else said
