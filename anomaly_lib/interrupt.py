"""SIGINT and SIGTERM end any work at once: they raise KeyboardInterrupt wherever the program is.

Nothing is lost by that: every file is written whole or not at all, so a signal costs no more than kill -9 does, and
less, since the run's record can still say that it was interrupted.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


def _raise(number: int, _: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(f"{signal.Signals(number).name}; the same command continues this run")


@contextmanager
def stop_signals() -> Iterator[None]:
    """Both signals raise KeyboardInterrupt within the block (only the main thread may; elsewhere nothing changes)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _raise) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
