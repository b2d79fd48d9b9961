"""Regenerate the docs' figures and result tables from run folders: `make figures`.

    python scripts/make_figures.py --runs runs          # every finished run below runs/
    python scripts/make_figures.py --only demo_contact_sheet

docs/results.md is written anew, and the part of README.md between its two marks. Every row names its commit, seed and
options; nothing in them is written by hand.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomaly_lib import viz
from anomaly_lib.config import arg, command
from anomaly_lib.data.demo.items import CATEGORIES, render
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_text
from anomaly_lib.metrics.inputs import to_numpy
from anomaly_lib.recipes import recipe_of
from anomaly_lib.recipes.evaluation.contract import EvaluateArgs, Evaluation
from anomaly_lib.recipes.evaluation.evaluate import find_checkpoints
from anomaly_lib.recipes.evaluation.tables import Table

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures: begin (make figures) -->", "<!-- figures: end -->"
PARTS = ("demo_contact_sheet", "results")
SHOWN = 6  # metrics of a table row, images of a gallery figure


@dataclass
class Args:
    """Figures and tables of the docs."""

    runs: str = arg("runs", "folder with run folders")
    docs: str = arg(str(ROOT / "docs"), "folder of results.md and figures/")
    readme: str = arg(str(ROOT / "README.md"), "file whose marked part is renewed")
    only: list[str] = arg(list(PARTS), "which parts to make", choices=list(PARTS))


@dataclass
class FinishedRun:
    folder: Path
    record: dict[str, Any]
    figures: list[Path] = field(default_factory=list)

    @property
    def system(self) -> str:
        return str(self.record["system"])


def demo_contact_sheet(folder: Path) -> Path:
    """One normal image and the largest of five of each defect kind, a row per demo category."""
    tile = 104
    columns = 1 + max(len(category.defects) for category in CATEGORIES.values())
    sheet = Image.new("RGB", (columns * tile, len(CATEGORIES) * tile))
    for row, (name, category) in enumerate(CATEGORIES.items()):
        for column, defect in enumerate(["good", *category.defects]):
            images, masks = render(name, defect, 5)
            largest = int(masks.sum(axis=(1, 2)).argmax())
            picture = Image.fromarray(images[largest]).resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(picture, (column * tile, row * tile))
    path = folder / "demo_contact_sheet.png"
    sheet.quantize(160, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def finished_runs(root: Path) -> list[FinishedRun]:
    """Every finished run below `root`, by system and folder name."""
    if not root.is_dir():
        raise UserError(f"--runs {root}: no such folder; train something first, for instance python train_cls.py")
    records = [(path.parent, read_json(path)) for path in sorted(root.rglob("run.json"))]
    runs = [FinishedRun(folder, record) for folder, record in records if record.get("status") == "finished"]
    if not runs:
        raise UserError(f"--runs {root}: holds no finished run")
    return sorted(runs, key=lambda run: (run.system, run.folder.name))


def result_table(runs: Sequence[FinishedRun]) -> Table:
    """A row for each run of one system: what came out, then what is needed to repeat it."""
    rows = []
    for run in runs:
        record, options = run.record, run.record["args"]
        metrics = {name: float(value) for name, value in record["metrics"].items() if name != "threshold"}
        remarks = ["oracle"] if options.get("select") == "best-on-test" else []
        remarks += ["random weights"] if options.get("weights") == "random" else []
        rows.append(
            {
                "run": run.folder.name,
                **dict(list(metrics.items())[:SHOWN]),
                "remarks": ", ".join(remarks) or "-",
                "seed": record["seed"],
                "seconds": round(record["seconds"]),
                "machine": record.get("gpu") or f"{record.get('machine')}, {record.get('threads')} threads",
                "commit": record.get("git_commit") or "unknown",
            }
        )
    last = ["remarks", "seed", "seconds", "machine", "commit"]
    names = dict.fromkeys(name for row in rows for name in row)
    return Table([*(name for name in names if name not in last), *last], rows)


def draw_run(run: FinishedRun, folder: Path) -> None:
    """The figure that says most about a run, and its training curve."""
    checkpoint = find_checkpoints(str(run.folder))[0]
    evaluation: Evaluation = recipe_of(run.system).evaluate(checkpoint, EvaluateArgs(checkpoint=str(checkpoint)))
    scores, labels = to_numpy(evaluation.scores), to_numpy(evaluation.labels)
    if evaluation.kind == "regression":
        figure, kind = viz.parity_plot(scores, labels, title=run.folder.name), "parity"
    elif evaluation.maps is not None and evaluation.image is not None:
        figure, kind = _overlays(evaluation, scores, labels), "overlays"
    else:
        figure, kind = viz.score_histogram(scores, labels, threshold=evaluation.threshold), "histogram"
    run.figures = _kept(viz.save_figure(figure, folder / f"{run.folder.name}_{kind}", dpi=72))
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()] if _has(run) else []
    if len(lines) > 1 and "loss" in lines[0]:
        curve = viz.training_lines({"loss": [line["loss"] for line in lines]}, title=run.folder.name, ylabel="loss")
        run.figures += _kept(viz.save_figure(curve, folder / f"{run.folder.name}_training", dpi=72))


def _has(run: FinishedRun) -> bool:
    return (run.folder / "metrics.jsonl").is_file()


def _kept(written: list[Path]) -> list[Path]:
    """The docs keep the PNG; `python evaluate.py` writes the vector file for a paper."""
    for path in written[1:]:
        path.unlink()
    return written[:1]


def _overlays(evaluation: Evaluation, scores: np.ndarray, labels: np.ndarray) -> Any:
    """Anomalies from the easiest to the hardest, chosen by rank and not by looks."""
    anomalous = np.flatnonzero(labels > 0)
    ranked = anomalous[np.argsort(-scores[anomalous], kind="stable")]
    chosen = ranked[np.linspace(0, len(ranked) - 1, min(SHOWN, len(ranked))).round().astype(int)]
    assert evaluation.image is not None
    return viz.overlay_grid(
        [evaluation.image(i) for i in chosen],
        [to_numpy(evaluation.maps[i]) for i in chosen],
        masks=None if evaluation.masks is None else [to_numpy(evaluation.masks[i]) for i in chosen],
        titles=[f"{Path(evaluation.paths[i]).parent.name}  {scores[i]:.3f}" for i in chosen],
        value_range=viz.map_range([to_numpy(one) for one in evaluation.maps]),
    )


def results_page(runs: Sequence[FinishedRun], docs: Path) -> str:
    """docs/results.md."""
    parts = [
        "# Measured results\n\nWritten by `python scripts/make_figures.py` from run folders; do not edit. Demo data are"
        " procedural: the numbers say that a system works, not how it compares on a published benchmark.\n"
    ]
    for system in dict.fromkeys(run.system for run in runs):
        own = [run for run in runs if run.system == system]
        parts.append(f"## {system}\n\n{result_table(own).markdown()}")
        for run in own:
            shown = "\n".join(f"![{path.stem}]({path.relative_to(docs).as_posix()})" for path in run.figures)
            parts.append(f"**{run.folder.name}**: `{options_of(run)}`\n\n{shown}\n" if shown else "")
    return "\n".join(part for part in parts if part)


def options_of(run: FinishedRun) -> str:
    """The options the run was started with, without the places of this machine."""
    words = run.record.get("argv", [])
    kept, skip = [], False
    for word in words:
        if skip or word.split("=")[0] in ("--output-dir", "--output", "--save-path", "--data-path", "--cache-dir"):
            skip = not skip and "=" not in word
            continue
        kept.append(word)
    return " ".join(kept) or "no options: built-in data and defaults"


def renew_readme(readme: Path, runs: Sequence[FinishedRun]) -> None:
    """Replace what stands between the two marks; a README without them is left alone."""
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        return
    lines = [
        "![demo data](docs/figures/demo_contact_sheet.png)\n",
        "| system | run | result | commit |",
        "|---|---|---|---|",
    ]
    for run in runs:
        metrics = [(n, v) for n, v in run.record["metrics"].items() if n != "threshold"][:3]
        figures = ", ".join(f"{name} {value:.3f}" for name, value in metrics)
        lines.append(f"| {run.system} | {run.folder.name} | {figures} | {run.record.get('git_commit') or 'unknown'} |")
    pictures = [path for run in runs for path in run.figures if path.stem.endswith("_overlays")][:2]
    lines += ["", *(f"![{path.stem}](docs/figures/{path.name})" for path in pictures)]
    before, rest = text.split(BEGIN)
    block = "\n".join(lines)
    write_text(readme, f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}")


def make(args: Args) -> int:
    docs = Path(args.docs)
    figures = docs / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    if "demo_contact_sheet" in args.only:
        print(demo_contact_sheet(figures))
    if "results" in args.only:
        runs = finished_runs(Path(args.runs))
        for run in runs:
            draw_run(run, figures)
            print(f"{run.folder}: {', '.join(path.name for path in run.figures)}")
        write_text(docs / "results.md", results_page(runs, docs))
        renew_readme(Path(args.readme), runs)
        print(docs / "results.md")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, make, argv, prog="make_figures.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
