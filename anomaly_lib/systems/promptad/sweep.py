"""The sweep of the harmonic-baseline document: data sets x classes x k x tasks, one training command each.

With --root-dir it is the original's run_cls.py and run_seg.py: the same runs in its tree and tables.
"""

import shlex
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from anomaly_lib.command_line import parse
from anomaly_lib.data.names import DEMO_CATEGORIES
from anomaly_lib.engine.sweep import Job
from anomaly_lib.errors import UserError
from anomaly_lib.systems.promptad.loop_root import placed
from anomaly_lib.systems.promptad.options import Args, SegArgs, SweepArgs

CLASSES: dict[str, list[str]] = {
    "mvtec": ["bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw",
              "tile", "toothbrush", "transistor", "wood", "zipper"],
    "visa": ["candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3",
             "pcb4", "pipe_fryum"],
    "demo": list(DEMO_CATEGORIES),
}  # fmt: skip
# The document's short list: classes whose textual branch was weak.
KEY_CLASSES: dict[str, list[str]] = {
    "mvtec": ["toothbrush", "hazelnut", "metal_nut"],
    "visa": ["pipe_fryum", "capsules", "pcb2"],
    "demo": ["woven", "capsule"],
}


def sweep_jobs(args: SweepArgs, scripts: Path) -> list[Job]:
    """One job per run, in the document's tree (OUTPUT/<dataset>/k_<k>/<class>/<task>_checkpoint.pth) or below ROOT."""
    datasets = args.datasets or (["mvtec", "visa"] if args.data_path else ["demo"])
    jobs: list[Job] = []
    for dataset in datasets:
        where = _data_flags(dataset, args.data_path, several=len(datasets) > 1)
        for name in _classes(dataset, args.classes, datasets):
            for k, task in product(args.k_shots, args.tasks):
                argv = [sys.executable, str(scripts / f"train_{task}.py"), *where, "--obj", name]
                argv += ["--shot", str(k), "--epoch", str(args.epochs), "--fusion-mode", args.fusion_mode]
                key = {"dataset": dataset, "class": name, "k_shot": str(k), "task": task}
                jobs.append(_placed(args, key, argv))
    if not jobs:
        raise UserError(f"classes={' '.join(args.classes)}: none of them belongs to {' or '.join(datasets)}")
    return jobs


def _placed(args: SweepArgs, key: dict[str, str], argv: list[str]) -> Job:
    """The job of a training command, which is told here where its files go."""
    task, more = key["task"], shlex.split(args.train_flags)
    folder = Path(args.root_dir or args.output_dir) / key["dataset"] / f"k_{key['k_shot']}" / key["class"]
    if args.root_dir is None:
        checkpoint = folder / f"{task}_checkpoint.pth"
        run_dir, argv = checkpoint.with_suffix(""), [*argv, "--save-path", str(checkpoint), *more]
    else:
        argv = [*argv, "--root-dir", args.root_dir, *more]
        run = placed(parse(Args if task == "cls" else SegArgs, argv[2:]), key["class"])
        checkpoint, run_dir = Path(str(run.save_path)), Path(str(run.output_dir))
    return Job(key=key, argv=tuple(argv), outputs=(checkpoint,), run_dir=run_dir, log=folder / f"{task}_train.log")


def _data_flags(dataset: str, data_path: str | None, *, several: bool) -> list[str]:
    flags = ["--dataset", dataset]
    if data_path is None:
        if dataset != "demo":
            raise UserError(f"give data_path= the folder of {dataset} (without both the demo data are used)")
        return flags
    below = Path(data_path) / dataset
    if several and not below.is_dir():
        raise UserError(f"data_path={data_path}: with several data sets it must hold the folder {dataset}/")
    return [*flags, "--data-path", str(below if below.is_dir() else data_path)]


def _classes(dataset: str, wanted: Sequence[str], datasets: Sequence[str]) -> list[str]:
    """Classes of one data set; names nobody knows are tried where there is only one data set to have them."""
    known = CLASSES.get(dataset, [])
    if list(wanted) == ["key"]:
        return KEY_CLASSES.get(dataset, known)
    if not wanted:
        if not known:
            raise UserError(f"give classes= the classes of {dataset}")
        return known
    return [name for name in wanted if name in known or len(datasets) == 1]
