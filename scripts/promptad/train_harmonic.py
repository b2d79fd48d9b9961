"""Train PromptAD over data sets, classes, shots and tasks; finished runs are skipped, killed ones go on."""

import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_lib.command_line import command
from anomaly_lib.systems.promptad.options import SweepArgs

ROOT = Path(__file__).resolve().parents[2]


def run(args: SweepArgs) -> int:
    """Run the sweep and say where the table of results lies."""
    from anomaly_lib.engine.launchers import LocalLauncher, RayLauncher
    from anomaly_lib.engine.log import Log
    from anomaly_lib.engine.sweep import Launcher, Sweep
    from anomaly_lib.systems.promptad.sweep import sweep_jobs

    log = Log()
    launcher: Launcher = LocalLauncher(parallel=args.parallel or 1, gpus=args.gpus)
    if args.launcher == "ray" and not args.dry_run:
        gpus = 1.0 if args.gpus else 0.0
        launcher = RayLauncher(address=args.ray_address, parallel=args.parallel, cpus=1.0, gpus=gpus)
    jobs = sweep_jobs(args, ROOT)
    sweep = Sweep(
        jobs, Path(args.root_dir or args.output_dir) / "sweep", launcher=launcher, retries=args.retries, say=log.line
    )
    if args.dry_run:
        for line in sweep.plan():
            log.line(line)
        return 0
    log.line(f"{len(jobs)} runs, {launcher.capacity} at a time")
    summary = sweep.run()
    failed = f"{len(summary.failed)} failed" + (f" ({', '.join(summary.failed)})" if summary.failed else "")
    log.line(f"{len(summary.done)} done, {len(summary.skipped)} done before, {failed}; results in {sweep.table.path}")
    return 1 if summary.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, leave with an exit code."""
    return command(SweepArgs, run, argv, prog="train_harmonic.py", description=SweepArgs.__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
