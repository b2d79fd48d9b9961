"""Checkpoints: plain tensors and plain Python types, written whole or not at all, opened without unpickling code."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from anomaly_lib.backbones.weights import why_unreadable
from anomaly_lib.engine.seed import rng_state, set_rng_state
from anomaly_lib.errors import UserError, reason_of
from anomaly_lib.files import atomic_file

FORMAT = 1


class Stateful(Protocol):
    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass
class TrainState:
    """Everything a run needs to go on as if it had never stopped. `model` holds what is trained, not frozen towers."""

    model: Stateful
    optimizer: Stateful | None = None
    scheduler: Stateful | None = None
    scaler: Stateful | None = None
    ema: Stateful | None = None
    early_stop: Stateful | None = None
    best: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)  # a system's own plain payload, e.g. its support list

    PARTS = ("model", "optimizer", "scheduler", "scaler", "ema", "early_stop")

    def to_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in self.PARTS}
        states = {name: None if part is None else dict(part.state_dict()) for name, part in parts.items()}
        return {**states, "best": self.best, "history": self.history, "extra": self.extra, "rng": rng_state()}

    def load_dict(self, saved: Mapping[str, Any], *, source: str = "checkpoint", rng: bool = True) -> None:
        """Take over a checkpoint's content; `source` names it where a part is missing or does not fit."""
        for name in self.PARTS:
            part, state = getattr(self, name), saved.get(name)
            if part is None:
                continue
            if state is None:
                raise UserError(f"{source}: has no {name} to go on from; give another resume=, or fresh=True")
            try:
                steps = getattr(part, "total_steps", None)
                part.load_state_dict(state)
                if getattr(part, "total_steps", None) != steps:
                    raise ValueError("its one-cycle schedule has another length: leave epochs= out")
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise UserError(f"{source}: its {name} does not fit these options ({reason_of(error)})") from error
        _set_rates(self.scheduler)
        self.best, self.history, self.extra = dict(saved["best"]), list(saved["history"]), dict(saved["extra"])
        self.extra.pop("decision", None)  # it was made for the weights that training now goes on from
        if rng:
            set_rng_state(saved["rng"])


def _set_rates(scheduler: Any) -> None:
    """The learning rates that the schedule gives for the next epoch, which is another one than saved when the run has
    been given more epochs; else the same bits.
    """
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        groups = scheduler.optimizer.param_groups
        for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)


def plain(value: Any, where: str = "checkpoint") -> Any:
    """`value` with paths, NumPy scalars and arrays made plain; anything else foreign is refused by its place."""
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):  # str subclasses such as torch's version string
        return str(value)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # NumPy, without importing it
        return value.tolist() if not getattr(value, "shape", ()) else torch.as_tensor(value)
    raise TypeError(f"{where}: a {type(value).__name__} does not belong into a checkpoint")


def save_checkpoint(path: Path | str, payload: Mapping[str, Any], *, system: str) -> Path:
    """Write `payload` atomically under `path`."""
    content = {"format": FORMAT, "system": system, **plain(payload)}
    with atomic_file(path) as stream:
        torch.save(content, stream)
    return Path(path)


def add_to_checkpoint(path: Path | str, *, system: str, **extra: Any) -> dict[str, Any]:
    """Put what was found out after training into ``extra`` of a checkpoint, atomically; its new content."""
    content = load_checkpoint(path, system=system)
    content["extra"] = {**content["extra"], **extra}
    save_checkpoint(path, content, system=system)
    return content


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read once and travels as an object."""

    path: Path
    content: Mapping[str, Any]
    adopted: bool = False  # a file of a system's authors, read as one of ours

    @property
    def system(self) -> str:
        return str(self.content["system"])

    @property
    def args(self) -> dict[str, Any]:
        """The options of its run, as they were saved."""
        return dict(self.content["args"])

    @property
    def extra(self) -> dict[str, Any]:
        """What the system keeps beside its weights."""
        return dict(self.content["extra"])

    def __getitem__(self, part: str) -> Any:
        return self.content[part]

    def get(self, part: str, default: Any = None) -> Any:
        return self.content.get(part, default)

    def check_weights(self, found: Mapping[str, str]) -> None:
        """Refuse to be used with other frozen weights than in training (`found`: network -> sha256)."""
        check_weights(self.path, self.extra, found)


def is_ours(content: Any) -> bool:
    """True for what `save_checkpoint` writes, and for what is left of it: no other program's file has two of these."""
    return isinstance(content, Mapping) and len({"system", "format", "extra"} & content.keys()) > 1


def verify_records(path: Path | str) -> None:
    """Refuse a file whose bytes have changed since it was written: torch.load itself compares no checksum.

    Every record of the archive (each tensor, and what ties them together) carries a CRC-32 that torch.save wrote.
    """
    try:
        if not zipfile.is_zipfile(path):
            return  # not what torch.save writes today; the reader says what it is
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged ({error}); restore a copy of it or train again") from None
    if damaged is not None:
        raise UserError(f"{path}: damaged (the record {damaged} has changed); restore a copy of it or train again")


def check_format(path: Path | str, content: Mapping[str, Any]) -> None:
    """Refuse a file that a newer edition has written, and one whose head is odd."""
    kinds = {"format": int, "system": str, "args": Mapping, "extra": Mapping, "epoch": int}
    there = {"format", "system", *content}
    odd = [name for name, kind in kinds.items() if name in there and not isinstance(content.get(name), kind)]
    if odd:
        raise UserError(f"{path}: not a checkpoint that this library writes (its {', '.join(odd)} is odd)")
    if content["format"] > FORMAT:
        raise UserError(f"{path}: written by a newer anomaly_lib (format {content['format']}); upgrade to read it")


def load_checkpoint(path: Path | str, *, system: str | None = None, lazily: bool = False) -> dict[str, Any]:
    """Tensors and plain types of a checkpoint, on the CPU. A foreign, damaged or newer file gets one line.

    `lazily`: tensors stay on disk until they are touched.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint")
    verify_records(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except Exception as error:  # noqa: BLE001  (torch raises many kinds; all mean the file cannot be used)
        raise UserError(f"{path}: not a readable checkpoint ({why_unreadable(error)})") from None
    if not is_ours(content):
        raise UserError(
            f"{path}: not a checkpoint of this library (evaluate.py and anomaly_lib.load also open the originals')"
        )
    check_format(path, content)
    if system is not None and content["system"] != system:
        raise UserError(f"{path}: a checkpoint of {content['system']!r}, but {system!r} was expected")
    return content


def check_weights(path: Path | str, extra: Mapping[str, Any], found: Mapping[str, str]) -> None:
    """Refuse a checkpoint whose frozen networks hold other weights now (`found`: name -> sha256) than in training.

    A checkpoint that does not say what they were is taken as it is.
    """
    for name, want in extra.get("weights", {}).items():
        have = found.get(name, "none")
        if have != want:
            raise UserError(
                f"{path}: trained with weights {want[:16]} of {name}, which has {have[:16]} now: put that weight file "
                "back where training found it (or below $ANOMALY_LIB_WEIGHTS), or train again with --fresh"
            )
