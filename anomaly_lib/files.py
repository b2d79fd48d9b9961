"""Files that are either whole or not there: write to a temporary name, fsync, rename, fsync the folder."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from anomaly_lib.errors import UserError


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut (a no-op where folders cannot be opened)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary sibling of `path` for writing; it takes the name `path` only when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files private; results are to be shared
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writes of `atomic_file` have left in `folder`; call it where nobody else writes there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_atomic(path: Path | str, write: Callable[[IO[Any]], object], mode: str = "wb") -> None:
    with atomic_file(path, mode) as stream:
        write(stream)


def write_text(path: Path | str, text: str) -> None:
    write_atomic(path, lambda stream: stream.write(text), mode="w")


def write_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Put `text` in the place of what stands between two marks of a page; the marks stay."""
    whole = page.read_text(encoding="utf-8")
    head, tail = whole.split(marks[0])[0], whole.split(marks[1])[1]
    write_text(page, f"{head}{marks[0]}\n{text}\n{marks[1]}{tail}")


def write_json(path: Path | str, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Parsed JSON; a missing or broken file is the user's to mend, so it is named in one line."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
