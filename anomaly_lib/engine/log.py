"""What a run says: lines on the console and in log.txt, a progress bar on terminals, optional trackers."""

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, TypeVar

from anomaly_lib.engine.distributed import is_main

T = TypeVar("T")


class Log:
    """Console and file. Only the main rank speaks."""

    def __init__(self, folder: Path | None = None, *, quiet: bool = False) -> None:
        self.folder, self.quiet = folder, quiet
        self._status_shown = False

    def line(self, text: str) -> None:
        if not is_main():
            return
        if not self.quiet:
            sys.stdout.write(("\n" if self._status_shown else "") + text + "\n")
            sys.stdout.flush()
            self._status_shown = False
        self._to_file(text)

    def status(self, text: str) -> None:
        """A line that the next one replaces on a terminal; elsewhere, and in the file, a line like any other."""
        if self.quiet or not is_main() or not sys.stdout.isatty():
            self.line(text)
            return
        width = shutil.get_terminal_size().columns - 1
        sys.stdout.write(f"\r\033[K{text[:width]}")
        sys.stdout.flush()
        self._status_shown = True
        self._to_file(text)

    def _to_file(self, text: str) -> None:
        if self.folder is not None:
            with (self.folder / "log.txt").open("a", encoding="utf-8") as stream:
                stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def progress(items: Iterable[T], title: str, *, total: int | None = None) -> Iterator[T]:
    """tqdm on a terminal; elsewhere a plain line now and then, so that logs stay readable."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not is_main():
        yield from items
    elif sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=title, total=total, leave=False)
    else:
        yield from _plain_progress(items, title, total)


def progress_to(title: str) -> Callable[[int, int], None]:
    """The same bar for work that counts by itself: call it with (done, total); a smaller `done` begins a new bar."""
    bar: Iterator[int] = iter(())
    reached = 0

    def show(done: int, total: int) -> None:
        nonlocal bar, reached
        if done <= reached or not reached:
            bar, reached = progress(range(total), title), 0
        for _ in range(done - reached):
            next(bar, None)
        reached = done
        if done == total:
            next(bar, None)  # closes it
            reached = 0

    return show


def _plain_progress(items: Iterable[T], title: str, total: int | None, every_seconds: float = 20.0) -> Iterator[T]:
    started = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= every_seconds:
            last = now
            rate = done / (now - started)
            remaining = f", {(total - done) / rate:.0f} s left" if total else ""
            sys.stderr.write(f"{title}: {done}{f'/{total}' if total else ''}, {rate:.3g} a second{remaining}\n")


class Trackers:
    """TensorBoard and Weights & Biases, imported only when asked for; a run never fails because of them."""

    def __init__(self, folder: Path, args: Any, log: Log, *, wandb_run_id: str | None = None) -> None:
        self.board: Any = None
        self.wandb_run: Any = None
        if not is_main():
            return
        if getattr(args, "tensorboard", False):
            self.board = self._open_tensorboard(folder, log)
        if getattr(args, "wandb", False):
            self.wandb_run = self._open_wandb(folder, args, log, wandb_run_id)

    @staticmethod
    def _open_tensorboard(folder: Path, log: Log) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.line("tensorboard is not installed (pip install 'anomaly_lib[tensorboard]'): metrics.jsonl has it all")
            return None
        return SummaryWriter(str(folder / "tensorboard_logs"))

    @staticmethod
    def _open_wandb(folder: Path, args: Any, log: Log, run_id: str | None) -> Any:
        import os

        try:
            import wandb
        except ImportError:
            log.line("wandb is not installed (pip install 'anomaly_lib[wandb]'): metrics.jsonl has it all")
            return None
        logged_in = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").is_file()
        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in else "offline")
        name = args.wandb_name or folder.name
        asked = getattr(args, "wandb_id", None)
        if run_id and not asked:
            log.line(f"W&B: run id {run_id} read from the checkpoint")
        run_id = asked or run_id
        log.line(
            f"W&B: {f'resuming run {run_id}' if run_id else f'new run {name}'} in project {args.wandb_project} ({mode})"
        )
        try:
            started = wandb.init(
                project=args.wandb_project,
                entity=getattr(args, "wandb_entity", None),
                name=name,
                id=run_id,
                resume="allow" if run_id else None,
                dir=str(folder),
                mode=mode,
            )
            log.line(f"W&B: initialised run {started.id}")
            return started
        except Exception as error:  # noqa: BLE001  (a tracker must not cost a run)
            log.line(f"W&B could not start ({type(error).__name__}); going on without it")
            return None

    @property
    def wandb_run_id(self) -> str | None:
        return None if self.wandb_run is None else str(self.wandb_run.id)

    def log(self, epoch: int, values: dict[str, float]) -> None:
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, epoch)
        if self.wandb_run is not None:
            self.wandb_run.log({**values, "epoch": epoch})

    def close(self) -> None:
        if self.board is not None:
            self.board.close()
        if self.wandb_run is not None:
            self.wandb_run.finish()
