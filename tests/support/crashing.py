"""Kill a piece of work at every change it makes on the disk, run it again, and compare with work that was left alone.

    python tests/support/crashing.py CASE ... [--stride N] [--more N] [--ranks 2] [--publish]

What changes the disk is counted where Python reaches the operating system: opening for writing, every write of a file
object, rename, unlink, mkdir, truncate and fsync. A child is killed (SIGKILL) before the n-th change, and again half
way through it where it is a write; the same work then runs to its end in another child. A kill after the n-th change
leaves the same disk as one before the (n+1)-th. Imports are paid once: every child is a fork of this process.
Prints one JSON object a case: changes, kills, and the differences found; ``--publish`` keeps the counts in
benchmarks/results/crash_judge.json and writes the table of docs/manual/reliability.md from it.
"""

import argparse
import builtins
import io
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "crash_judge.json"
PAGE = ROOT / "docs" / "manual" / "reliability.md"
MARKS = ("<!-- crash-judge:begin -->", "<!-- crash-judge:end -->")
Work = Callable[[Path], object]
CHANGING = (
    "open", "replace", "rename", "unlink", "remove", "mkdir", "rmdir", "truncate", "link", "symlink",
    "fsync", "fdatasync", "ftruncate", "write", "pwrite",
)  # fmt: skip
PLAIN_OPEN = io.open
TIMES = re.compile(r"seconds|started|argv|bytes_per|_mib")
FINISHED, KILLED = 0, -signal.SIGKILL


@dataclass
class Changes:
    """Counts the changes below `root` in this process; dies at number `at` (0: never).

    `kinds`: what they were. "more" is a write that follows a write of the same file.
    """

    root: str
    at: int = 0
    half: bool = False
    kinds: list[str] = field(default_factory=list)
    last: str = ""

    def path_of(self, where: Any) -> str | None:
        """The path, or that of the file of a descriptor; None where it is not below the root."""
        try:
            path = os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else os.path.abspath(where)
        except (OSError, TypeError):
            return None
        return str(path) if str(path).startswith(self.root) else None

    def one(self, kind: str, where: Any) -> bool:
        """Count a change. True when it is to be done by half and then died of."""
        path = self.path_of(where)
        if path is None:
            return False
        self.kinds.append("more" if kind == "write" and self.last == path else kind)
        self.last = path if kind == "write" else ""
        if len(self.kinds) != self.at:
            return False
        if self.half and kind == "write":
            return True
        die()
        return False


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Watched(io.FileIO):
    """A raw file whose changes are counted."""

    changes: ClassVar[Changes]

    def write(self, data: Any, /) -> int:
        if self.changes.one("write", self.fileno()):
            super().write(memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
            die()
        return super().write(data)

    def truncate(self, size: int | None = None, /) -> int:
        self.changes.one("ftruncate", self.fileno())
        return super().truncate(size)


def open_watched(
    file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
    newline: str | None = None, closefd: bool = True, opener: Any = None,
) -> Any:  # fmt: skip
    """`open`, with a `Watched` file below whatever writes."""
    if not set(mode) & set("wax+"):
        return PLAIN_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
    if not isinstance(file, int):
        Watched.changes.one("open", file)
    raw = Watched(file, mode.replace("b", "").replace("t", ""), closefd, opener)
    if buffering == 0:
        return raw
    binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)


