"""One self-contained HTML page of results: no server, no network, thousands of images."""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomaly_lib.files import write_text
from anomaly_lib.viz.overlays import outline, resize_map, resize_mask
from anomaly_lib.viz.style import REGION_RGB, TRUTH_RGB, heat_table


@dataclass
class ReportImage:
    """One scored image; pictures are encoded at once, so a generator of these needs no memory for pixels."""

    path: str
    group: str
    label: int
    score: float
    defect: str = ""
    picture: bytes | None = None  # JPEG
    heat: bytes | None = None  # PNG that is the more transparent the lower the score
    truth: bytes | None = None  # PNG with transparency: the outline of the true defect
    region: bytes | None = None  # the same of what the detector calls anomalous
    p_value: float | None = None


@dataclass
class ReportRun:
    name: str
    images: Iterable[ReportImage]
    threshold: float | None = None
    promised: float | None = None  # share of false alarms at `threshold`
    decision: str = ""  # in words
    facts: dict[str, Any] = field(default_factory=dict)
    link: str | None = None  # relative address of run.json


def tile_size(count: int) -> int:
    """Edge of the thumbnails in pixels: a page of 5,000 images stays near 30 MB."""
    return 192 if count <= 600 else 128 if count <= 2500 else 96


def report_image(
    path: str,
    group: str,
    label: int,
    score: float,
    *,
    size: int,
    defect: str = "",
    image: np.ndarray | None = None,
    score_map: np.ndarray | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    mask: np.ndarray | None = None,
    region: np.ndarray | None = None,
    p_value: float | None = None,
) -> ReportImage:
    """Encode the thumbnails of one image."""
    picture = None if image is None else _jpeg(image, size)
    small = max(48, size // 2)
    heat = None if score_map is None else heat_layer(score_map, value_range, (small, small))
    truth = outline_layer(mask, (size, size), TRUTH_RGB)
    called = outline_layer(region, (size, size), REGION_RGB)
    name = defect or ("anomalous" if label else "normal")
    return ReportImage(path, group, int(label), float(score), name, picture, heat, truth, called, p_value)


def _jpeg(pixels: np.ndarray, size: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS).save(out, format="JPEG", quality=82)
    return out.getvalue()


def heat_layer(score_map: np.ndarray, value_range: tuple[float, float], size: tuple[int, int]) -> bytes:
    """A PNG [height, width] to lay over a picture: the lower the score, the more transparent.

    A palette of 32 colours and opacities: a smooth map of 64x64 takes about 1 kB.
    """
    low, high = value_range
    level = ((resize_map(score_map, size) - low) / max(high - low, 1e-12)).clip(0, 1)
    picture = Image.frombytes("P", size[::-1], np.round(level * 31).astype(np.uint8).tobytes())
    steps = np.linspace(0, 1, 32)
    picture.putpalette(heat_table()[np.round(steps * 255).astype(int)].ravel().tolist())
    out = io.BytesIO()
    picture.save(out, format="PNG", transparency=bytes(np.round(255 * steps**0.6).astype(np.uint8)), optimize=True)
    return out.getvalue()


def outline_layer(
    mask: np.ndarray | None, size: tuple[int, int], colour: tuple[int, int, int] = REGION_RGB, *, width: int = 1
) -> bytes | None:
    """A PNG [height, width] with the border of a mask, to lay over a picture; None of a mask that is empty."""
    if mask is None or not mask.any():
        return None
    line = outline(np.zeros((*size, 3), dtype=np.uint8), resize_mask(mask, size), width=width)
    picture = Image.frombytes("P", size[::-1], line.any(axis=2).astype(np.uint8).tobytes())
    picture.putpalette([0, 0, 0, *colour])
    out = io.BytesIO()
    picture.save(out, format="PNG", transparency=0, optimize=True)
    return out.getvalue()


def write_report(
    path: Path | str,
    runs: Sequence[ReportRun],
    *,
    title: str = "Anomaly detection report",
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    notes: Sequence[str] = (),
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]] | None = None,
    tile: int = 192,
) -> Path:
    """Write the page to `path` (a folder gets index.html). Every name is data, never markup.

    `tables`: further ones by their titles, as (columns, rows).
    """
    path = Path(path)
    path = path if path.suffix == ".html" else path / "index.html"
    pictures: dict[bytes, int] = {}  # two runs over the same images share their thumbnails
    data = {
        "tile": tile,
        "table": {"columns": list(columns), "rows": [list(row) for row in rows], "notes": list(notes)},
        "tables": [
            {"title": title, "columns": list(names), "rows": [list(row) for row in cells]}
            for title, (names, cells) in (tables or {}).items()
        ],
        "runs": [
            {
                "name": run.name,
                "threshold": run.threshold,
                "promised": run.promised,
                "decision": run.decision,
                "facts": {name: str(value) for name, value in run.facts.items()},
                "link": run.link,
                "samples": [_sample(image, pictures) for image in run.images],
            }
            for run in runs
        ],
        "pictures": [],
    }
    data["pictures"] = [_text(picture) for picture in pictures]
    template = files("anomaly_lib.viz").joinpath("report.html").read_text(encoding="utf-8")
    page = template.replace("@TITLE@", html.escape(title)).replace("@DATA@", script_json(data))
    write_text(path, page)
    return path


def _sample(image: ReportImage, pictures: dict[bytes, int]) -> list[Any]:
    number = -1 if image.picture is None else pictures.setdefault(image.picture, len(pictures))
    layers = [None if layer is None else _text(layer) for layer in (image.heat, image.truth, image.region)]
    return [image.path, image.group, image.defect, image.label, image.score, number, *layers, image.p_value]


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever the file names are."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
