"""SIGINT and SIGTERM end any work at once: they raise KeyboardInterrupt wherever the program is.

Nothing is lost by that: every file is written whole or not at all, so a signal costs no more than kill -9 does, and
less, since the run's record can still say that it was interrupted.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, NoReturn


def _raise(number: int, _: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(f"{signal.Signals(number).name}; the same command continues this run")


@contextmanager
def handled_by(handler: Any) -> Iterator[None]:
    """Both signals go to the handler within the block (only the main thread may; elsewhere nothing changes)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def stop_signals() -> AbstractContextManager[None]:
    """Both signals raise KeyboardInterrupt within the block."""
    return handled_by(_raise)


def signals_ignored() -> AbstractContextManager[None]:
    """For the seconds in which children are ended after a signal: a second one must not leave any behind."""
    return handled_by(signal.SIG_IGN)