def counted(changes: Changes, name: str) -> Callable[..., Any]:
    """A function of `os`, counted."""
    original = getattr(os, name)

    def call(where: Any, *more: Any, **named: Any) -> Any:
        if name == "open" and not more[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return original(where, *more, **named)
        if changes.one("write" if "write" in name else name, where):
            original(where, more[0][: len(more[0]) // 2], *more[1:], **named)
            die()
        return original(where, *more, **named)

    return call


def watch(changes: Changes) -> None:
    """From now on every change of this process below the root is counted."""
    Watched.changes = changes
    for name in CHANGING:
        setattr(os, name, counted(changes, name))
    io.open = builtins.open = open_watched


# -- children ----------------------------------------------------------------------------------------------------------


def child(work: Work, root: Path, changes: Changes, ranks: int) -> tuple[int, list[str]]:
    """Do the work in a fork (or `ranks` of them, of which the first is counted); exit code and kinds of its changes."""
    log, said = Path(f"{root}.kinds"), Path(f"{root}.said")
    port, children = free_port() if ranks > 1 else 0, []
    for rank in range(ranks):
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        code = 1
        try:
            with said.open("w") as stream:
                os.dup2(stream.fileno(), 1), os.dup2(stream.fileno(), 2)
            if ranks > 1:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            if rank == 0:
                watch(changes)
            work(root)
            code = 0
        except BaseException:  # noqa: BLE001  (whatever ends a child is said in its output)
            traceback.print_exc()
        finally:
            if rank == 0:
                changes.root = "/nowhere"
                log.write_text("\n".join(changes.kinds))
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    first = os.waitpid(children[0], 0)[1]
    for other in children[1:]:  # as torchrun does: one rank has died, so the others end
        if first:
            os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    kinds = log.read_text().splitlines() if log.is_file() else []
    log.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(first), kinds


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# -- comparing ---------------------------------------------------------------------------------------------------------


def differences(left: Path, right: Path) -> list[str]:
    """Files, tensors and figures in which two folders differ; times and the log are left out."""
    files = [{p.relative_to(one).as_posix() for p in one.rglob("*") if p.is_file()} for one in (left, right)]
    names = [{n for n in one if not n.endswith((".lock", "log.txt")) and Path(n).name != "lock"} for one in files]
    found = [f"only once: {name}" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        a, b = (content_of(one / name) for one in (left, right))
        found += [f"{name}: {place}" for place in unlike(a, b)]
    return found


def content_of(path: Path) -> Any:
    import torch

    if path.stem == "epochs" and path.suffix != ".json":
        return None  # the same as epochs.json, with the seconds of every epoch in the text
    if path.suffix in (".pt", ".pth"):
        return torch.load(path, weights_only=True)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.name == "predictions.csv":  # the last digit of a score depends on which images are scored together
        return [line.split(",") for line in re.sub(r"(\d\.\d{5})\d+", r"\1", path.read_text()).splitlines()]
    return path.read_bytes()


def unlike(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Places in which two contents differ."""
    import torch

    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            if not TIMES.search(str(key)):
                yield from unlike(a.get(key), b.get(key), f"{place}/{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from unlike(x, y, f"{place}/{number}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()):
            yield place
    elif a != b and not (a != a and b != b):
        yield f"{place} ({str(a)[:60]} | {str(b)[:60]})"


# -- the judge ---------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What came of it."""

    case: str
    ranks: int = 1
    stride: int = 1
    more: int = 1
    changes: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    differences: list[str] = field(default_factory=list)


def moments(kinds: list[str], stride: int, more: int) -> Iterator[tuple[int, bool]]:
    """(number of the change to die before, by half?): every `stride`-th, of the writes that only go on writing a file
    every `more`-th; the last moment is behind all changes.
    """
    chosen = [n for n, kind in enumerate(kinds, start=1) if kind != "more"]
    chosen += [n for n, kind in enumerate(kinds, start=1) if kind == "more"][::more]
    for place, number in enumerate(sorted(chosen)[::stride]):
        writes = kinds[number - 1] in ("write", "more")
        if not writes or stride == 1 or place % 2:
            yield number, False
        if writes and (stride == 1 or not place % 2):
            yield number, True
    yield len(kinds) + 1, False


def judge(case: str, work: Work, *, ranks: int = 1, stride: int = 1, more: int = 1) -> Verdict:
    """Kill `work` at its changes, run it to its end, compare with the work that was left alone."""
    verdict = Verdict(case, ranks, stride, more)
    with tempfile.TemporaryDirectory() as place:
        root, reference = Path(place) / "work", Path(place) / "reference"
        code, kinds = child(work, root, Changes(str(root)), ranks)
        if code != FINISHED:
            verdict.differences.append(f"left alone: exit code {code}: {said_last(root)}")
            return verdict
        verdict.changes, verdict.kinds = len(kinds), {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        root.rename(reference)
        for number, half in moments(kinds, stride, more):
            kind = kinds[number - 1] if number <= len(kinds) else "end"
            where = f"{number} ({kind}{', half' if half else ''})"
            shutil.rmtree(root, ignore_errors=True)
            code, _ = child(work, root, Changes(str(root), number, half), ranks)
            verdict.kills += code == KILLED
            if code != (FINISHED if kind == "end" else KILLED):
                verdict.differences.append(f"{where}: not killed, exit code {code}: {said_last(root)}")
            code, _ = child(work, root, Changes("/nowhere"), ranks)
            if code != FINISHED:
                verdict.differences.append(f"{where}: not ended by the same command: {said_last(root)}")
            else:
                verdict.differences += [f"{where}: {one}" for one in differences(reference, root)]
    return verdict


def said_last(root: Path) -> str:
    """The last line of what the last child said."""
    return (Path(f"{root}.said").read_text().strip().splitlines() or [""])[-1]


# -- publishing --------------------------------------------------------------------------------------------------------


def publish(verdict: Verdict) -> None:
    """Replace the row of this case in the results file, and the table of the page."""
    from anomaly_lib.engine.run import machine_facts
    from anomaly_lib.files import read_json, write_between, write_json

    row = {name: value for name, value in vars(verdict).items() if name != "kinds"}
    row |= {"differences": len(verdict.differences), "commit": machine_facts()["git_commit"]}
    rows = {(one["case"], one["ranks"]): one for one in read_json(RESULTS)["rows"]}
    rows[verdict.case, verdict.ranks] = row
    write_json(RESULTS, {"rows": list(rows.values())})
    write_between(PAGE, MARKS, table(list(rows.values())))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each case."""
    head = ["case", "ranks", "changes", "killed at", "kills", "differences", "commit"]
    cells = [[*(one[n] for n in head[:3]), how_often(one), *(one[n] for n in head[4:])] for one in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def how_often(row: dict[str, Any]) -> str:
    """The moments of a row, in words."""
    if row["stride"] == row["more"] == 1:
        return "every change"
    more = f"; of going on to write one file, every {row['more']}th" if row["more"] > 1 else ""
    return {1: "every change", 3: "every third"}.get(row["stride"], f"every {row['stride']}th") + more


def main() -> None:
    from tests.support.crash_cases import CASES

    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="+", choices=sorted(CASES))
    parser.add_argument("--stride", type=int, default=1, help="kill at every so many-th change")
    parser.add_argument("--more", type=int, default=1, help="and of writes that go on, at every so many-th of them")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--publish", action="store_true", help="keep the counts and write them into the manual")
    options = parser.parse_args()
    for case in options.cases:
        with tempfile.TemporaryDirectory() as place, redirect_stdout(io.StringIO()):
            work = CASES[case](Path(place))
            if options.ranks == 1:
                work(Path(place) / "warm")  # what is imported at first use is imported here
            verdict = judge(case, work, ranks=options.ranks, stride=options.stride, more=options.more)
        print(json.dumps(vars(verdict)), flush=True)
        if options.publish:
            publish(verdict)


if __name__ == "__main__":
    main()
