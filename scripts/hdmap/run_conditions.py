"""Run the conditions of one model, one at a time on each GPU; what is finished is skipped, a failure stops no other."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.files import read_json
from anomaly_lib.models.detectors.registry import entries
from anomaly_lib.systems.detectors.hdmap.conditions import get_experiment_by_name, load_experiment_conditions
from anomaly_lib.systems.detectors.hdmap.script import finished_result

if TYPE_CHECKING:
    from anomaly_lib.engine.sweep import Job

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
    weights: Optional[str] = arg(None, "backbone weights: file, or 'random'", type=str)
    scale: str = arg("auto", "full, demo, or auto = demo on synthetic maps", choices=["auto", "full", "demo"])
    iteration: Optional[int] = arg(None, "repeat number: seeds become 42 + 10 x this", type=int, at_least=0)
    dry_run: Switch = arg(False, "print the commands and leave")


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
    for name, value in (("data-path", args.data_path), ("weights", args.weights)):
        extra += [f"--{name}", value] if value else []
    if args.iteration is not None:
        extra += ["--seed", str(42 + 10 * args.iteration)]
    fixed = ("--conditions", str(file), "--scale", args.scale, "--log-dir", str(log_dir), *extra)
    return [
        Job(
            key={"model": args.model, "condition": condition["name"]},
            argv=("python", str(script), "--gpu-id", "{gpu}", "--experiment-id", str(i), *fixed),
            log=log_dir / f"output_exp_{i}.log",
        )
        for i, condition in enumerate(conditions)
        if not wanted or condition["name"] in wanted
    ]  # fmt: skip


def run(args: Args) -> int:
    from anomaly_lib.engine.launchers import LocalLauncher
    from anomaly_lib.engine.log import Log
    from anomaly_lib.engine.sweep import Sweep

    log = Log()
    log_dir = Path(args.log_dir or f"results/{args.model}/{time.strftime('%Y%m%d_%H%M%S')}")
    jobs = jobs_of(args, log_dir)

    def metrics(job: "Job") -> dict[str, float]:
        number = int(job.argv[job.argv.index("--experiment-id") + 1])
        result = finished_result(log_dir, number, job.key["condition"])
        names = ("source_auroc", "avg_target_auroc", "transfer_ratio")
        return {} if result is None else {name: result["analysis"][name] for name in names}

    launcher = LocalLauncher(parallel=args.parallel, gpus=args.gpus or visible_gpus())
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
