"""Run the conditions of one model, one at a time on each GPU; what is finished is skipped, a failure stops no other."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from filelock import lock_descriptor

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, Switch, arg, shown
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.files import read_json
from anomaly_lib.models.detectors.registry import entries, entry_of
from anomaly_lib.systems.detectors.hdmap.conditions import get_experiment_by_name, load_experiment_conditions
from anomaly_lib.systems.detectors.hdmap.script import finished_result

if TYPE_CHECKING:
    from anomaly_lib.engine.sweep import Ended, Job

HERE = Path(__file__).resolve().parent


@dataclass
class Args(Options):
    """All conditions of one model."""

    model: str = arg("patchcore", "which detector", choices=[entry.name for entry in entries()])
    log_dir: Optional[str] = arg(None, "session folder; None = results/MODEL/TIME. An old one is continued", type=str)
    gpus: list[str] = arg([], "GPUs, one queue each; none = those that CUDA shows, else the CPU", type=str)
    parallel: int = arg(1, "conditions at a time without GPUs", at_least=1)
    only: list[str] = arg([], "names of conditions; none = all", type=str)
    conditions: Optional[str] = arg(None, "condition file; None = the model's", type=str)
    data_path: Optional[str] = arg(None, "folder that holds domain_A ... domain_D; None = synthetic maps", type=str)
    weights: list[str] = arg(
        [], "backbone weights: FILE or 'random' for all conditions, or BACKBONE=FILE for those with it", type=str
    )
    download: Switch = arg(False, "allow the backbones' published weights to be downloaded")
    scale: str = arg("auto", "full, demo, or auto = demo on synthetic maps", choices=["auto", "full", "demo"])
    iteration: Optional[int] = arg(None, "repeat number: seeds become 42 + 10 x this", type=int, at_least=0)
    dry_run: Switch = arg(False, "print the commands and leave")
    stop: Switch = arg(False, "end the queue of log_dir (None = all below results/MODEL) and its trainings, and leave")

    def check(self) -> None:
        if len(self.weights) > 1 and not all("=" in word for word in self.weights):
            raise OptionError(f"weights={shown(self.weights)}: several are given as BACKBONE=FILE")


def visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def jobs_of(args: Args, log_dir: Path) -> "list[Job]":
    from anomaly_lib.engine.sweep import Job

    script = HERE / f"multi_domain_hdmap_{args.model}-training.py"
    file = Path(args.conditions) if args.conditions else HERE / f"multi_domain_hdmap_{args.model}-exp_condition.json"
    conditions = load_experiment_conditions(file)
    wanted = [get_experiment_by_name(conditions, name)["name"] for name in args.only]
    extra: list[str] = []
    extra += ["--data-path", args.data_path] if args.data_path else []
    extra += ["--download"] if args.download else []
    if args.iteration is not None:
        extra += ["--seed", str(42 + 10 * args.iteration)]
    fixed = ("--conditions", str(file), "--scale", args.scale, "--log-dir", str(log_dir), *extra)
    return [
        Job(
            key={"model": args.model, "condition": condition["name"]},
            argv=(
                *("python", str(script), "--gpu-id", "{gpu}", "--experiment-id", str(i), *fixed),
                *weights_for(condition, args),
            ),
            log=log_dir / f"output_exp_{i}.log",
        )
        for i, condition in enumerate(conditions)
        if not wanted or condition["name"] in wanted
    ]  # fmt: skip


def weights_for(condition: dict[str, Any], args: Args) -> list[str]:
    """The flag that names the weights of the condition's backbone, if any; none for one that is to be untrained."""
    if condition["config"].get("pre_trained") is False:
        return []
    named = dict(word.split("=", 1) for word in args.weights if "=" in word)
    backbone = condition["config"].get("backbone", entry_of(args.model).published.get("backbone"))
    word = named.get(backbone) if named else "".join(args.weights)
    return ["--weights", word] if word else []


# -- stopping ----------------------------------------------------------------------------------------------------------

