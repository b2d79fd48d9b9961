"""The record of a run, run.json: what it may hold. Whoever reads one reads it here."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anomaly_lib.config import to_plain
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json

NAME = "run.json"
STATES = ("new", "running", "interrupted", "failed", "finished")
WHOLE = ("system", "status", "args", "metrics")  # what the record of every run holds


def _text(value: Any) -> bool:
    return isinstance(value, str) and value == value.encode(errors="replace").decode()  # half a character is none


def _number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _seconds(value: Any) -> bool:
    return _number(value) and math.isfinite(value) and value >= 0


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _by_name(value: Any, kind: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(_text, value)) and all(map(kind, value.values()))


PARTS: dict[str, Callable[[Any], bool]] = {
    "system": _text,
    "status": lambda value: value in STATES,
    "args": lambda value: isinstance(value, dict),
    "metrics": lambda value: _by_name(value, _number),  # NaN where one kind of sample is missing
    "seconds": _seconds,
    "weights": lambda value: _by_name(value, _text),
    "fingerprint": lambda value: isinstance(value, dict) and all(_text(value.get(one)) for one in ("content", "seen")),
    "checkpoint": _text,
    "resumed": _text,
    "error": lambda value: value is None or _text(value),
    "remarks": _texts,
    "closing": _texts,
}


def read_record(path: Path, needs: Sequence[str] = ()) -> dict[str, Any]:
    """What a run.json holds: every part that this library reads has its type, and what is needed is there."""
    remedy = "remove it, or train anew with fresh=True"
    try:
        record = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: not the record of a run; {remedy}")
    odd = [name for name, fits in PARTS.items() if (name in record or name in needs) and not _fits(record, name, fits)]
    if odd:
        raise UserError(f"{path}: not the record of a run ({', '.join(odd)} missing or odd); {remedy}")
    return record


def _fits(record: Mapping[str, Any], name: str, fits: Callable[[Any], bool]) -> bool:
    return name in record and fits(record[name])


def record_of(folder: Path, needs: Sequence[str] = ()) -> dict[str, Any]:
    """The record of a run folder; empty where it has none. What stands there under that name must be one."""
    path = folder / NAME
    return read_record(path, needs) if os.path.lexists(path) else {}


def new_record(system: str, args: Any) -> dict[str, Any]:
    """run.json of a run that begins."""
    return {
        "system": system, "status": "new", "args": to_plain(args), "seed": args.seed,
        "seconds": 0.0, "metrics": {}, "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }  # fmt: skip


def checkpoint_in(folder: Path, record: Mapping[str, Any]) -> Path | None:
    """The final checkpoint that a record names. It lies in the run's folder, wherever that has been moved to."""
    path = folder / Path(record.get("checkpoint", "")).name
    return path if os.path.isfile(path) else None


def in_a_word(value: Any) -> str:
    """What a record holds, whatever it is, as a part of one line."""
    text = str(value)
    return text if text.isprintable() and len(text) <= 80 else f"{text!r:.80}"
