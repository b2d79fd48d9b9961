"""Files that are either whole or not there: write to a temporary name, fsync, rename, fsync the folder. And text files
of any encoding that says what it is, read back."""

import codecs
import csv
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from anomaly_lib.errors import UserError, reason_of

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, on Linux; elsewhere about as many
NAME_SHOWN = 60  # characters of a name that its temporary sibling repeats: both must fit into the 255 bytes of a name
BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


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
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:NAME_SHOWN]}.", suffix=".tmp", dir=path.parent)
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


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Delete what killed writes of `atomic_file` have left in `folder` (of the file `name`, or of all); call it where
    nobody else writes them.
    """
    start = f".{name[:NAME_SHOWN]}." if name else "."
    for path in folder.iterdir():
        if path.name.startswith(start) and path.name.endswith(".tmp"):
            path.unlink(missing_ok=True)


def forget_torn_line(path: Path) -> None:
    """Cut what a killed writer left of a last line off a text file that grows line by line."""
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        with path.open("r+b") as stream:
            stream.truncate(content.rfind(b"\n") + 1)


def lock_folder(folder: Path) -> IO[str] | None:
    """The open lock of a folder that is made where it is missing; None where another process holds it. It dies with its
    process, kill -9 included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("w")
    if lock_descriptor(lock.fileno(), blocking=False):
        return lock
    lock.close()
    return None


@contextmanager
def alone_at(path: Path) -> Iterator[None]:
    """Inside the block no other process is, that asks so for the same file; what killed ones left of it is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        lock_descriptor(lock.fileno(), poll_interval=0.005)
        remove_leftovers(path.parent, path.name)
        yield


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_atomic(path: Path | str, write: Callable[[IO[Any]], object], mode: str = "wb") -> None:
    with atomic_file(path, mode) as stream:
        write(stream)


def copy_file(source: Path | str, target: Path | str) -> None:
    """Copy a file under a name that stands for the whole of it or for nothing."""
    with atomic_file(target) as stream, Path(source).open("rb") as content:
        shutil.copyfileobj(content, stream)


def write_text(path: Path | str, text: str) -> None:
    write_atomic(path, lambda stream: stream.write(text), mode="w")


def write_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Put `text` in the place of what stands between two marks of a page; the marks stay."""
    whole = page.read_text(encoding="utf-8")
    head, tail = whole.split(marks[0])[0], whole.split(marks[1])[1]
    write_text(page, f"{head}{marks[0]}\n{text}\n{marks[1]}{tail}")


def write_json(path: Path | str, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


# -- reading ----------------------------------------------------------------------------------------------------------


def check_name(path: Path | str, where: str = "") -> None:
    """Refuse a name that is no text (no table, log or report could name it), and one that no file system takes.

    `where`: what begins the message, e.g. the line of the table that holds the name.
    """
    text = str(path)
    pieces = text.replace(os.sep, "/").split("/")
    longest = max(map(len, pieces))
    if text.isprintable() and longest * 4 <= LONGEST_NAME and len(text) * 4 <= LONGEST_PATH:
        return
    try:
        parts = [len(part.encode()) for part in pieces]
    except UnicodeEncodeError:
        raise UserError(f"{where}{readable(path)}: the name is not text in UTF-8; rename it") from None
    if any(ord(letter) < 32 for letter in text):
        raise UserError(f"{where}{text!r:.200}: the name holds control characters; rename it")
    if max(parts) > LONGEST_NAME or sum(parts) + len(parts) > LONGEST_PATH:
        raise UserError(f"{where}{text[:60]}...: the name is longer than any file system takes ({max(parts)} bytes)")


def readable(path: Path | str) -> str:
    """A path as text that can be printed and written: what is no text in it is escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def check_file(path: Path | str, what: str = "file") -> None:
    """Refuse what cannot be read as a file: a pipe would wait for ever, a folder or a device holds no `what`."""
    check_name(path)
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError as error:
        reason = f"no such {what}" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {reason}") from None
    if kind != stat.S_IFREG:
        raise UserError(f"{path}: {KINDS.get(kind, 'something else')}, no {what}; remove it")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: may not be read; change its permissions")


def encoding_of(path: Path | str, what: str = "file") -> str:
    """How a text file is encoded: by its byte-order mark, else UTF-8."""
    check_file(path, what)
    with open(path, "rb") as stream:
        head = stream.read(4)
    return next((name for mark, name in BOMS.items() if head.startswith(mark)), "utf-8")


def read_text(path: Path | str, what: str = "file") -> str:
    """The text of a file in UTF-8, or in the encoding that its byte-order mark says."""
    encoding = encoding_of(path, what)
    try:
        return Path(path).read_text(encoding=encoding)
    except UnicodeError as error:
        raise UserError(f"{path}: {_no_text(encoding, error)}") from None


def _no_text(encoding: str, error: UnicodeError) -> str:
    return f"not text in {encoding.removesuffix('-sig').upper()} ({reason_of(error)}); save it as UTF-8"


def csv_rows(path: Path | str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row of a CSV file in UTF-8 or with a byte-order mark; empty lines are left out."""
    encoding = encoding_of(path, "table")
    with open(path, newline="", encoding=encoding) as stream:
        reader = csv.reader(stream)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except UnicodeError as error:
            raise UserError(f"{path}, after line {reader.line_num}: {_no_text(encoding, error)}") from None
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: not a readable CSV row ({error})") from None


def csv_records(
    path: Path | str, *, needs: Sequence[str] = (), called: Callable[[str], str] = str
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {column: cell}) of each row below the header, whose titles become `called(title)`; `needs`: columns.

    Cells that are missing at the end of a row are empty; cells without a column are refused.
    """
    rows = csv_rows(path)
    titles = [called(title) for title in next(rows, (0, []))[1]]
    missing = [name for name in needs if name not in titles]
    if missing:
        raise UserError(f"{path}: column {missing[0]!r} is missing; expected {','.join(needs)}")
    twice = [title for title in titles if title and titles.count(title) > 1]
    if twice:
        raise UserError(f"{path}: two columns are called {twice[0]!r}")
    for line, cells in rows:
        if any(cell.strip() for cell in cells[len(titles) :]):
            raise UserError(f"{path}, line {line}: {len(cells)} cells, the header has {len(titles)}; quote commas")
        yield line, dict(zip(titles, [*cells, *[""] * (len(titles) - len(cells))], strict=False))


def read_json(path: Path | str) -> Any:
    """Parsed JSON; a missing or broken file is the user's to mend, so it is named in one line."""
    return parse_json(read_text(path), path)


def parse_json(text: str, source: Path | str) -> Any:
    """The value of a JSON text that comes from `source`."""
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as error:
        raise UserError(f"{source}: not valid JSON ({reason_of(error)})") from None
