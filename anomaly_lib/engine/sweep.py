"""Many runs from one list: what is finished is skipped, what is killed is continued, every result is one row.

    jobs = [Job(key={"class": name}, argv=("python", "train_cls.py", "--obj", name, ...), outputs=(checkpoint,)), ...]
    summary = Sweep(jobs, folder, launcher=LocalLauncher(parallel=2), say=log.line).run()

The folder holds one `jobs/NAME/` per job (state.json, lock, log.txt) and the results table `results.csv`.
"""

import json
import os
import shlex
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from filelock import lock_descriptor

from anomaly_lib.engine.record import record_of
from anomaly_lib.engine.results import ResultsTable
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_json
from anomaly_lib.interrupt import signals_ignored, stop_signals

POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command. `key` names it (and its row in the table); `{gpu}` in argv becomes the number of its GPU."""

    key: Mapping[str, str]
    argv: tuple[str, ...]
    outputs: tuple[Path, ...] = ()  # what must exist for the job to count as done
    run_dir: Path | None = None  # run.json there gives the metrics of the row
    log: Path | None = None  # default: log.txt in the job's folder

    @property
    def name(self) -> str:
        joined = "-".join(str(value) for value in self.key.values())
        return "".join(c if c.isalnum() or c in "-_." else "_" for c in joined)


@dataclass(frozen=True)
class Ended:
    """What a launcher says about a job that is over."""

    job: Job
    exit_code: int
    seconds: float


class Launcher(Protocol):
    """Where jobs run."""

    @property
    def capacity(self) -> int:
        """Jobs at a time."""

    def describe(self, job: Job) -> str:
        """The equivalent shell command."""

    def start(self, job: Job, log: Path, lock: int) -> None:
        """Begin; output goes to `log`. A child that inherits the descriptor `lock` keeps the job locked."""

    def ended(self) -> list[Ended]:
        """Jobs that are over since the last call."""

    def stop(self) -> None:
        """End all running jobs (they save what they have) and wait for them."""


@dataclass
class Summary:
    """Names of the jobs."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # were finished before
    failed: list[str] = field(default_factory=list)


class Sweep:
    """Runs jobs N at a time. A failed job is written down and does not stop the others."""

    def __init__(
        self,
        jobs: Sequence[Job],
        folder: Path | str,
        *,
        launcher: Launcher,
        retries: int = 0,
        say: Callable[[str], None] = lambda _: None,
        metrics: Callable[[Job], Mapping[str, Any]] | None = None,
    ) -> None:
        if not jobs:
            raise UserError("the sweep has no jobs: check its lists of classes, shots and tasks")
        names = [job.name for job in jobs]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"two jobs of the sweep are called {twice}: give each its own key")
        if len({tuple(job.key) for job in jobs}) != 1:
            raise UserError("all jobs of a sweep must have the same key columns")
        self.jobs, self.folder, self.launcher = list(jobs), Path(folder), launcher
        self.retries, self.say = retries, say
        self.metrics = metrics or run_metrics
        self.table = ResultsTable(self.folder / "results.csv", key=tuple(jobs[0].key))
        self._locks: dict[str, int] = {}
        self._attempts: dict[str, int] = {}
        self._durations: list[float] = []

    def plan(self) -> list[str]:
        """`--dry-run`: the equivalent shell commands; finished jobs are commented out."""
        return [("# done: " if self.finished(job) else "") + self.launcher.describe(job) for job in self.jobs]

    def finished(self, job: Job) -> bool:
        """Did this very command end well, and is what it wrote still there?"""
        state = self._state_of(job)
        same = state.get("argv") == list(job.argv) and state.get("exit_code") == 0
        return bool(same and all(output.exists() for output in job.outputs))

    def run(self) -> Summary:
        """Run what is not finished. KeyboardInterrupt after SIGINT or SIGTERM, with the running jobs ended cleanly."""
        summary, waiting = Summary(), deque(self.jobs)
        with stop_signals():
            try:
                while waiting or self._locks:
                    self._fill(waiting, summary)
                    for ended in self.launcher.ended():
                        self._note(ended, waiting, summary)
                    time.sleep(POLL_SECONDS)
            except BaseException:
                with signals_ignored():
                    self.launcher.stop()
                    self._release_all()
                raise
        return summary

    def _fill(self, waiting: "deque[Job]", summary: Summary) -> None:
        """Start jobs while there is room; one that another runner (or an orphan of a killed one) works on goes to the
        end.
        """
        for _ in range(len(waiting)):
            if len(self._locks) >= self.launcher.capacity:
                return
            job = waiting.popleft()
            if not self._take(job):
                waiting.append(job)
            elif self.finished(job):
                self._release(job)
                summary.skipped.append(job.name)
                self.say(f"{job.name}: done before")
            elif (seconds := self._finished_alone(job)) is not None:
                self._note(Ended(job, 0, seconds), waiting, summary)
            else:
                log = self._log_of(job)
                log.parent.mkdir(parents=True, exist_ok=True)
                started = {"status": "running", "exit_code": None, "started": time.time()}
                write_json(
                    self._job_folder(job) / "state.json", {"key": dict(job.key), "argv": list(job.argv)} | started
                )
                self.launcher.start(job, log, self._locks[job.name])
                self.say(f"{job.name}: started, log in {log}")

    def _finished_alone(self, job: Job) -> float | None:
        """Seconds, if the job ended well after its runner was killed: nobody holds it and all it should write is
        new.
        """
        state = self._state_of(job)
        started = state.get("started")
        running = state.get("status") == "running" and state.get("argv") == list(job.argv)
        if not running or not isinstance(started, float) or not job.outputs:
            return None
        written = [output.stat().st_mtime if output.exists() else 0.0 for output in job.outputs]
        return max(written) - started if min(written) >= started else None

    def _note(self, ended: Ended, waiting: "deque[Job]", summary: Summary) -> None:
        job, code = ended.job, ended.exit_code
        absent = [str(output) for output in job.outputs if not output.exists()] if code == 0 else []
        tries = self._attempts[job.name] = self._attempts.get(job.name, 0) + 1
        if (code or absent) and tries <= self.retries:
            self._release(job)
            waiting.append(job)
            self.say(f"{job.name}: failed (exit code {code}), tried again later")
            return
        status, found = self._outcome(job, code, absent)
        failed = status == "failed"
        state = {"key": dict(job.key), "argv": list(job.argv), "status": status, "exit_code": code or int(failed)}
        row = dict(job.key) | {"status": status, "exit_code": code, "seconds": round(ended.seconds, 1)} | found
        self.table.put(row)  # before the state: killed in between, the job is looked at again and its row replaced
        write_json(self._job_folder(job) / "state.json", state | {"seconds": ended.seconds})
        self._release(job)
        self._durations.append(ended.seconds)
        (summary.failed if failed else summary.done).append(job.name)
        why = f", did not write {', '.join(absent)}" if absent else f" (exit code {code})" if code else ""
        self.say(f"{job.name}: {status}{why} in {ended.seconds:.0f} s; {self._outlook(len(waiting))}")

    def _outcome(self, job: Job, code: int, absent: list[str]) -> tuple[str, dict[str, Any]]:
        """How a job that is over went, and its figures or why it failed."""
        try:
            if not code and not absent:
                return "finished", dict(self.metrics(job))
            return "failed", {"why": why_of(job, absent, self._log_of(job))}
        except UserError as error:  # what it wrote is no record of a run
            return "failed", {"why": str(error)}

    def _outlook(self, waiting: int) -> str:
        left = waiting + len(self._locks)
        mean = sum(self._durations) / len(self._durations)
        return f"{left} left, about {mean * left / self.launcher.capacity:.0f} s" if left else "nothing left"

    def _log_of(self, job: Job) -> Path:
        return job.log or self._job_folder(job) / "log.txt"

    def _state_of(self, job: Job) -> dict[str, Any]:
        """What the last runner noted; nothing where there is no note, or an odd one: the job is then done again."""
        path = self._job_folder(job) / "state.json"
        state = read_json(path) if path.exists() else {}
        return state if isinstance(state, dict) else {}

    def _job_folder(self, job: Job) -> Path:
        return self.folder / "jobs" / job.name

    def _take(self, job: Job) -> bool:
        """Lock the job. On POSIX the child inherits the lock, which then holds as long as the job runs, even if this
        runner is killed.
        """
        self._job_folder(job).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._job_folder(job) / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        if not lock_descriptor(descriptor, blocking=False):
            os.close(descriptor)
            return False
        self._locks[job.name] = descriptor
        return True

    def _release(self, job: Job) -> None:
        os.close(self._locks.pop(job.name))

    def _release_all(self) -> None:
        while self._locks:
            os.close(self._locks.popitem()[1])


