"""SIGINT and SIGTERM end a run between two batches; what finished epochs wrote is already safe on disk."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignals:
    """`check()` raises KeyboardInterrupt once a signal has come; a second Ctrl-C does not wait for it."""

    def __init__(self) -> None:
        self.requested: str | None = None

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt(f"{self.requested}, again")
        self.requested = signal.Signals(number).name

    def check(self) -> None:
        if self.requested:
            raise KeyboardInterrupt(f"{self.requested}; the same command continues this run")


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Catch both signals for the block (only the main thread may; elsewhere the default handling stays)."""
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
