"""The README's results: real categories first, then built-in data, then what was measured beside others."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import mean
from typing import Any

from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_text
from scripts.pages.results_page import REAL_DATA, FinishedRun

BEGIN, END = "<!-- figures: begin (make figures) -->", "<!-- figures: end -->"
LEDGER = "fewshot_ledger.json"
KS = ("1", "4", "all")
USUAL_SIZE = 224  # of the images in the table beside anomalib
METHODS = ("fewshot", "anomalydino", "patchcore, ResNet-18", "promptad, ViT-Tiny memory")
BUILT_IN = ("demo-all-", "fewshot-", "demo-window-", "demo-formation_")  # how the shown runs' folders begin

ALL_FOUR = "times faster, all four in one pass against the sum of the fastest peer of each"
# What was measured: where the ratio stands, beside whom, what it says.
MEASURED = (
    ("detect", ("patchcore", "ratio_cold", "median"), "anomalib 2.7", "PatchCore, from files to metrics"),
    ("detect", ("patchcore", "ratio_cached", "median"), "anomalib 2.7", "the same once its images are encoded"),
    ("detect", ("padim", "ratio_cold", "median"), "anomalib 2.7", "PaDiM, from files to metrics"),
    ("detect", ("predict", "ratio", "median"), "anomalib 2.7", "one image, the same bank"),
    ("memory_bank", ("coreset", "ratio"), "anomalib 2.7", "picks of a coreset"),
    ("promptad", ("speed", "one_cls_run", "ratio"), "the original's schedule", "one PromptAD training, 100 epochs"),
    ("graphs", ("ratio",), "jarvis-tools", "crystals to graphs"),
    ("metrics", ("runs", 0, "summary", ALL_FOUR), "scikit-learn, torchmetrics, anomalib", "pixel AUROC, AP, F1, AUPRO"),
)


def renew_readme(readme: Path, runs: Sequence[FinishedRun], benchmarks: Path, gallery: Sequence[str] = ()) -> None:
    """Replace what stands between the two marks. A README without them is left alone.

    `gallery`: run folders whose picture is shown; without it the first of every system.
    """
    if not readme.is_file():
        raise UserError(f"readme={readme}: no such file")
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        return
    parts = [real_categories(benchmarks), built_in(runs), beside_others(benchmarks), pictures(runs, gallery)]
    before, rest = text.split(BEGIN)
    block = "\n\n".join(part for part in parts if part)
    write_text(readme, f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}")


def real_categories(benchmarks: Path) -> str:
    """Image AUROC over the real categories of the ledger, and what anomalib reaches with all images."""
    if not (benchmarks / LEDGER).is_file():
        return ""
    ledger = read_json(benchmarks / LEDGER)
    real = [row for row in ledger["rows"] if "/" in row["class"]]
    names = sorted({row["class"] for row in real})
    lines = [f"| image AUROC, mean of {len(names)} real categories | k = {' | k = '.join(KS)} |", "|---|" + "---|" * 3]
    for method in METHODS:
        cells = [_mean_over(names, ((r["class"], r) for r in real if (r["method"], r["k"]) == (method, k))) for k in KS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    if (benchmarks / REAL_DATA).is_file():
        lines += _peer_lines(read_json(benchmarks / REAL_DATA)["rows"])
    return "\n".join(
        [
            *lines,
            "",
            f"k normal images, real weights, {', '.join(names)}: k = 1 and 4 are means of five seeds for all but "
            f"PromptAD; commit {ledger['machine']['git_commit']}. All methods, pixel AUROC and paired intervals: "
            "[the family](docs/manual/detectors_family.md).",
        ]
    )


def _mean_over(classes: Sequence[str], rows: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """The mean of the classes' means over their rows, in per cent; a class that is missing is said."""
    found: dict[str, list[float]] = {name: [] for name in classes}
    for name, row in rows:
        if name in found:
            found[name].append(row["image_auroc"])
    if not all(found.values()):
        return "not measured"
    return f"{100 * mean(mean(values) for values in found.values()):.1f}"


def _peer_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Both sides of each detector that anomalib has, with all images, over the categories that both have seen.

    Narrowed networks are left out: what they reach says nothing of the method.
    """
    both = [row for row in rows if "anomalib" in row and "widths" not in row]
    for model in dict.fromkeys(row["model"] for row in both):
        ratios = dict.fromkeys(row["coreset_ratio"] for row in both if row["model"] == model)
        kinds = [[r for r in both if (r["model"], r["coreset_ratio"]) == (model, ratio)] for ratio in ratios]
        some = max(kinds, key=lambda kind: len({row["category"] for row in kind}))
        names = list(dict.fromkeys(row["category"] for row in some))
        share = some[0]["coreset_ratio"]
        kind = model if share is None else f"{model}, {100 * share:g} % of the patches"
        kind += "" if some[0]["size"] == USUAL_SIZE else f", {some[0]['size']} px"
        sides = [_mean_over(names, ((row["category"], row[side]) for row in some)) for side in ("here", "anomalib")]
        where = ", ".join(name.split("/")[1] for name in names)
        yield f"| {kind}: here / anomalib 2.7 ({where}) | - | - | {' / '.join(sides)} |"


def built_in(runs: Sequence[FinishedRun]) -> str:
    """A row of each of some runs on built-in data."""
    shown = [run for run in runs if run.folder.name.startswith(BUILT_IN)]
    lines = ["| built-in data | run | result | commit |", "|---|---|---|---|", *map(_row, shown)]
    note = "All runs, those on untrained networks too: [results](docs/manual/results.md)."
    return "\n".join([*lines, "", note]) if shown else ""


def _row(run: FinishedRun) -> str:
    metrics = [(n, v) for n, v in run.record["metrics"].items() if n != "threshold"][:3]
    figures = ", ".join(f"{name} {value:.3f}" for name, value in metrics)
    figures += "".join(f" [{remark}]" for remark in run.record["remarks"])
    return f"| {run.system} | {run.folder.name} | {figures} | {run.record.get('git_commit') or 'unknown'} |"


def beside_others(benchmarks: Path) -> str:
    """How many times faster than who else does the same, each measured in one run."""
    lines = ["| work | beside | times faster | commit |", "|---|---|---|---|"]
    for name, path, peer, what in MEASURED:
        file = benchmarks / f"{name}.json"
        if not file.is_file():
            continue
        report = read_json(file)
        try:
            value: float = reduce(getitem, path, report)
        except KeyError:  # a file may hold a part of what its benchmark measures
            continue
        lines.append(f"| {what} | {peer} | {value:.3g} | {(report.get('machine') or report)['commit']} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def pictures(runs: Sequence[FinishedRun], gallery: Sequence[str]) -> str:
    pictured = [run for run in runs if any(path.stem.endswith("_overlays") for path in run.figures)]
    first = {run.system: run.folder.name for run in reversed(pictured)}
    shown = list(gallery) or list(first.values())
    chosen = [run.figures[0] for name in shown for run in pictured if run.folder.name == name]
    return "\n".join(f"![{path.stem}](docs/figures/{path.name})" for path in chosen)