LONGEST = 30.0  # seconds until a queue has ended after a signal
INTERRUPTED = {130, -signal.SIGINT, -signal.SIGTERM}  # exit codes of a training that was stopped from outside


@contextmanager
def noted_process(folder: Path) -> Iterator[None]:
    """FOLDER/run_PID.pid within the block, locked by this process: a file without a lock is of one that was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"run_{os.getpid()}.pid"
    with path.open("w", encoding="utf-8") as stream:
        lock_descriptor(stream.fileno())
        stream.write(str(os.getpid()))
        stream.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_running(path: Path) -> bool:
    """Is the process of a pid file still there?"""
    try:
        with path.open("r+") as stream:
            return not lock_descriptor(stream.fileno(), blocking=False)
    except FileNotFoundError:
        return False


def stop_queues(root: Path) -> int:
    """How many queues of the folder, or of the folders in it, were running; they and their trainings have ended."""
    running = [path for path in {*root.glob("run_*.pid"), *root.glob("*/run_*.pid")} if is_running(path)]
    for path in running:
        os.kill(int(path.stem.removeprefix("run_")), signal.SIGTERM)
    deadline = time.monotonic() + LONGEST
    while any(map(is_running, running)):
        if time.monotonic() > deadline:
            raise UserError(f"log_dir={root}: a queue has not ended after {LONGEST:.0f} s")
        time.sleep(0.1)
    return len(running)


def run(args: Args) -> int:
    log_dir = Path(args.log_dir or f"results/{args.model}/{time.strftime('%Y%m%d_%H%M%S')}")
    if args.stop:
        place = log_dir if args.log_dir else log_dir.parent
        sys.stdout.write(f"{place}: {stop_queues(place)} stopped\n")
        return 0
    jobs = jobs_of(args, log_dir)
    if args.dry_run:
        return run_jobs(args, jobs, log_dir)
    with noted_process(log_dir):
        return run_jobs(args, jobs, log_dir)


def run_jobs(args: Args, jobs: "list[Job]", log_dir: Path) -> int:
    """Run (or with dry_run print) the jobs; the exit code."""
    from anomaly_lib.engine.launchers import LocalLauncher
    from anomaly_lib.engine.log import Log
    from anomaly_lib.engine.sweep import Sweep

    class Queue(LocalLauncher):
        """A queue that ends when one of its trainings is stopped from outside (``pkill -f ...-training.py``)."""

        def ended(self) -> "list[Ended]":
            found = super().ended()
            stopped = [one.job.name for one in found if one.exit_code in INTERRUPTED]
            if stopped:
                raise KeyboardInterrupt(f"{stopped[0]} was stopped; the same command continues")
            return found

    log = Log()

    def metrics(job: "Job") -> dict[str, float]:
        number = int(job.argv[job.argv.index("--experiment-id") + 1])
        result = finished_result(log_dir, number, job.key["condition"])
        names = ("source_auroc", "avg_target_auroc", "transfer_ratio")
        return {} if result is None else {name: result["analysis"][name] for name in names}

    launcher = Queue(parallel=args.parallel, gpus=args.gpus or visible_gpus())
    sweep = Sweep(jobs, log_dir, launcher=launcher, say=log.line, metrics=metrics)
    if args.dry_run:
        for line in sweep.plan():
            log.line(line)
        return 0
    log.line(f"{args.model}: {len(jobs)} conditions, {launcher.capacity} at a time, logs in {log_dir}")
    summary = sweep.run()
    for path in sorted(log_dir.glob("result_exp_*.json")):
        result = read_json(path)
        ratio = f", transfer ratio {result['analysis']['transfer_ratio']:.3f}" if "analysis" in result else ""
        log.line(f"  {result['status']:>7}  {result['experiment_name']}{ratio}")
    log.line(f"{len(summary.done)} done, {len(summary.skipped)} done before, {len(summary.failed)} failed: {log_dir}")
    return 1 if summary.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, run, argv, prog="run_conditions.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
