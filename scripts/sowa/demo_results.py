"""SOWA on the built-in demo data over several seeds, trained and not; fills the table of docs/manual/sowa.md.

    python scripts/sowa/demo_results.py --seeds 0 1 2 --output-dir runs/sowa/demo_results [--data-path DEMO_FILES]

Every second class trains, the others are only tested. How long to train is decided on training classes that are left
out in turn; the tested classes decide nothing. A killed study goes on where it stopped.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.files import read_json, write_between
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.sowa.options import Args

SHOWN = ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "manual" / "sowa.md"
Metrics = dict[str, float]
MARKS = ("<!-- demo results -->", "<!-- end of demo results -->")
NOTHING = {"prompt_learner": "zero", "adapter": "none", "epochs": 0, "map_calibration": "none", "image_score": "text"}


@dataclass
class StudyArgs(Options):
    """The study."""

    seeds: list[int] = arg([0, 1, 2], "seeds", at_least=0)
    epochs: int = arg(Args().epochs, "most epochs of a training", at_least=1)
    data_path: Optional[str] = arg(
        None, "the demo data as files (python -m anomaly_lib demo DIR); None = drawn", type=str
    )
    output_dir: str = arg("runs/sowa/demo_results", "folder of the runs and the table")
    cache_dir: Optional[str] = arg(None, "folder of the feature cache", type=str)
    page: str = arg(str(PAGE), "page whose table is written")


def study(seed: int, args: StudyArgs) -> dict[str, Metrics]:
    """The same frozen tower with nothing trained and with SOWA's parts trained, each zero-shot and with four images."""
    from anomaly_lib.detect.scores import summary

    sowa = SYSTEMS["sowa"]
    common: dict[str, Any] = {"seed": seed, "data_path": args.data_path, "cache_dir": args.cache_dir, "figures": False}
    common |= {"backbone": "demo-clip"}
    folder = Path(args.output_dir)
    plain = Args(**common, **NOTHING, output_dir=str(folder / f"plain-{seed}"))
    trained = Args(**common, output_dir=str(folder / f"trained-{seed}"), epochs=args.epochs)
    found = {}
    for name, options in (("nothing trained", plain), ("trained", trained)):
        result = sowa.train(options)
        assert result.checkpoint is not None
        detector = SYSTEMS.load(result.checkpoint, device="cpu")
        found[f"{name}, zero-shot"] = result.metrics
        found[f"{name}, k=4"] = summary(detector.score(detector.items(Choice(shot=4))))
    return found


def run(args: StudyArgs) -> None:
    from anomaly_lib.systems.sowa.train import best_epochs

    found: dict[str, list[Metrics]] = {}
    for seed in args.seeds:
        for name, metrics in study(seed, args).items():
            found.setdefault(name, []).append(metrics)
    folder = Path(args.output_dir)
    records = [read_json(folder / f"trained-{seed}" / "run.json") for seed in args.seeds]
    for shots in ("zero-shot", "k=4"):
        pairs = zip(found[f"trained, {shots}"], found[f"nothing trained, {shots}"], strict=True)
        found[f"gain, {shots}"] = [{name: trained[name] - plain[name] for name in SHOWN} for trained, plain in pairs]
    rows: list[dict[str, Cell]] = []
    for name, runs in found.items():
        row: dict[str, Cell] = {"setting": name}
        for metric in SHOWN:
            values = [100 * run[metric] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(set(values)) > 1 else ""
            sign = "+" if name.startswith("gain") else ""
            row[metric] = f"{statistics.mean(values):{sign}.1f}{spread}"
        rows.append(row)
    table = Table(["setting", *SHOWN], rows)
    print(table.text())
    table.write(folder / "results")
    seeds = ", ".join(map(str, args.seeds))
    first = records[0]
    chosen = ", ".join(str(best_epochs(record["transfer"])) for record in records)
    note = (
        f"Train: {', '.join(first['train_classes'])}. Test: {', '.join(first['test_classes'])}. Seeds {seeds}; epochs "
        f"chosen on left-out training classes: {chosen} of {args.epochs}. Commit {first['git_commit']}."
    )
    write_between(Path(args.page), MARKS, f"{table.markdown()}\n{note}")


def main(argv: Sequence[str] | None = None) -> int:
    return command(StudyArgs, run, argv, prog="demo_results.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
