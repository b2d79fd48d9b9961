"""--root-dir: many runs below one folder, laid out and tabulated as the original's scripts do.

ROOT/DATASET/k_SHOT/CLASS/CLS-Seed_111/                              the run folder
ROOT/DATASET/k_SHOT/checkpoint/CLS-Seed_111-CLASS-check_point.pt     its checkpoint
ROOT/DATASET/k_SHOT/csv/Seed_111-results.csv                         i_roc (cls) and p_roc (seg) of all classes, percent
"""

from dataclasses import replace
from pathlib import Path

from anomaly_lib.engine.results import ResultsTable
from anomaly_lib.systems.promptad.options import Args
from anomaly_lib.types import RunResult

COLUMNS = {"cls": ("i_roc", "image_auroc"), "seg": ("p_roc", "pixel_auroc")}


def placed(args: Args, class_name: str) -> Args:
    """The options with the run folder and the checkpoint that root_dir= means for this class."""
    if args.root_dir is None:
        return args
    folder, name = _folder(args, args.root_dir), f"{args.task.upper()}-Seed_{args.seed}"
    checkpoint = folder / "checkpoint" / f"{name}-{class_name}-check_point.pt"
    return replace(args, root_dir=None, output_dir=str(folder / class_name / name), save_path=str(checkpoint))


def note_result(args: Args, class_name: str, result: RunResult) -> None:
    """Put the run's figure into the table below root_dir=; what has not been run has no cell."""
    column, metric = COLUMNS[args.task]
    if args.root_dir is None or metric not in result.metrics:
        return
    table = ResultsTable(_folder(args, args.root_dir) / "csv" / f"Seed_{args.seed}-results.csv", key=["class"])
    figure = f"{100 * result.metrics[metric]:.2f}"
    table.put({"class": f"{args.dataset}-{class_name}", column: figure}, merge=True)


def _folder(args: Args, root: str) -> Path:
    return Path(root) / args.dataset / f"k_{args.shot}"
