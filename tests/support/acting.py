"""Does an option act? One run at tiny size with another value of it, compared with the run without."""

import hashlib
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import Field, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from anomaly_lib.config import Switch, default_of, kinds_of
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.models.detectors.registry import entries
from anomaly_lib.systems.registry import SYSTEMS

TIMES = r"seconds [\d.]+|\d+(\.\d+)? ?(s|ms|seconds|MiB)\b|\(.*? s, .*? s left\)|[0-9a-f]{8,}"
CHANGING = re.compile(rf"{TIMES}|\S*/\S+")  # times, checksums, places


@dataclass
class Outcome:
    """What a run leaves: figures, trained tensors, files, and what it said."""

    refused: str | None
    said: str = ""
    content: tuple[Any, ...] = ()


def outcome_of(system: str, folder: Path, changes: Mapping[str, Any]) -> Outcome:
    """Train `system` at tiny size with `changes` in `folder`."""
    said = StringIO()
    try:
        with redirect_stdout(said):
            result = SYSTEMS[system].train(SYSTEMS[system].tiny(**{"output_dir": str(folder), **changes}))
    except (ValueError, UserError) as error:
        return Outcome(refused=str(error))
    digest = hashlib.sha256()
    for path in sorted(result.run_dir.rglob("*.pt*")):
        content = torch.load(path, weights_only=True)
        for part in ("model", "ema", "extra"):
            _feed(digest, content.get(part) if isinstance(content, dict) else None)
    files = sorted(str(path.relative_to(result.run_dir)) for path in result.run_dir.rglob("*") if path.is_file())
    lines = [CHANGING.sub("", line) for line in said.getvalue().splitlines()]
    metrics = {name: repr(value) for name, value in result.metrics.items()}
    place = result.checkpoint and result.checkpoint.name
    return Outcome(None, said.getvalue(), (metrics, digest.hexdigest(), files, lines, place))


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(
            str(value.shape).encode() + value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _feed(digest, value[key])
    elif isinstance(value, (list, tuple)):
        for one in value:
            _feed(digest, one)
    else:
        digest.update(repr(value).encode())


def only_one(f: "Field[Any]") -> bool:
    """Has the option one value alone?"""
    return len(f.metadata["options"] or "many") == 1


def another_value(f: "Field[Any]", value: Any) -> Any:
    """A value of the option that is not `value`, inside its range where one is easy to name."""
    if f.type == Switch:
        return not value
    if f.metadata["options"]:
        others = [one for one in f.metadata["options"] if one != value and [one] != value]
        return [others[0]] if f.metadata.get("nargs") else others[0]
    if f.metadata.get("nargs"):
        first = value[0] if value else (kinds_of(f.type)[0] or (str,))[0](1)
        return [_shifted(f, one) for one in value] or [first]
    return _shifted(f, default_of(f) if value is None else value)


def _shifted(f: "Field[Any]", value: Any) -> Any:
    kind = (kinds_of(f.type)[0] or (str,))[0]
    if kind is str:
        return f"{value or ''}x"
    low, high = f.metadata["at_least"], f.metadata["at_most"]
    if value is None:
        value = low or 0
    moved = kind(value + 1) if kind is int else value * 1.5 + 0.05
    if high is not None and moved > high:
        moved = kind(value - 1) if kind is int else value / 2
    return max(moved, low) if low is not None else moved


def options_of(system: str) -> list[tuple["Field[Any]", dict[str, Any]]]:
    """Every option of a system, with the choice that gives it, e.g. of a model: those of all once, its own for each."""
    args = SYSTEMS[system].Args
    if "model" not in args.CHOOSES:
        return [(f, {}) for f in fields(args)]
    found = {}
    for entry in entries():
        try:
            SYSTEMS[system].tiny(model=entry.name)
        except OptionError as error:  # e.g. what scores images by one another has no transfer
            if f"model={entry.name}" not in str(error):
                raise
            continue
        own = {f.name for f in fields(entry.config)}
        for f in fields(args.variant({"model": entry.name})):
            found.setdefault((entry.name if f.name in own else "", f.name), (f, {"model": entry.name}))
    return list(found.values())
