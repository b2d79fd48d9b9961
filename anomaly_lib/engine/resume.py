"""Going on from a checkpoint: with the options it was trained with, on the data it was trained on, with its best model.

A run that is started with ``resume=FILE`` takes all options from the file. What is given beside it may differ where the
option is declared `resumable` or has no part in the result, and is refused elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from anomaly_lib.config import default_of, given_options, note_given, refuse_without_effect, result_options, shown
from anomaly_lib.data.fingerprint import DataFingerprint
from anomaly_lib.engine.checkpoint import load_checkpoint
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.files import copy_file

A = TypeVar("A")
CHECKPOINT = "checkpoint.pt"
BEST_NAMES = ("best_model.pt", "best_model.pth")


def resume_file(args: Any, folder: Path | None) -> Path | None:
    """The file that ``resume=`` names; `folder` is that of the run. None without it."""
    if not args.resume or (folder is None and args.resume in ("latest", "last", "best")):
        return None
    if folder is None or args.resume not in ("latest", "last", "best"):
        path = Path(args.resume)
    elif args.resume == "best":
        path = next((folder / name for name in BEST_NAMES if (folder / name).is_file()), folder / BEST_NAMES[0])
    else:
        path = folder / CHECKPOINT
    if not path.is_file():
        raise UserError(f"resume={args.resume}: there is no {path}")
    return path


def resumed(system: str, args: A, folder: Path | None = None) -> A:
    """The options of a run that goes on from the file that ``resume=`` names; `args` themselves without it.

    `folder`: the run's own, for ``resume=latest``; where it is None and no option says it, the folder's name follows
    from the options, which are then those of its run anyway.
    """
    options: Any = args
    if folder is None and options.output_dir:
        folder = Path(options.output_dir)
    path, given = resume_file(options, folder), given_options(args)
    if path is None:
        refuse_without_effect(args, {name: getattr(args, name) for name in given})
        return args
    saved = load_checkpoint(path, system=system, lazily=True)["args"]
    kind = type(options).saved_variant(saved)  # of the model in the file
    values, refused = {}, []
    for f in fields(kind):
        now = getattr(options, f.name, default_of(f))
        then = saved.get(f.name, now)
        chosen = not f.metadata["result"] or (f.name in given and f.metadata["resumable"])
        values[f.name] = now if chosen else then
        if not chosen and f.name in given and now != then:
            refused.append(f"{f.name}={shown(then)} -> {shown(now)}")
    if refused:
        raise UserError(
            f"{path}: a run that goes on from it keeps its options ({'; '.join(refused[:3])} is refused): leave them "
            "out, or train anew without resume="
        )
    try:
        merged = kind(**values)
    except OptionError as error:
        raise UserError(f"{path}: {error}") from error
    note_given(merged, given)
    return merged


def changes(saved: Mapping[str, Any], args: Any) -> list[str]:
    """``epochs 10 -> 20``: what is another now than in a checkpoint's options."""
    return [
        f"{name} {shown(saved[name])} -> {shown(value)}"
        for name, value in result_options(args).items()
        if name in saved and saved[name] != value
    ]


def check_data(source: str, noted: Mapping[str, Any] | None, data: DataFingerprint, args: Any) -> str | None:
    """Refuse to go on from, or to repeat, what was trained on other data. A remark where nobody noted which it was."""
    if not noted:
        return f"{source}: does not say which data it was trained on (an earlier edition wrote it): not compared"
    if not data.equals(noted):
        where = getattr(args, "data_path", None)
        place = f"data_path={where}" if where else "the built-in data"
        raise UserError(
            f"{source}: was trained on other data than {place} now holds ({len(data.files)} files): give the data it "
            "was trained on, or fresh=True or another output_dir= to train on these"
        )
    return None


def carry_best(source: Path, saved: Mapping[str, Any], folder: Path, name: str) -> None:
    """Copy the best model of the epochs that `source` has done into `folder`, under the `name` its run gave it."""
    if not saved["best"]:
        return
    beside, epochs = source.with_name(name), saved["history"]
    if beside.is_file() and _begins_with(epochs, load_checkpoint(beside, system=str(saved["system"]))["history"]):
        copy_file(beside, folder / name)
    elif _is_best(saved):  # the best model itself under another name
        copy_file(source, folder / name)
    else:
        there = "is of a later epoch" if beside.is_file() else "does not lie beside it"
        raise UserError(
            f"resume={source}: its best model so far ({name}) {there}, and could not be kept if no better one follows; "
            "put it there, or go on from the best model itself"
        )


def _begins_with(whole: Sequence[Any], part: Sequence[Any]) -> bool:
    return repr(whole[: len(part)]) == repr(part)  # of their text, since a NaN does not equal itself


def _is_best(saved: Mapping[str, Any]) -> bool:
    """Is the last epoch of a checkpoint its best one?"""
    last = saved["history"][-1] if saved["history"] else {}
    return all(last.get(name) == value for name, value in saved["best"].items() if name != "epoch")
