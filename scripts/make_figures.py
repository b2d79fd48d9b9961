"""Regenerate the docs' figures and result tables from run folders: `make figures`.

    python scripts/make_figures.py --runs runs          # every finished run below runs/
    python scripts/make_figures.py --only demo_contact_sheet

docs/manual/results.md is written anew, and the part of README.md between its two marks. Every row names its commit,
seed and options; nothing in them is written by hand.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.files import write_text
from anomaly_lib.systems.registry import SYSTEMS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts import each other from the repository root

from scripts.pages.results_page import SHOWN, FinishedRun, finished_runs, results_page
from scripts.pages.shop_window import renew_readme

if TYPE_CHECKING:  # torch is loaded where there is work: --help and mistakes come at once
    from anomaly_lib.detect.scores import Scores

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("demo_contact_sheet", "way", "cast", "results", "stub")


@dataclass
class Args(Options):
    """Figures and tables of the docs."""

    runs: str = arg("runs", "folder with run folders")
    docs: str = arg(str(ROOT / "docs"), "folder of manual/results.md and figures/")
    benchmarks: str = arg(str(ROOT / "benchmarks" / "results"), "folder of the benchmarks' JSON files")
    readme: str = arg(str(ROOT / "README.md"), "file whose marked part is renewed")
    figures_per_system: int = arg(2, "runs of each system that are drawn; all are in the tables", at_least=0)
    gallery: list[str] = arg([], "run folders whose picture the README shows (default: the first of each system)")
    only: list[str] = arg(list(PARTS), "which parts to make", choices=list(PARTS))


def demo_contact_sheet(folder: Path) -> Path:
    """One normal image and the largest of five of each defect kind, a row per demo category."""
    from PIL import Image

    from anomaly_lib.data.demo.items import CATEGORIES, render

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


def draw_run(run: FinishedRun, folder: Path) -> None:
    """The figure that says most about a run, and its training curve."""
    from anomaly_lib import viz
    from anomaly_lib.evaluation.checkpoints import find_checkpoints

    detector = SYSTEMS.load(find_checkpoints(str(run.folder))[0])
    found = detector.score(detector.items())
    scores, labels = np.asarray(found.scores), np.asarray(found.labels)
    if found.kind == "regression":
        figure, kind = viz.parity_plot(scores, labels, title=run.folder.name), "parity"
    elif found.maps is not None and found.image is not None:
        figure, kind = _overlays(found, scores, labels), "overlays"
    else:
        threshold = detector.decision.threshold if detector.decision else None
        figure, kind = viz.score_histogram(scores, labels, threshold=threshold), "histogram"
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


def _overlays(found: "Scores", scores: np.ndarray, labels: np.ndarray) -> Any:
    """Anomalies from the easiest to the hardest, chosen by rank and not by looks."""
    from anomaly_lib import viz

    anomalous = np.flatnonzero(labels > 0)
    ranked = anomalous[np.argsort(-scores[anomalous], kind="stable")]
    chosen = ranked[np.linspace(0, len(ranked) - 1, min(SHOWN, len(ranked))).round().astype(int)]
    assert found.image is not None
    return viz.overlay_grid(
        [found.image(i) for i in chosen],
        [np.asarray(found.maps[i]) for i in chosen],
        masks=None if found.masks is None else [np.asarray(found.masks[i]) for i in chosen],
        titles=[f"{Path(found.paths[i]).parent.name}  {scores[i]:.3f}" for i in chosen],
        value_range=viz.map_range([np.asarray(one) for one in found.maps]),
    )


def make(args: Args) -> None:
    docs = Path(args.docs)
    figures, manual = docs / "figures", docs / "manual"
    figures.mkdir(parents=True, exist_ok=True)
    if "demo_contact_sheet" in args.only:
        print(demo_contact_sheet(figures))
    if "way" in args.only:
        from scripts.pages.way import make_way

        print(make_way(figures))
    if "cast" in args.only:
        from scripts.pages.cast import make_cast

        print(make_cast(figures))
    if "stub" in args.only:
        from scripts.pages.fit_stub import write_stub

        print(write_stub())
    if "results" in args.only:
        runs = finished_runs(Path(args.runs))
        drawn = Counter[str]()
        for run in runs:
            if run.folder.name in args.gallery or drawn[run.system] < args.figures_per_system:
                draw_run(run, figures)
                drawn[run.system] += 1
            print(f"{run.folder}: {', '.join(path.name for path in run.figures)}")
        write_text(manual / "results.md", results_page(runs, manual, Path(args.benchmarks)))
        renew_readme(Path(args.readme), runs, Path(args.benchmarks), args.gallery)
        print(manual / "results.md")


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, make, argv, prog="make_figures.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
