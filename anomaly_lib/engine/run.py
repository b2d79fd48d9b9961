"""The run folder: what was asked for, how far it got, what came out. One folder, one set of options, one process.

    with Run.open("promptad", args, name="demo-bottle-k1") as run:
        if run.finished:
            return run.repeat()
        run.opening("PromptAD cls: bottle, k=1", weights=weights_of(net), cost=["5 images to encode"])
        state = TrainState(model=..., optimizer=...)
        for epoch in range(run.restore(state), args.epochs):
            for batch in ...:
                ...
            run.end_epoch(state, epoch, {"loss": ...})
        return run.finish(state, {"image_auroc": ...})

`opening`, `end_epoch`, `finish` and `repeat` say what every run says; nothing else prints these things.
Killing the process at any moment and running the same command again ends with the same weights, bit for bit (CPU).
"""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from filelock import lock_descriptor

from anomaly_lib.backbones.identity import weight_remarks, weights_in_words
from anomaly_lib.config import result_options, to_plain
from anomaly_lib.engine import distributed
from anomaly_lib.engine.checkpoint import TrainState, check_weights, load_checkpoint, save_checkpoint
from anomaly_lib.engine.log import Log, Trackers
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.engine.words import closing_lines, data_in_words, told_each_epoch
from anomaly_lib.errors import UserError
from anomaly_lib.features import MissingFeatures
from anomaly_lib.files import atomic_file, read_json, remove_leftovers, write_json, write_text
from anomaly_lib.interrupt import stop_signals
from anomaly_lib.types import RunResult

CHECKPOINT = "checkpoint.pt"


def options_hash(args: Any) -> str:
    return hashlib.sha256(json.dumps(result_options(args), sort_keys=True).encode()).hexdigest()[:8]


def default_folder(system: str, args: Any, name: str) -> Path:
    """--output-dir, else beside --save-path, else runs/SYSTEM/NAME-HASH."""
    if args.output_dir:
        return Path(args.output_dir)
    if args.save_path:
        return Path(args.save_path).with_suffix("")
    return Path("runs") / system / f"{name}-{options_hash(args)}"


def machine_facts() -> dict[str, Any]:
    """What a reader needs to judge or repeat a result."""
    from anomaly_lib import __version__

    try:
        here = Path(__file__).parent
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "anomaly_lib": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "git_commit": commit,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


RECORD_TYPES: dict[str, type] = {"system": str, "status": str, "args": dict, "metrics": dict}


def read_record(path: Path) -> dict[str, Any]:
    """A run.json that is one: what it must hold is there, in its type."""
    record = read_json(path)
    wrong = [
        name
        for name, kind in RECORD_TYPES.items()
        if not isinstance(record, dict) or not isinstance(record.get(name), kind)
    ]
    if wrong:
        raise UserError(f"{path}: not the record of a run ({', '.join(wrong)} missing or odd); give fresh=True")
    return dict(record)


