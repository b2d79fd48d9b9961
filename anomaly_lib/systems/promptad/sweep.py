"""The sweep of the harmonic-baseline document: data sets x classes x k x tasks, one training command each."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.data.demo.items import CATEGORIES
from anomaly_lib.engine.sweep import Job
from anomaly_lib.errors import UserError

CLASSES: dict[str, list[str]] = {
    "mvtec": ["bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw",
              "tile", "toothbrush", "transistor", "wood", "zipper"],
    "visa": ["candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3",
             "pcb4", "pipe_fryum"],
    "demo": list(CATEGORIES),
}  # fmt: skip
# The document's short list: classes whose textual branch was weak.
KEY_CLASSES: dict[str, list[str]] = {
    "mvtec": ["toothbrush", "hazelnut", "metal_nut"],
    "visa": ["pipe_fryum", "capsules", "pcb2"],
    "demo": ["woven", "capsule"],
}


@dataclass
class SweepArgs(Options):
    """PromptAD sweep: data sets x classes x shots x tasks."""

    datasets: list[str] = arg([], "data sets; empty = mvtec and visa with --data-path, else the demo data", type=str)
    data_path: Optional[str] = arg(
        None, "folder of the data; with several data sets, the folder that holds mvtec/, visa/, ...", type=str
    )
    classes: list[str] = arg([], "only these classes; 'key' = the six-class short list; empty = all", type=str)
    k_shots: list[int] = arg([1, 2, 4], "numbers of support images", type=int, aliases=["shots"])
    tasks: list[str] = arg(["cls", "seg"], "cls, seg or both", type=str, choices=["cls", "seg"])
    epochs: int = arg(100, "epochs of every run", at_least=0, aliases=["epoch"])
    fusion_mode: str = arg("harmonic", "fusion of every run")
    output_dir: str = arg("result/harmonic_baseline", "tree of checkpoints and logs", aliases=["output"])
    train_flags: str = arg("", "more flags for every training command, in quotes")
    parallel: int = arg(1, "runs at a time; the cores are divided among them", at_least=1)
    gpus: list[str] = arg([], "one queue per GPU, e.g. 0 1; empty = CPU", type=str)
    launcher: str = arg("local", "local, or ray for many machines", choices=["local", "ray"])
    ray_address: Optional[str] = arg(None, "address of a running Ray cluster; None = Ray on this machine", type=str)
    retries: int = arg(0, "times a failed run is tried again", at_least=0)
    dry_run: Switch = arg(False, "print the equivalent commands and leave")


def sweep_jobs(args: SweepArgs, scripts: Path) -> list[Job]:
    """One job per run, in the document's tree: OUTPUT/<dataset>/k_<k>/<class>/<task>_checkpoint.pth."""
    datasets = args.datasets or (["mvtec", "visa"] if args.data_path else ["demo"])
    jobs: list[Job] = []
    for dataset in datasets:
        where = _data_flags(dataset, args.data_path, several=len(datasets) > 1)
        for name in _classes(dataset, args.classes, datasets):
            for k in args.k_shots:
                for task in args.tasks:
                    folder = Path(args.output_dir) / dataset / f"k_{k}" / name
                    checkpoint = folder / f"{task}_checkpoint.pth"
                    argv = [sys.executable, str(scripts / f"train_{task}.py"), *where, "--obj", name]
                    argv += ["--shot", str(k), "--epoch", str(args.epochs), "--fusion-mode", args.fusion_mode]
                    argv += ["--save-path", str(checkpoint), *shlex.split(args.train_flags)]
                    key = {"dataset": dataset, "class": name, "k_shot": str(k), "task": task}
                    log = folder / f"{task}_train.log"
                    run_dir = checkpoint.with_suffix("")
                    jobs.append(Job(key=key, argv=tuple(argv), outputs=(checkpoint,), run_dir=run_dir, log=log))
    if not jobs:
        raise UserError(f"--classes: none of {' '.join(args.classes)} belongs to {' or '.join(datasets)}")
    return jobs


def _data_flags(dataset: str, data_path: str | None, *, several: bool) -> list[str]:
    flags = ["--dataset", dataset]
    if data_path is None:
        if dataset != "demo":
            raise UserError(f"--data-path: where is {dataset}? (without data sets and path the demo data are used)")
        return flags
    below = Path(data_path) / dataset
    if several and not below.is_dir():
        raise UserError(f"--data-path {data_path}: with several data sets it must hold the folder {dataset}/")
    return [*flags, "--data-path", str(below if below.is_dir() else data_path)]


def _classes(dataset: str, wanted: Sequence[str], datasets: Sequence[str]) -> list[str]:
    """Classes of one data set; names nobody knows are tried where there is only one data set to have them."""
    known = CLASSES.get(dataset, [])
    if list(wanted) == ["key"]:
        return KEY_CLASSES.get(dataset, known)
    if not wanted:
        if not known:
            raise UserError(f"--classes: name the classes of {dataset}")
        return known
    return [name for name in wanted if name in known or len(datasets) == 1]
