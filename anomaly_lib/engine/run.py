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

from anomaly_lib.backbones.identity import weight_remarks, weights_in_words
from anomaly_lib.config import result_options, to_plain
from anomaly_lib.data.fingerprint import DataFingerprint
from anomaly_lib.engine import distributed
from anomaly_lib.engine.checkpoint import TrainState, check_weights, load_checkpoint, save_checkpoint
from anomaly_lib.engine.log import Log, Trackers
from anomaly_lib.engine.record import NAME, WHOLE, checkpoint_in, in_a_word, new_record, record_of
from anomaly_lib.engine.resume import CHECKPOINT, carry_best, changes, check_data, resume_file
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.engine.words import closing_lines, data_in_words, told_each_epoch
from anomaly_lib.errors import UserError
from anomaly_lib.features import MissingFeatures
from anomaly_lib.files import copy_file, lock_folder, remove_leftovers, write_json, write_text
from anomaly_lib.interrupt import stop_signals
from anomaly_lib.types import RunResult

NOTICEABLE = 2e9  # bytes: seconds to read, on most disks


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


class Run:
    """Open with `Run.open`; use as a context manager so that locks are freed and the status tells the truth."""

    def __init__(
        self, system: str, args: Any, folder: Path, data: DataFingerprint | None = None, kept: Sequence[str] = ()
    ) -> None:
        self.system, self.args, self.dir, self.data = system, args, folder, data
        self.kept = tuple(kept)  # names of the files that hold the best epoch
        self.log = Log(folder)
        self.record: dict[str, Any] = {}
        self.source: Path | None = None  # the checkpoint to go on from, and its content
        self.saved: dict[str, Any] | None = None
        self.trackers: Trackers | None = None
        self._stack = ExitStack()
        self._started = self._epoch_began = time.monotonic()
        self._epoch_seconds: list[float] = []  # of this process
        self._generators: tuple[int, Any] = -1, None  # after so many epochs, whenever that state is written again

    @classmethod
    def open(
        cls, system: str, args: Any, *, name: str, data: DataFingerprint | None = None, kept: Sequence[str] = ()
    ) -> "Run":
        """The run that these options mean. `data`: what it trains and tests on; `kept`: its files of best epochs."""
        return cls(system, args, default_folder(system, args, name), data, kept)

    # -- life cycle ---------------------------------------------------------------------------------------------

    def __enter__(self) -> "Run":
        self.dir.mkdir(parents=True, exist_ok=True)
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _begin(self) -> None:
        if distributed.is_main():
            self._lock()
            remove_leftovers(self.dir)
            published = Path(self.args.save_path) if self.args.save_path else None
            if published is not None and published.parent.is_dir():
                remove_leftovers(published.parent, published.name)
        named = resume_file(self.args, self.dir)
        inside = named is not None and named.resolve().parent == self.dir.resolve()
        if inside and self.args.fresh:
            raise UserError(
                f"fresh=True: would delete what resume={self.args.resume} is to go on from; give one of them"
            )
        earlier = self._earlier()
        self._say_what_is_read(earlier or {})
        if earlier is not None:
            self._refuse_other_run(earlier, options=not inside)
        distributed.barrier()
        if self.args.fresh and distributed.is_main():
            for leftover in [NAME, CHECKPOINT, "metrics.jsonl", "log.txt"]:
                (self.dir / leftover).unlink(missing_ok=True)
        distributed.barrier()
        self.record = earlier or {}
        self._stack.enter_context(stop_signals())
        if not self.finished:
            own = self.checkpoint if self.checkpoint.is_file() else None
            begun = named is not None and self.record.get("resumed") == str(named)  # goes on from its own state again
            self._read(own if named is None or (begun and own) else named)
            if not self.record or (inside and self._other_options(self.record)):
                self.record = new_record(self.system, self.args)
            self.record |= {"status": "running", **machine_facts(), "argv": sys.argv[1:]}
            self.record |= {} if named is None or inside else {"resumed": str(named)}
            self.record |= {} if self.data is None else {"fingerprint": self.data.plain()}
            self._write_record()
            seed_everything(self.args.seed + 7919 * distributed.rank())
        self._started = time.monotonic()

    def _earlier(self) -> dict[str, Any] | None:
        """The record of this folder's run; one that failed before its first checkpoint stands in nobody's way."""
        earlier = {} if self.args.fresh else record_of(self.dir, WHOLE)
        if not earlier:
            return None
        nothing_done = earlier["status"] in ("new", "failed") and not self.checkpoint.is_file()
        return None if nothing_done else earlier

    def _say_what_is_read(self, record: Mapping[str, Any]) -> None:
        """Reading all data to know them again takes time; with equal sizes and times of all files it is left out."""
        size = 0 if self.data is None or self.data.looks_like(record.get("fingerprint", {})) else self.data.bytes
        if size > NOTICEABLE:
            self.log.line(f"cost: reading {size / 1e9:.1f} GB once to know the data again (fingerprint)")

    def _read(self, source: Path | None) -> None:
        """Open the checkpoint to go on from; it must have been trained on these data."""
        if source is None:
            return
        self.source, self.saved = source, load_checkpoint(source, system=self.system)
        if self.data is not None:
            noted = self.saved["extra"].get("fingerprint")
            remark = check_data(str(source), {"content": noted} if noted else None, self.data, self.args)
            if remark:
                self.log.line(remark)

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
        """Two processes must not write one folder."""
        lock = lock_folder(self.dir)
        if lock is None:
            raise UserError(f"{self.dir}: another process is writing this run; wait for it or give another output_dir=")
        self._stack.enter_context(lock)

    def _refuse_other_run(self, earlier: dict[str, Any], *, options: bool) -> None:
        """The folder's run must be of this system, on these data and (unless it is resumed) with these options."""
        if earlier.get("system") != self.system:
            raise UserError(f"{self.dir}: holds a run of {in_a_word(earlier['system'])}; give another output_dir=")
        changed = self._other_options(earlier) if options else []
        if changed:
            raise UserError(
                f"{self.dir}: holds a run with other options ({'; '.join(changed[:3])}): "
                "give fresh=True, another output_dir= or resume=latest"
            )
        if self.data is not None:
            remark = check_data(str(self.dir), earlier.get("fingerprint"), self.data, self.args)
            if remark and earlier.get("status") == "finished":
                self.log.line(remark)

    def _other_options(self, earlier: dict[str, Any]) -> list[str]:
        """What is not as in an earlier record, in words."""
        old, new = earlier["args"], result_options(self.args)
        changed = {name: value for name, value in new.items() if old.get(name) != value}
        return [f"{name}={in_a_word(old.get(name))} -> {value}" for name, value in changed.items()]

    # -- state --------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        named = self.args.resume
        return self.record.get("status") == "finished" and (not named or self.record.get("resumed") == str(named))

    @property
    def checkpoint(self) -> Path:
        return self.dir / CHECKPOINT

    def restore(self, state: TrainState) -> int:
        """Load the state to continue from, if any; returns the first epoch still to do."""
        source, saved = self.source, self.saved
        self.trackers = Trackers(self.dir, self.args, self.log, wandb_run_id=(saved or {}).get("wandb_run_id"))
        self._epoch_began = time.monotonic()
        if source is None or saved is None:
            if distributed.is_main():  # rows of epochs that no checkpoint holds would be repeated
                for leftover in ("metrics.jsonl", *self.kept):
                    (self.dir / leftover).unlink(missing_ok=True)
            return 0
        if "weights" in self.record:
            check_weights(str(source), saved["extra"], self.record["weights"])
        state.load_dict(saved, source=str(source), rng=distributed.rank() == 0)
        if distributed.is_main():
            for name in self.kept if source.resolve().parent != self.dir.resolve() else ():
                carry_best(source, saved, self.dir, name)
            write_text(self.dir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in state.history))
        if self.args.resume:
            self.log.line(f"resume: {', '.join(changes(saved['args'], self.args)) or 'with the options of the file'}")
        self.log.line(f"continuing {source} after epoch {saved['epoch']}")
        self.saved, self._generators = None, (int(saved["epoch"]), saved["rng"])
        self._other_ranks_draw_anew(int(saved["epoch"]))
        return int(saved["epoch"])

    def payload(self, state: TrainState, epochs_done: int) -> dict[str, Any]:
        """What a checkpoint of this run holds; the weights of its frozen networks and its data are part of it."""
        run_id = self.trackers.wandb_run_id if self.trackers else None
        content = {"args": to_plain(self.args), "epoch": epochs_done, "wandb_run_id": run_id, **state.to_dict()}
        if self._generators[0] != epochs_done:
            self._generators = epochs_done, content["rng"]
        content["rng"] = self._generators[1]
        content["extra"] = dict(state.extra)
        if "weights" in self.record:
            content["extra"]["weights"] = self.record["weights"]
        if self.data is not None:
            content["extra"]["fingerprint"] = self.data.content
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
        self._other_ranks_draw_anew(epoch + 1)

    def _other_ranks_draw_anew(self, epoch: int) -> None:
        """A checkpoint holds the generators of the first rank. The others begin every epoch with new ones, so that a
        resumed run draws what one left alone would.
        """
        if distributed.rank():
            seed_everything(self.args.seed + 7919 * distributed.rank() + 104729 * epoch)

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
            write_json(self.dir / NAME, self.record)

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
            copy_file(source, Path(self.args.save_path))
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
        checkpoint = checkpoint_in(self.dir, self.record)
        if self.args.save_path and checkpoint is not None:
            published = Path(self.args.save_path)
            if distributed.is_main() and not published.is_file():
                copy_file(checkpoint, published)
            checkpoint = published
        return RunResult(self.dir, checkpoint, dict(self.record["metrics"]))
