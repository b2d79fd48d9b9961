"""Which rows of a transformer's patches to compare: raw, of length 1, or of mean 0 and deviation 1.

    ANOMALY_LIB_DATA=DIR python scripts/detectors/study_rows.py --write-docs

DIR holds the real categories and weights of `shared/data`. PatchCore and PaDiM on ViT-Tiny with each kind of rows, and
on ResNet-18 as it is; every image is encoded once a network.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.errors import UserError
from anomaly_lib.files import write_between, write_json
from anomaly_lib.systems.registry import SYSTEMS

ROOT = Path(__file__).resolve().parents[2]
MARKS = ("<!-- rows:begin -->", "<!-- rows:end -->")
NETS = {
    "resnet18": ("resnet18_imagenet1k_layers1-3_bnfolded.pth", {"patchcore": ["layer2", "layer3"]}),
    "timm:vit_tiny_patch16_224": ("vit_tiny_patch16_224_imagenet_fp16.pth", {}),
}
METRICS = ("image_auroc", "pixel_auroc", "pixel_aupro")


@dataclass
class Args(Options):
    """The study of rows."""

    output: str = arg("benchmarks/results/rows.json", "JSON file of the table")
    categories: list[str] = arg(["mvtec_ad/bottle", "mtd/magnetic_tile", "battery_weld/weld"], "FOLDER/CATEGORY")
    blocks: list[str] = arg(["layer.2", "layer.7"], "blocks of the transformer that are read")
    seeds: list[int] = arg([0], "seeds of the coreset and of PaDiM's channels")
    write_docs: Switch = arg(False, "put the table into docs/manual/detectors_family.md")


def one_run(root: Path, category: str, model: str, net: str, rows: str, seed: int, args: Args) -> dict[str, Any]:
    """Figures of one detector on one category."""
    file, layers = NETS[net]
    folder, _, name = category.partition("/")
    own = {"layers": layers[model]} if model in layers else {}
    own = own if net == "resnet18" else {"layers": args.blocks}
    system = SYSTEMS["detectors"]
    options = system.Args(
        model=model, backbone=net, weights=str(root / "weights" / file), rows=rows, seed=seed, image_size=[224, 224],
        dataset="mvtec", data_path=str(root / folder), obj=name, figures=False, fresh=True,
        output_dir=f"runs/study_rows/{name}-{model}-{net.rpartition(':')[2]}-{rows}-{seed}", **own,
    )  # fmt: skip
    metrics = system.train(options).metrics
    return {"category": name, "model": model, "net": net, "rows": rows, "seed": seed} | {
        name: metrics[name] for name in METRICS
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

    root = Path(os.environ.get("ANOMALY_LIB_DATA", ""))
    if not (root / "weights").is_dir():
        raise UserError("set ANOMALY_LIB_DATA to a folder with weights/ and the categories")
    kinds = [("resnet18", "raw")] + [("timm:vit_tiny_patch16_224", rows) for rows in ("raw", "unit", "layernorm")]
    rows = [
        one_run(root, category, model, net, kind, seed, args)
        for category in args.categories
        for model in ("patchcore", "padim")
        for net, kind in kinds
        for seed in args.seeds
    ]
    text = table(rows)
    facts = machine_facts()
    write_json(Path(args.output), {"rows": rows, "machine": facts})
    print(text)
    if args.write_docs:
        note = f"image AUROC / pixel AUROC / AUPRO in per cent, blocks {' '.join(args.blocks)}, 224 pixels, commit "
        write_between(ROOT / "docs" / "manual" / "detectors_family.md", MARKS, f"{text}\n\n{note}{facts['git_commit']}")


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, run, argv, prog="study_rows.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
