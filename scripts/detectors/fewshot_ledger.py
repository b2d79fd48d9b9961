"""`fewshot` beside every detector that learns from few normal images, in one table with paired intervals.

    ANOMALY_LIB_DATA=DIR python scripts/detectors/fewshot_ledger.py --write-docs

DIR holds the real categories and weights of `shared/data`. Every image is encoded once for each network and each set of
views and kept in --cache-dir. Each row is written down when it is measured: a ledger that was interrupted goes on.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.files import read_json, write_between, write_json

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the scripts import each other from the repository root
MARKS = ("<!-- ledger:begin -->", "<!-- ledger:end -->")
OURS, RIVAL = "fewshot", "patchcore, ResNet-18"
SHOTS = ("1", "2", "4", "16", "all")


@dataclass
class Args(Options):
    """The ledger of few-shot detectors."""

    output: str = arg("benchmarks/results/fewshot_ledger.json", "JSON file of the rows; those in it are kept")
    cache_dir: str = arg("runs/fewshot_ledger", "where features are kept")
    only: str = arg("", "regular expression of 'method | class | k | seed'; other rows are not measured")
    seeds: int = arg(5, "draws of normal images for each k", at_least=1)
    repeats: int = arg(2000, "resamples of the test images behind each interval", at_least=1)
    write_docs: Switch = arg(False, "put the tables into docs/manual/detectors_family.md")


def wanted(args: Args) -> Iterator[tuple[str, str, str, int]]:
    """(method, class, k, seed) of every row, class after class."""
    from scripts.detectors.ledger_rows import DEMO, METHODS, PROMPTED, REAL, draws_of

    for name in (*REAL, *DEMO):
        for method in (*METHODS, *PROMPTED):
            for shot in SHOTS:
                for seed in range(draws_of(method, shot, args.seeds)):
                    if re.search(args.only, f"{method} | {name} | {shot} | {seed}"):
                        yield method, name, shot, seed


def measure(args: Args, rows: list[dict[str, Any]]) -> None:
    """Add what is missing to `rows`, and write them down one by one."""
    import torch

    from anomaly_lib.engine.run import machine_facts
    from scripts.detectors.ledger_rows import figures, row_of

    done = {(row["method"], row["class"], row["k"], row["seed"]) for row in rows}
    for method, name, shot, seed in wanted(args):
        if (method, name, shot, seed) in done:
            continue
        torch.manual_seed(seed)
        found = row_of(method, name, None if shot == "all" else int(shot), seed, args.cache_dir)
        rows.append({"method": method, "class": name, "k": shot, "seed": seed} | figures(name, found))
        write_json(Path(args.output), {"machine": machine_facts(), "rows": rows})
        print(f"{method:24} {name:20} k={shot:3} {seed}: {rows[-1]['image_auroc']:.3f}", flush=True)


# -- tables -----------------------------------------------------------------------------------------------------------


@dataclass
class Cell:
    """All that is known of one method at one k: by class, the mean of its figures over the seeds."""

    image: dict[str, float]
    pixel: dict[str, float]
    wins: dict[str, np.ndarray]  # [good, broken]: how often the broken image scores higher, over the seeds


def cell_of(rows: list[dict[str, Any]], method: str, shot: str) -> Cell:
    """Of those of `rows` that belong to it."""
    from scripts.detectors.ledger_rows import class_of

    mine = [row for row in rows if (row["method"], row["k"]) == (method, shot)]
    cell = Cell({}, {}, {})
    for name in dict.fromkeys(row["class"] for row in mine):
        some = [row for row in mine if row["class"] == name]
        labels = np.array(class_of(name).labels)
        ranks = np.array([[int(rank) for rank in row["ranks"].split()] for row in some])  # [seeds, N]
        margin = ranks[:, None, labels == 1] - ranks[:, labels == 0, None]
        cell.wins[name] = ((margin > 0) + (margin == 0) / 2).mean(0)
        cell.image[name], cell.pixel[name] = (
            100 * float(np.mean([row[key] for row in some])) for key in ("image_auroc", "pixel_auroc")
        )
    return cell


def difference(ours: Cell, other: Cell, repeats: int) -> Optional[tuple[float, float, float]]:
    """Mean difference of the image AUROC over the classes that both have, and its 95 % interval: the test images of
    each class are drawn anew, the same for both."""
    names = [name for name in ours.wins if name in other.wins]
    if not names:
        return None
    draws = np.zeros(repeats)
    generator = np.random.default_rng(0)
    for name in names:
        gap = ours.wins[name] - other.wins[name]
        good, broken = gap.shape
        counts = generator.multinomial(good, np.full(good, 1 / good), repeats) / good  # [R, good]
        more = generator.multinomial(broken, np.full(broken, 1 / broken), repeats) / broken
        draws += np.einsum("rg,gb,rb->r", counts, gap, more) / len(names)
    value = float(np.mean([(ours.wins[name] - other.wins[name]).mean() for name in names]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return 100 * value, 100 * float(low), 100 * float(high)


def tables(rows: list[dict[str, Any]], repeats: int) -> str:
    """Markdown: means over the classes for each k, how much better `fewshot` is, and its figures class by class."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(m, k): cell_of(rows, m, k) for m in {OURS, RIVAL, *methods} for k in SHOTS}
    every = len(cells[OURS, "1"].image)
    head = "| method | " + " | ".join(f"k = {k}" for k in SHOTS) + " |\n|" + "---|" * (len(SHOTS) + 1)
    means, gaps = [head], [head]
    for method in methods:
        row, gap = [], []
        for shot in SHOTS:
            cell = cells[method, shot]
            if not cell.image:
                row.append("not measured")
                gap.append("not measured")
                continue
            some = "" if len(cell.image) == every else f" ({len(cell.image)} classes)"
            row.append(f"{np.mean(list(cell.image.values())):.1f} / {np.mean(list(cell.pixel.values())):.1f}{some}")
            found = difference(cells[OURS, shot], cell, repeats)
            gap.append("" if found is None else f"{found[0]:+.1f} ({found[1]:+.1f} to {found[2]:+.1f})")
        means.append(f"| {method} | {' | '.join(row)} |")
        if method != OURS:
            gaps.append(f"| {method} | {' | '.join(gap)} |")
    return "\n".join([*means, "", f"Image AUROC of `{OURS}` less that of the others:", "", *gaps, "", *by_class(cells)])


def by_class(cells: dict[tuple[str, str], Cell]) -> list[str]:
    """The image AUROC of `fewshot` and of PatchCore class by class."""
    lines = ["Class by class, `fewshot` and PatchCore on ResNet-18:", ""]
    lines += ["| class | " + " | ".join(f"k = {k}" for k in SHOTS) + " |", "|" + "---|" * (len(SHOTS) + 1)]
    for name in cells[OURS, "1"].image:
        pairs = [
            " / ".join(f"{cells[m, k].image[name]:.1f}" if name in cells[m, k].image else "-" for m in (OURS, RIVAL))
            for k in SHOTS
        ]
        lines.append(f"| {name.rpartition('/')[2]} | {' | '.join(pairs)} |")
    return lines


def run(args: Args) -> None:
    from scripts.detectors.ledger_rows import NOTE

    rows = read_json(Path(args.output))["rows"] if Path(args.output).is_file() else []
    measure(args, rows)
    text = tables(rows, args.repeats)
    print(text)
    if args.write_docs:
        commit = read_json(Path(args.output))["machine"]["git_commit"]
        write_between(ROOT / "docs" / "manual" / "detectors_family.md", MARKS, f"{text}\n\n{NOTE} Commit {commit}.")


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, run, argv, prog="fewshot_ledger.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
