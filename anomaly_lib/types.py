"""The few shapes of data that cross the borders between the library's rooms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anomaly_lib.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Sample = dict[str, Any]
"""One example: ``image|video|audio|graph...``, ``label`` (0 normal, 1 anomalous), ``mask``, ``path``..."""

AnyPrediction = TypeVar("AnyPrediction", bound="Prediction")
LISTED = 10  # inputs that a prediction says in words


@dataclass(repr=False)
class Prediction:
    """What every detector answers. Higher is more anomalous, always.

    ``prediction[0]`` and each one of a loop is the prediction of one input, ``prediction[2:5]`` that of three.
    """

    score: Tensor  # [B]
    map: Tensor | None = None  # [B, H, W]
    parts: dict[str, Tensor] = field(default_factory=dict)  # branch name -> its score [B] or map [B, H, W]
    anomalous: Tensor | None = None  # [B] bool; None for a detector without a decision
    p_value: Tensor | None = None  # [B]; None without scores of normal data to compare with
    threshold: float | None = None  # the score from which on `anomalous` is true
    region: Tensor | None = None  # [B, H, W] bool: the anomalous part; None without a map or a threshold for it
    cell: float = 1.0  # pixels of the map that one value covered before the map was enlarged

    def __len__(self) -> int:
        return self.score.shape[0]

    def __getitem__(self: AnyPrediction, which: int | slice) -> AnyPrediction:
        if isinstance(which, slice):
            return self._rows(list(range(len(self)))[which])
        if not -len(self) <= which < len(self):
            raise IndexError(f"{which}: there are {len(self)} predictions")
        return self._rows([which % len(self)])

    def __iter__(self: AnyPrediction) -> Iterator[AnyPrediction]:
        return (self[index] for index in range(len(self)))

    def _rows(self: AnyPrediction, index: list[int]) -> AnyPrediction:
        """The prediction of some inputs."""
        values = {name: getattr(self, name) for name in ("score", "map", "anomalous", "p_value", "region")}
        some: dict[str, Any] = {name: None if value is None else value[index] for name, value in values.items()}
        return replace(self, parts={name: part[index] for name, part in self.parts.items()}, **some)

    def rows(self) -> list[dict[str, Any]]:
        """What can be said of each input in numbers; what the detector does not know is not there."""
        columns = {"score": self.score, "p_value": self.p_value, "anomalous": self.anomalous, "area": self.area}
        known = {name: values.tolist() for name, values in columns.items() if values is not None}
        return [{name: values[i] for name, values in known.items()} for i in range(len(self))]

    def to_frame(self) -> Any:
        """A row an input, as a pandas table."""
        try:
            import pandas
        except ImportError:
            raise UserError("to_frame() needs pandas: pip install pandas; rows() gives the same as a list") from None
        return pandas.DataFrame(self.rows())

    def __repr__(self) -> str:
        lines = [", ".join(_in_words(name, value) for name, value in row.items()) for row in self.rows()[:LISTED]]
        more = [f"and {len(self) - LISTED} more"] if len(self) > LISTED else []
        from_where = "" if self.threshold is None else f", anomalous from score {self.threshold:.4g} on"
        return "\n  ".join([f"{len(self)} prediction{'s' * (len(self) != 1)}{from_where}:", *lines, *more])

    @property
    def area(self) -> Tensor | None:
        """[B] share of the map that is anomalous, 0..1; None without a region."""
        return None if self.region is None else self.region.double().mean((1, 2))


def _in_words(name: str, value: Any) -> str:
    if name == "anomalous":
        return "anomalous" if value else "normal"
    if name == "area":
        return f"region {value:.1%}"
    return f"{name.replace('_', '-')} {value:.4g}" if isinstance(value, float) else str(value)


@dataclass
class RunResult:
    """What ``train(args)`` returns and a script prints."""

    run_dir: Path
    checkpoint: Path | None
    metrics: dict[str, float]
    already_done: bool = False
