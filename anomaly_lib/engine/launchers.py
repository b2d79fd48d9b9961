"""Where the jobs of a sweep run: this machine's cores or GPUs, or a Ray cluster."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_lib.engine.sweep import Ended, Job
from anomaly_lib.errors import UserError

GRACE_SECONDS = 4.0
GPU_MARK = "{gpu}"
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has no SIGKILL
NOT_STARTED = 127  # what a shell answers for a command it cannot find


def visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_limits(threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


@dataclass
class _Running:
    job: Job
    process: "subprocess.Popen[bytes]"
    slot: int
    started: float


class LocalLauncher:
    """`parallel` jobs at a time with the cores divided among them, or one queue per GPU."""

    def __init__(self, *, parallel: int = 1, gpus: Sequence[str] = ()) -> None:
        if parallel < 1:
            raise UserError(f"parallel={parallel}: must be at least 1")
        self.gpus = list(gpus)
        self.capacity = len(self.gpus) or parallel
        self._free = list(range(self.capacity))
        self._running: list[_Running] = []
        self._not_started: list[Ended] = []

    def describe(self, job: Job) -> str:
        environment, argv = self._command(job, 0)
        return " ".join([*(f"{name}={value}" for name, value in environment.items()), shlex.join(argv)])

    def start(self, job: Job, log: Path, lock: int) -> None:
        slot = self._free.pop(0)
        environment, argv = self._command(job, slot)
        try:
            with log.open("ab") as stream:
                process = subprocess.Popen(
                    [sys.executable if argv[0] == "python" else argv[0], *argv[1:]],
                    env=os.environ | environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    **_own_group(lock),
                )
        except OSError as error:
            with log.open("a", encoding="utf-8") as stream:
                stream.write(f"{argv[0]}: cannot be started ({error.strerror})\n")
            self._free.append(slot)
            self._not_started.append(Ended(job, NOT_STARTED, 0.0))
            return
        self._running.append(_Running(job, process, slot, time.monotonic()))

    def ended(self) -> list[Ended]:
        over = [one for one in self._running if one.process.poll() is not None]
        for one in over:
            self._running.remove(one)
            self._free.append(one.slot)
        found = [Ended(one.job, one.process.returncode, time.monotonic() - one.started) for one in over]
        found += self._not_started
        self._not_started = []
        return found

    def stop(self) -> None:
        for one in self._running:
            _signal_group(one.process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for one in self._running:
            try:
                one.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(one.process, KILL)
                one.process.wait()
        self._running.clear()

    def _command(self, job: Job, slot: int) -> tuple[dict[str, str], list[str]]:
        environment = thread_limits(max(1, visible_cores() // self.capacity))
        gpu = self.gpus[slot] if self.gpus else "0"
        if self.gpus and not any(GPU_MARK in word for word in job.argv):  # with the mark the command chooses by itself
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        return environment, [word.replace(GPU_MARK, gpu) for word in job.argv]


class RayLauncher:
    """Jobs as Ray tasks: cores and GPUs are Ray's resources, a lost machine's task is started again elsewhere.

    All machines must see the working folder under the same path.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        parallel: int | None = None,
        cpus: float = 1,
        gpus: float = 0,
        retries: int = 3,
    ) -> None:
        """`parallel`: at most so many jobs at a time; None = as many as the cluster holds."""
        try:
            import ray
        except ImportError:
            raise UserError("launcher=ray needs Ray: pip install 'anomaly_lib[cluster]'") from None
        self._ray: Any = ray
        if not ray.is_initialized():
            ray.init(
                address=address,
                num_cpus=None if address else visible_cores(),
                include_dashboard=False,
                log_to_driver=False,
            )
        self.parallel = parallel
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": retries}
        self._threads = max(1, int(cpus))
        self._running: dict[Any, tuple[Job, float]] = {}

    @property
    def capacity(self) -> int:
        """Jobs at a time; machines that join or leave the cluster count at once."""
        if self.parallel is not None:
            return self.parallel
        return jobs_that_fit(self._ray.cluster_resources(), self._options["num_cpus"], self._options["num_gpus"])

    def describe(self, job: Job) -> str:
        environment = thread_limits(self._threads)
        return " ".join([*(f"{name}={value}" for name, value in environment.items()), shlex.join(job.argv)])

    def start(self, job: Job, log: Path, lock: int) -> None:  # noqa: ARG002  (this process holds the lock)
        task = self._ray.remote(_run_on_worker).options(**self._options)
        reference = task.remote(list(job.argv), thread_limits(self._threads), str(log.absolute()), os.getcwd())
        self._running[reference] = (job, time.monotonic())

    def ended(self) -> list[Ended]:
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        found = []
        for reference in ready:
            job, started = self._running.pop(reference)
            try:
                code = self._ray.get(reference)
            except self._ray.exceptions.RayError:
                code = 1
            found.append(Ended(job, code, time.monotonic() - started))
        return found

    def stop(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=GRACE_SECONDS)
        self._running.clear()


def jobs_that_fit(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many jobs of these cores and GPUs a cluster with these resources runs at a time; at least one."""
    needed = {name: need for name, need in (("CPU", cpus), ("GPU", gpus)) if need}
    fitting = [int(resources.get(name, 0.0) / need) for name, need in needed.items()]
    return max(1, min(fitting, default=1))


def _run_on_worker(argv: list[str], environment: Mapping[str, str], log: str, folder: str) -> int:
    """Runs on a Ray worker; its GPUs are those Ray gave it (CUDA_VISIBLE_DEVICES is set by Ray)."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    words = [word.replace(GPU_MARK, gpu) for word in argv]
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            [sys.executable if words[0] == "python" else words[0], *words[1:]],
            cwd=folder,
            env=os.environ | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait(GRACE_SECONDS)
            raise


def _own_group(lock: int) -> dict[str, Any]:
    """Ctrl-C reaches the runner alone, which then ends its jobs in order; where it can, the child inherits the lock."""
    if os.name == "posix":
        return {"pass_fds": [lock], "start_new_session": True}
    return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined]


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    if os.name != "posix":
        process.kill() if number == KILL else process.terminate()
        return
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