class Run:
    """Open with `Run.open`; use as a context manager so that locks are freed and the status tells the truth."""

    def __init__(self, system: str, args: Any, folder: Path) -> None:
        self.system, self.args, self.dir = system, args, folder
        self.log = Log(folder)
        self.record: dict[str, Any] = {}
        self.trackers: Trackers | None = None
        self._stack = ExitStack()
        self._started = self._epoch_began = time.monotonic()
        self._epoch_seconds: list[float] = []  # of this process

    @classmethod
    def open(cls, system: str, args: Any, *, name: str) -> "Run":
        return cls(system, args, default_folder(system, args, name))

    # -- life cycle ---------------------------------------------------------------------------------------------

    def __enter__(self) -> "Run":
        self.dir.mkdir(parents=True, exist_ok=True)
        if distributed.is_main():
            self._lock()
            remove_leftovers(self.dir)
        earlier = read_record(self.dir / "run.json") if (self.dir / "run.json").is_file() else None
        nothing_done = earlier is not None and earlier.get("status") in ("new", "failed")
        if self.args.fresh or (nothing_done and not self.checkpoint.is_file()):
            earlier = None  # a run that failed before its first checkpoint stands in nobody's way
        if earlier is not None:
            self._refuse_other_options(earlier)
        distributed.barrier()
        if self.args.fresh and distributed.is_main():
            for leftover in [CHECKPOINT, "metrics.jsonl", "log.txt", "run.json"]:
                (self.dir / leftover).unlink(missing_ok=True)
        distributed.barrier()
        self.record = earlier or {
            "system": self.system, "status": "new", "args": to_plain(self.args), "seed": self.args.seed,
            "seconds": 0.0, "metrics": {}, "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }  # fmt: skip
        self._stack.enter_context(stop_signals())
        if not self.finished:
            self.record |= {"status": "running", **machine_facts(), "argv": sys.argv[1:]}
            self._write_record()
            seed_everything(self.args.seed + 7919 * distributed.rank())
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not self.finished:
            interrupted = issubclass(kind, KeyboardInterrupt)
            reason = str(error).splitlines()[0] if str(error) else kind.__name__
            self.note(status="interrupted" if interrupted else "failed", error=None if interrupted else reason)
        if self.trackers is not None:
            self.trackers.close()
        self._stack.close()
        if isinstance(error, MissingFeatures):  # a row was damaged on disk after it had been encoded
            raise UserError(f"{self.dir}: {error}: the same command does that and goes on") from error

    def _lock(self) -> None:
        """Two processes must not write one folder. The lock dies with its process, kill -9 included."""
        handle = self._stack.enter_context((self.dir / ".lock").open("w"))
        if not lock_descriptor(handle.fileno(), blocking=False):
            self._stack.close()
            raise UserError(f"{self.dir}: another process is writing this run; wait for it or give another output_dir=")

    def _refuse_other_options(self, earlier: dict[str, Any]) -> None:
        if earlier.get("system") != self.system:
            raise UserError(f"{self.dir}: holds a run of {earlier.get('system')!r}; give another output_dir=")
        if self.args.resume:
            return  # asked for in so many words: go on with the options given now
        old, new = earlier["args"], result_options(self.args)
        changed = [f"{k}={old.get(k)} -> {v}" for k, v in new.items() if old.get(k) != v]
        if changed:
            raise UserError(
                f"{self.dir}: holds a run with other options ({'; '.join(changed[:3])}): "
                "give fresh=True, another output_dir= or resume=latest"
            )

    # -- state --------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return self.record.get("status") == "finished" and not self.args.resume

    @property
    def checkpoint(self) -> Path:
        return self.dir / CHECKPOINT

    def resume_path(self, best_name: str = "best_model.pt") -> Path | None:
        """The checkpoint to go on from: what --resume names, else this folder's own unfinished one."""
        if self.args.resume in (None, "latest", "last"):
            if self.args.resume and not self.checkpoint.is_file():
                raise UserError(f"resume={self.args.resume}: there is no {self.checkpoint}")
            return self.checkpoint if self.checkpoint.is_file() else None
        path = self.dir / best_name if self.args.resume == "best" else Path(self.args.resume)
        if not path.is_file():
            raise UserError(f"resume={self.args.resume}: there is no {path}")
        return path

    def restore(self, state: TrainState, *, best_name: str = "best_model.pt") -> int:
        """Load the state to continue from, if any; returns the first epoch still to do."""
        path = self.resume_path(best_name)
        saved = None if path is None else load_checkpoint(path, system=self.system)
        self.trackers = Trackers(self.dir, self.args, self.log, wandb_run_id=(saved or {}).get("wandb_run_id"))
        self._epoch_began = time.monotonic()
        if saved is None:
            if distributed.is_main():  # rows of epochs that no checkpoint holds would be repeated
                (self.dir / "metrics.jsonl").unlink(missing_ok=True)
            return 0
        if "weights" in self.record:
            check_weights(str(path), saved["extra"], self.record["weights"])
        state.load_dict(saved, source=str(path), rng=distributed.rank() == 0)
        if distributed.is_main():
            write_text(self.dir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in state.history))
        self.log.line(f"continuing {path} after epoch {saved['epoch']}")
        return int(saved["epoch"])

    def payload(self, state: TrainState, epochs_done: int) -> dict[str, Any]:
        """What a checkpoint of this run holds; the record's `weights` (of the frozen networks) are part of it."""
        run_id = self.trackers.wandb_run_id if self.trackers else None
        content = {"args": to_plain(self.args), "epoch": epochs_done, "wandb_run_id": run_id, **state.to_dict()}
        if "weights" in self.record:
            content["extra"] = {**state.extra, "weights": self.record["weights"]}
        return content

    def save(self, state: TrainState, epochs_done: int, name: str = CHECKPOINT) -> Path:
        """Write a checkpoint into the run folder (main rank only)."""
        path = self.dir / name
        if distributed.is_main():
            save_checkpoint(path, self.payload(state, epochs_done), system=self.system)
        return path

    def end_epoch(
        self,
        state: TrainState,
        epoch: int,
        values: dict[str, float],
        *,
        best: str | None = None,
        total: int | None = None,
    ) -> None:
        """Log and say this epoch's figures and, every --save-every epochs and at the end, write the checkpoint.

        `best` names the file of the best epoch when this is one. It is written first: a kill in between repeats the
        epoch, and no best epoch is ever lost. `total`: how many epochs there will be, where it is not ``args.epochs``.
        """
        row = {"epoch": epoch, **{name: float(value) for name, value in values.items()}}
        state.history.append(row)
        if best is not None:
            self.save(state, epoch + 1, best)
        if distributed.is_main():
            with (self.dir / "metrics.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        if self.trackers is not None:
            self.trackers.log(epoch, {k: v for k, v in row.items() if k != "epoch"})
        total = int(getattr(self.args, "epochs", 0) if total is None else total)
        self._say_epoch(epoch, values, total=total, kept=best is not None)
        if (epoch + 1) % self.args.save_every == 0 or epoch + 1 >= total:
            self.save(state, epoch + 1)

    # -- what every run says ------------------------------------------------------------------------------------

    def opening(
        self, what: str, *, weights: Mapping[str, str], cost: Sequence[str] = (), data: str | None = None
    ) -> None:
        """Say what is trained, on what, with which frozen networks, where, and what it costs; keep it in run.json.

        `weights`: {frozen network: checksum of its weight file, or "random"}. `data`: the data in words, where the
        options ``dataset`` and ``data_path`` do not say it.
        """
        self.note(weights=dict(weights), what=what)
        say, args = self.log.line, self.args
        say(what)
        say(f"data: {data or data_in_words(args)}")
        for name, identity in weights.items():
            say(f"frozen: {name}, {weights_in_words(name, identity)}")
        place = (
            f"{torch.get_num_threads()} CPU threads" if not torch.cuda.is_available() else torch.cuda.get_device_name()
        )
        say(f"device: {args.device} ({place}), {getattr(args, 'precision', 'fp32')}")
        for line in cost:
            say(f"cost: {line}")

    def _say_epoch(self, epoch: int, values: Mapping[str, float], *, total: int, kept: bool) -> None:
        now = time.monotonic()
        self._epoch_seconds.append(now - self._epoch_began)
        self._epoch_began = now
        recent = self._epoch_seconds[-10:]
        left = max(0, total - epoch - 1) * sum(recent) / len(recent)
        shown = ", ".join(f"{name} {values[name]:.4g}" for name in told_each_epoch(values))
        mark = " *" if kept else ""
        self.log.status(f"epoch {epoch + 1}/{total}: {shown} ({recent[-1]:.2f} s, {left:.0f} s left){mark}")

    def _closing(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.log.line(line)

    def repeat(self) -> RunResult:
        """What a finished run answers when its command is given again: that it is done, and its closing."""
        result = self.result()
        self.log.line(f"already done: {self.dir} (--fresh starts over)")
        self._closing(self.record.get("closing", []))
        return replace(result, already_done=True)

    # -- record -------------------------------------------------------------------------------------------------

    def note(self, **facts: Any) -> None:
        """Add facts to run.json (data fingerprint, support list, skipped files, ...)."""
        now = time.monotonic()
        self.record["seconds"] = round(self.record.get("seconds", 0.0) + now - self._started, 3)
        self._started = now
        self.record |= facts
        self._write_record()

    def _write_record(self) -> None:
        if distributed.is_main():
            write_json(self.dir / "run.json", self.record)

    def finish(
        self,
        state: TrainState | None,
        metrics: dict[str, float],
        *,
        final: Path | None = None,
        remarks: Sequence[str] = (),
        decision: str | None = None,
    ) -> RunResult:
        """Mark the run done and say how it ended. The final checkpoint (`final`, default: the last one) is copied to
        --save-path. `remarks` stand beside the figures; `decision`: how the detector decides, in words.
        """
        epochs_done = len(state.history) if state is not None else 0
        if state is not None:
            self.save(state, epochs_done)
        source = final or self.checkpoint
        if self.args.save_path and distributed.is_main() and source.is_file():
            self._publish(source, Path(self.args.save_path))
        plain_metrics = {name: float(value) for name, value in metrics.items()}
        self.note(metrics=plain_metrics, checkpoint=str(source), error=None)
        result = self.result()
        remarks = list(dict.fromkeys([*remarks, *weight_remarks(self.record.get("weights", {}))]))
        closing = closing_lines(result, remarks=remarks, decision=decision)
        self.note(status="finished", remarks=remarks, closing=closing)  # last: a run that says finished has all of this
        self._closing(closing)
        return result

    def result(self) -> RunResult:
        """What the record says, for a run that is done (now or earlier)."""
        checkpoint = Path(self.record.get("checkpoint", self.checkpoint))
        if self.args.save_path and checkpoint.is_file():
            published = Path(self.args.save_path)
            if distributed.is_main() and not published.is_file():
                self._publish(checkpoint, published)
            checkpoint = published
        return RunResult(self.dir, checkpoint if checkpoint.is_file() else None, dict(self.record["metrics"]))

    @staticmethod
    def _publish(source: Path, target: Path) -> None:
        with atomic_file(target) as stream, source.open("rb") as content:
            shutil.copyfileobj(content, stream)
