"""Which rows of a transformer's patches to compare: raw, of length 1, or of mean 0 and deviation 1.

    ANOMALY_LIB_DATA=DIR python scripts/detectors/study_rows.py --write-docs

DIR holds the real categories and weights of `shared/data`. PatchCore and PaDiM on ViT-Tiny with each kind of rows, and
on ResNet-18 as it is, on the images of the ledger of few-shot detectors and on what it has kept of them.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.files import write_between, write_json

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the scripts import each other from the repository root
MARKS = ("<!-- rows:begin -->", "<!-- rows:end -->")
NETS = {"ResNet-18": ("raw",), "ViT-Tiny": ("raw", "unit", "layernorm")}
METRICS = ("image_auroc", "pixel_auroc")


@dataclass
class Args(Options):
    """The study of rows."""

    output: str = arg("benchmarks/results/rows.json", "JSON file of the table")
    cache_dir: str = arg("runs/fewshot_ledger", "where features are kept")
    categories: list[str] = arg(["mvtec_ad/bottle", "mtd/magnetic_tile", "battery_weld/weld"], "FOLDER/CATEGORY")
    blocks: list[str] = arg(["layer.2", "layer.7"], "blocks of the transformer that are read")
    seeds: list[int] = arg([0], "seeds of the coreset and of PaDiM's channels")
    write_docs: Switch = arg(False, "put the table into docs/manual/detectors_family.md")


def one_run(category: str, model: str, net: str, rows: str, seed: int, args: Args) -> dict[str, Any]:
    """Figures of one detector on all normal images of one category."""
    from scripts.detectors.ledger_rows import METHODS, detector_row, figures

    method = METHODS[f"{model}, {net}"]
    layers = args.blocks if net == "ViT-Tiny" else method.layers
    known = set(layers) <= set(method.read)
    method = replace(method, layers=tuple(layers), read=method.read if known else (), options={"rows": rows})
    found = figures(category, detector_row(method, category, None, seed, args.cache_dir))
    name = category.rpartition("/")[2]
    return {"category": name, "model": model, "net": net, "rows": rows, "seed": seed} | {
        key: found[key] for key in METRICS
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each detector, network and kind of rows; the mean over seeds of each category."""
    categories = list(dict.fromkeys(row["category"] for row in rows))
    lines = [
        f"| detector | network | rows | {' | '.join(categories)} | mean |",
        "|" + "---|" * (len(categories) + 4),
    ]
    for key in dict.fromkeys((row["model"], row["net"], row["rows"]) for row in rows):
        cells, means = [], []
        for category in categories:
            found = [r for r in rows if (r["model"], r["net"], r["rows"], r["category"]) == (*key, category)]
            values = [100 * mean(r[metric] for r in found) for metric in METRICS]
            means.append(values)
            cells.append(" / ".join(f"{value:.1f}" for value in values))
        total = " / ".join(f"{mean(values):.1f}" for values in zip(*means, strict=True))
        lines.append(f"| {' | '.join(key)} | {' | '.join(cells)} | {total} |")
    return "\n".join(lines)


def run(args: Args) -> None:
    from anomaly_lib.engine.run import machine_facts
    from scripts.detectors.ledger_rows import MOST, MOST_BROKEN, MOST_GOOD, SIDE

    rows = [
        one_run(category, model, net, kind, seed, args)
        for category in args.categories
        for model in ("patchcore", "padim")
        for net, kinds in NETS.items()
        for kind in kinds
        for seed in args.seeds
    ]
    text = table(rows)
    facts = machine_facts()
    write_json(Path(args.output), {"rows": rows, "machine": facts})
    print(text)
    if args.write_docs:
        note = (
            f"Image AUROC / pixel AUROC in per cent, blocks {' '.join(args.blocks)}, {SIDE} pixels, at most {MOST} "
            f"normal, {MOST_GOOD} good and {MOST_BROKEN} broken images a category; commit {facts['git_commit']}."
        )
        write_between(ROOT / "docs" / "manual" / "detectors_family.md", MARKS, f"{text}\n\n{note}")


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, run, argv, prog="study_rows.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