def run_metrics(job: Job) -> dict[str, Any]:
    """The `metrics` of the job's run.json, with what must stand beside them."""
    record = _record_of(job)
    remarks = record.get("remarks") or []
    return dict(record.get("metrics") or {}) | ({"remarks": "; ".join(remarks)} if remarks else {})


def why_of(job: Job, absent: Sequence[str], log: Path) -> str:
    """Why a job failed, in one line: what it did not write, what its run.json says, or the last line of its log."""
    if absent:
        return f"did not write {', '.join(absent)}"
    error = _record_of(job).get("error")
    if error:
        return str(error)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1][:300] if lines else "no reason is known"


def _record_of(job: Job) -> dict[str, Any]:
    return {} if job.run_dir is None else record_of(job.run_dir)


def expand_grid(
    command: str, axes: Mapping[str, Sequence[str]], *, outputs: Sequence[str] = (), run_dir: str = ""
) -> list[Job]:
    """One job per combination; `{axis}` in the command, the outputs and the run folder stands for its value."""
    combinations: list[dict[str, str]] = [{}]
    for axis, values in axes.items():
        combinations = [one | {axis: value} for one in combinations for value in values]
    return [
        Job(
            key=one or {"job": "1"},
            argv=tuple(_substitute(word, one) for word in shlex.split(command)),
            outputs=tuple(Path(_substitute(output, one)) for output in outputs),
            run_dir=Path(_substitute(run_dir, one)) if run_dir else None,
        )
        for one in combinations
    ]


def read_jobs(path: Path | str) -> list[Job]:
    """A JSON list of {"key", "argv", "outputs", "run_dir", "log"}, or a text file with one command a line (#
    comments).
    """
    text = Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None
    if text is None:
        raise UserError(f"{path}: no such file")
    if not text.lstrip().startswith("["):
        lines = [line.strip() for line in text.splitlines()]
        commands = [line for line in lines if line and not line.startswith("#")]
        return [Job(key={"job": f"{i:04d}"}, argv=tuple(shlex.split(line))) for i, line in enumerate(commands, start=1)]
    try:
        return [
            Job(
                key={name: str(value) for name, value in one["key"].items()},
                argv=tuple(map(str, one["argv"])),
                outputs=tuple(map(Path, one.get("outputs", ()))),
                run_dir=Path(one["run_dir"]) if one.get("run_dir") else None,
                log=Path(one["log"]) if one.get("log") else None,
            )
            for one in json.loads(text)
        ]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: every job needs a 'key' object and an 'argv' list ({error!r})") from None


def _substitute(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text
