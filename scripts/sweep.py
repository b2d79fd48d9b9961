"""Run many commands: skip what is finished, N at a time or one per GPU, one results table, an estimate of the time
left.

    python scripts/sweep.py --command "python train_cls.py --obj {obj} --shot {shot} --output-dir runs/s/{obj}_{shot}" \
        --grid "obj=bottle,cable shot=1,2" --expect "runs/s/{obj}_{shot}/checkpoint.pt" --run-dir "runs/s/{obj}_{shot}"
    python scripts/sweep.py --jobs commands.txt --parallel 4            # one command a line, or a JSON list of jobs

Kill it and start it again at will. Results: OUTPUT_DIR/results.csv; state, lock and log of each job:
OUTPUT_DIR/jobs/NAME/.
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import ANY, Options, Switch, arg
from anomaly_lib.engine.launchers import LocalLauncher, RayLauncher
from anomaly_lib.engine.sweep import Job, Launcher, Sweep, expand_grid, read_jobs
from anomaly_lib.errors import UserError

say = functools.partial(print, flush=True)


@dataclass
class Args(Options):
    """Run many commands."""

    jobs: str = arg("", "file of commands, one a line, or a JSON list of jobs")
    command: str = arg("", "command with {axis} where a value of --grid goes")
    grid: str = arg("", 'axes and values: "obj=bottle,cable shot=1,2,4"', needs={"command": ANY})
    expect: str = arg(
        "", "files a finished command leaves behind, with {axis}; several: separated by blanks", needs={"command": ANY}
    )
    run_dir: str = arg(
        "", "run folder of the command, with {axis}: its metrics go to the results table", needs={"command": ANY}
    )
    output_dir: str = arg("runs/sweep", "results table, states and logs", aliases=["output"])
    parallel: Optional[int] = arg(
        None,
        "commands at a time, which share the cores; None = one, or with --launcher ray as many as the cluster holds",
        type=int,
        at_least=1,
    )
    gpus: str = arg("", 'one queue per GPU: "0,1,2"; empty = CPU', needs={"launcher": "local"})
    launcher: str = arg("local", "local, or ray for many machines", choices=["local", "ray"])
    ray_address: Optional[str] = arg(
        None, "address of a running Ray cluster; None = Ray on this machine", type=str, needs={"launcher": "ray"}
    )
    cpus_per_job: float = arg(1.0, "cores of one command", at_least=0, needs={"launcher": "ray"})
    gpus_per_job: float = arg(0.0, "GPUs (or a share of one) of one command", at_least=0, needs={"launcher": "ray"})
    retries: int = arg(0, "times a failed command is tried again", at_least=0)
    dry_run: Switch = arg(False, "print the equivalent commands and leave")


def parse_grid(text: str) -> dict[str, list[str]]:
    axes = {}
    for part in text.split():
        name, equals, values = part.partition("=")
        if not (name and equals and values):
            raise UserError(f'grid={part}: write AXIS=VALUE,VALUE, for example "obj=bottle,cable shot=1,2"')
        axes[name] = [value for value in values.split(",") if value]
    return axes


def jobs_of(args: Args) -> list[Job]:
    if bool(args.jobs) == bool(args.command):
        raise UserError("give either jobs= (a file) or command= (a template, with grid=)")
    if args.jobs:
        return read_jobs(args.jobs)
    return expand_grid(args.command, parse_grid(args.grid), outputs=args.expect.split(), run_dir=args.run_dir)


def launcher_of(args: Args) -> Launcher:
    if args.launcher == "ray" and not args.dry_run:
        return RayLauncher(
            address=args.ray_address, parallel=args.parallel, cpus=args.cpus_per_job, gpus=args.gpus_per_job
        )
    return LocalLauncher(parallel=args.parallel or 1, gpus=[gpu for gpu in args.gpus.split(",") if gpu])


def sweep(args: Args) -> int:
    runner = Sweep(jobs_of(args), args.output_dir, launcher=launcher_of(args), retries=args.retries, say=say)
    if args.dry_run:
        say("\n".join(runner.plan()))
        return 0
    summary = runner.run()
    failed = f"{len(summary.failed)} failed" + (f" ({', '.join(summary.failed)})" if summary.failed else "")
    say(f"{len(summary.done)} done, {len(summary.skipped)} done before, {failed}; results in {runner.table.path}")
    return 1 if summary.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, sweep, argv, prog="sweep.py", description=__doc__.splitlines()[0])


if __name__ == "__main__":
    sys.exit(main())
