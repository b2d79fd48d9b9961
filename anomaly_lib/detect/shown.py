"""A prediction of images that knows its pictures and shows itself in a notebook."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from PIL import Image

from anomaly_lib.types import AnyPrediction, Prediction

SIDE = 224  # pixels of a picture's longer side
PICTURES = 12  # inputs that are drawn; the others are counted
CELL = "padding:4px 8px;text-align:left;vertical-align:top;"


@dataclass(repr=False)
class Shown(Prediction):
    """What an image detector answers, with what it saw. Pictures are made when they are looked at, from the inputs."""

    names: list[str] = field(default_factory=list)  # [B] file names without folders, or "input 0"
    seen: Callable[[int], np.ndarray] | None = None  # index -> [H, W, 3] uint8, which the map lies on
    limit: float | None = None  # the value of a map from which on it is anomalous

    @classmethod
    def of(cls, found: Prediction, **more: Any) -> "Shown":
        return cls(**{f.name: getattr(found, f.name) for f in fields(Prediction)}, **more)

    def _rows(self: AnyPrediction, index: list[int]) -> AnyPrediction:
        some: Any = super()._rows(index)
        names, seen = some.names, some.seen
        some.names = [names[one] for one in index]
        some.seen = None if seen is None else lambda place: seen(index[place])
        chosen: AnyPrediction = some
        return chosen

    def rows(self) -> list[dict[str, Any]]:
        """As of every prediction, the input's name first."""
        return [{"input": name, **row} for name, row in zip(self.names, super().rows(), strict=True)]

    def picture(self, index: int = 0) -> np.ndarray:
        """[H, W, 3] uint8: what the detector saw of an input."""
        assert self.seen is not None
        return self.seen(index)

    def overlay(self, index: int = 0) -> np.ndarray:
        """[H, W, 3] uint8: the heat map over the picture, the region outlined; without a map the picture.

        One colour scale for all inputs of the prediction; with a decision it reaches at least as far as the threshold
        of maps, so that a good part stays dark.
        """
        from anomaly_lib.viz.overlays import overlay

        if self.map is None:
            return self.picture(index)
        region = None if self.region is None else self.region[index]
        return overlay(self.picture(index), self.map[index], self.value_range(), region=region)

    def value_range(self) -> tuple[float, float]:
        """From which value of a map to which the colours of `overlay` go."""
        from anomaly_lib.viz.overlays import map_range

        low, high = map_range(self.map)
        return low, high if self.limit is None else max(high, self.limit)

    def _repr_html_(self) -> str:
        """A table for a notebook: pictures inside it, names escaped, nothing fetched."""
        rows = self.rows()
        columns = [name for name in rows[0] if name != "input"] if rows else []
        drawn = self.seen is not None
        titles = ["picture", "heat map"][: 0 if not drawn else 1 if self.map is None else 2]
        heads = ["input", *titles, *columns]
        lines = [_line([html.escape(head.replace("_", "-")) for head in heads], "th")]
        for index, row in enumerate(rows[:PICTURES]):
            pictures = [_image(self.picture(index), row["input"])] if drawn else []
            if drawn and self.map is not None:
                pictures.append(_image(self.overlay(index), f"heat map of {row['input']}"))
            lines.append(_line([html.escape(row["input"]), *pictures, *(_cell(name, row[name]) for name in columns)]))
        notes = [f"and {len(rows) - PICTURES} more: slice the prediction to see them"] if len(rows) > PICTURES else []
        if self.threshold is not None:
            notes.append(f"anomalous from score {self.threshold:.4g} on")
        return f"<table>{''.join(lines)}</table><p>{'; '.join(notes)}</p>"


def _line(cells: Sequence[str], kind: str = "td") -> str:
    start = f'<{kind} style="{CELL}">'
    return "<tr>" + "".join(f"{start}{cell}</{kind}>" for cell in cells) + "</tr>"


def _cell(name: str, value: Any) -> str:
    if name == "anomalous":
        return "<b style='color:#c62828'>anomalous</b>" if value else "<span style='color:#2e7d32'>normal</span>"
    return f"{value:.1%}" if name == "area" else f"{value:.4g}"


def _image(pixels: np.ndarray, name: str) -> str:
    """An img element that holds its picture."""
    picture, out = Image.fromarray(pixels), io.BytesIO()
    scale = SIDE / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    picture.save(out, format="JPEG", quality=85)
    data = base64.b64encode(out.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(name)}" src="data:image/jpeg;base64,{data}"/>'
