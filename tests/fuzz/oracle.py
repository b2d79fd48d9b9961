"""What a case is, and when it has come out right.

Every case knows what must become of it: ``accept`` (and `act` answers True for the right content), ``refuse`` (one line
of a `UserError` that says `says`), or ``either`` where nothing in a file tells that it is damaged - then no traceback
and no hang is all that is asked.
"""

import contextlib
import io
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_lib.errors import UserError

SECONDS = 60  # a case that takes longer hangs


@dataclass(frozen=True)
class Case:
    """One input and what must become of it."""

    kind: str
    name: str  # distinct within its kind
    expect: str  # accept | refuse | either
    act: Callable[[Path], Any]  # makes its files in an empty folder, hands them over; False = a wrong answer
    says: str = ""  # regular expression that the refusal's line matches


class Hang(BaseException):
    """A case that took too long; no `except Exception` swallows it."""


@contextmanager
def watchdog(seconds: int = SECONDS) -> Iterator[None]:
    """Raise `Hang` in the block after `seconds`, where the system has alarms and this is the main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def bite(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, bite)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(case: Case, folder: Path) -> str:
    """Nothing where the case came out right, else what went wrong."""
    try:
        with watchdog():
            answer = case.act(folder)
    except UserError as error:
        return _judge_refusal(case, str(error))
    except Hang:
        return f"hangs: more than {SECONDS} s"
    except Exception as error:  # noqa: BLE001  (that any other kind comes out is the finding)
        return f"traceback: {type(error).__name__}: {error}"
    if case.expect == "refuse":
        return f"accepted: answers {answer!r:.80}"
    return "a wrong answer" if answer is False else ""


def _judge_refusal(case: Case, line: str) -> str:
    if case.expect == "accept":
        return f"refused, though it is good: {line}"
    if "\n" in line or not line.strip() or len(line) > 1000:
        return f"not one line: {line!r}"
    if not line.isprintable():
        return f"not printable: {line!r}"
    if case.says and not re.search(case.says, line):
        return f"does not say {case.says!r}: {line}"
    return ""


def program(main: Callable[[list[str]], int], *words: object) -> bool:
    """Run a script's `main` in this process: its refusal (exit code 2, one line) as a `UserError`, else True."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    written = err.getvalue().encode("ascii", "backslashreplace").decode()  # as Python's own stderr does
    said = [line for line in written.splitlines() if re.match(r"\S.*: ", line)]
    if code == 2:
        assert said, f"exit code 2 without a word: {err.getvalue()!r}"
        raise UserError(said[-1])
    assert code == 0, f"exit code {code}: {err.getvalue()[-300:]}"
    return True
