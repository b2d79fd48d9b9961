"""The checkpoint files that a user's word stands for."""

import glob
from collections.abc import Iterator
from pathlib import Path

from anomaly_lib.engine.record import checkpoint_in, record_of
from anomaly_lib.errors import UserError

SUFFIXES = (".pt", ".pth", ".ckpt")
PREFERRED = ("best_model.pt", "best_model.pth", "checkpoint.pt")


def find_checkpoints(text: str | None) -> list[Path]:
    """The checkpoint files a FILE, run folder (or any folder above run folders) or glob pattern stands for."""
    if not text:
        raise UserError("checkpoint= is needed: a checkpoint file, a run folder, or a glob pattern in quotes")
    path = Path(text).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = list(_below(path))
    else:
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        found = [one for match in found for one in (_below(match) if match.is_dir() else [match])]
    if not found:
        raise UserError(f"checkpoint={text}: no such file, and no checkpoint ({', '.join(SUFFIXES)}) in or below it")
    return list(dict.fromkeys(found))


def one_checkpoint(text: str | None) -> Path:
    """The one checkpoint file that a FILE, run folder or glob pattern stands for."""
    found = find_checkpoints(text)
    if len(found) > 1:
        raise UserError(f"checkpoint={text}: {len(found)} checkpoints, e.g. {found[0]}; name one of them")
    return found[0]


def _below(folder: Path) -> Iterator[Path]:
    """One checkpoint a folder, the folder itself and everything below it; a run folder names its own."""
    named = checkpoint_in(folder, record_of(folder))
    if named is not None:
        yield named
        return
    here = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES and path.is_file()]
    named_first = [path for name in PREFERRED for path in here if path.name == name]
    if named_first or here:
        yield from named_first[:1] or here
        return
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from _below(inner)
