"""What each option of PromptAD beyond the original is worth, on real data and on the built-in demo data.

    ANOMALY_LIB_DATA=DIR python scripts/promptad/study_options.py --write-docs

DIR holds FOLDER/CATEGORY in MVTec's layout and weights/vit_tiny*.pth; without it only the demo half is measured. The
contexts of a class and task are trained once, because most of these options are no part of the loss. Rows already in
--results are kept if they were measured with the same settings and weights.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.data.names import DEMO_CATEGORIES
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_between, write_json
from anomaly_lib.systems.promptad.options import ALL
from anomaly_lib.systems.promptad.options import Args as PromptADArgs
from anomaly_lib.systems.registry import SYSTEMS

ROOT = Path(__file__).resolve().parents[2]
MARKS = ("<!-- options:begin -->", "<!-- options:end -->")
VIT = {"visual_backbone": "timm:vit_tiny_patch16_224"}
MULTI = "one model of all classes (`--obj all`)"
EXP = "`--logit-scale exp`"  # part of the loss: trained by itself
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "`--fusion-mode max`": {"fusion_mode": "max"},
    "`--calibration z-score`": {"calibration": "z-score"},
    "`--calibration quantile`": {"calibration": "quantile"},
    "`--memory-views flips`": {"memory_views": "flips"},
    "`--memory-views all`": {"memory_views": "all"},
    "ViT-Tiny": VIT,
    "ViT-Tiny, `--memory-views all`": {**VIT, "memory_views": "all"},
    "ViT-Tiny, `--calibration z-score`": {**VIT, "calibration": "z-score"},
}
SHOWN = {
    "cls": ("image_auroc", "textual_auroc", "visual_auroc"),
    "seg": ("image_auroc", "pixel_auroc", "pixel_aupro"),
}


@dataclass
class Args(Options):
    """Study of PromptAD's options."""

    output_dir: str = arg("runs/promptad/study_options", "runs of the study and the data they read", aliases=["output"])
    halves: list[str] = arg(["real", "demo"], "which data", choices=["real", "demo"])
    categories: list[str] = arg(["mvtec_ad/bottle", "battery_weld/weld"], "FOLDER/CATEGORY of the real half")
    classes: list[str] = arg(list(DEMO_CATEGORIES), "classes of the demo half")
    tasks: list[str] = arg(["cls", "seg"], "cls, seg or both", choices=["cls", "seg"])
    shot: int = arg(4, "support images (k)", at_least=1)
    epochs: int = arg(100, "epochs of every training", at_least=0)
    seed: int = arg(111, "seed of draws and contexts", at_least=0)
    resolution: int = arg(200, "side of maps and masks; they are smoothed by a hundredth of it", at_least=8)
    backbone: str = arg("demo-clip", "CLIP of the textual branch")
    image_size: list[int] = arg([], "height and width of its input, or one number; empty = its own", type=int)
    results: str = arg("benchmarks/results/promptad_options.json", "JSON file; its rows are kept and added to")
    write_docs: Switch = arg(False, "put the tables into docs/manual/promptad.md")


def data_folders(args: Args) -> Iterator[tuple[str, Path, list[str]]]:
    """(half, folder in MVTec's layout, its classes): real categories are linked side by side, demo data are written."""
    from anomaly_lib.data.demo.items import write_demo

    here = Path(args.output_dir) / "data"
    root = os.environ.get("ANOMALY_LIB_DATA")
    if "real" in args.halves and root:
        sources = [Path(root) / category for category in args.categories]
        (here / "real").mkdir(parents=True, exist_ok=True)
        for source in sources:
            if not source.is_dir():
                raise UserError(f"categories={source.parent.name}/{source.name}: not below $ANOMALY_LIB_DATA")
            link = here / "real" / source.name
            if not link.exists():
                link.symlink_to(source.resolve(), target_is_directory=True)
        yield "real", here / "real", [source.name for source in sources]
    if "demo" in args.halves:
        if not (here / "demo").is_dir():
            write_demo(here / "demo.part", categories=args.classes)
            (here / "demo.part").rename(here / "demo")
        yield "demo", here / "demo", list(args.classes)


def options(args: Args, folder: Path, task: str, obj: str) -> PromptADArgs:
    """Options of the training behind all rows of a class and task."""
    return PromptADArgs(
        dataset="mvtec", data_path=str(folder), obj=obj, task=task, shot=args.shot, shots="seed", epochs=args.epochs,
        seed=args.seed, resolution=args.resolution, backbone=args.backbone, image_size=args.image_size,
        weights="random" if args.backbone == "tiny-clip" else None,
        figures=False, save_every=max(1, args.epochs), fresh=True,
        output_dir=str(Path(args.output_dir) / folder.name / f"{obj}-{task}"),
        cache_dir=str(Path(args.output_dir) / "cache"), **({"sigma": args.resolution / 100} if task == "seg" else {}),
    )  # fmt: skip


def variants() -> dict[str, dict[str, Any]]:
    """The options that can be measured here: those with ViT-Tiny need its weights."""
    found = sorted((Path(os.environ.get("ANOMALY_LIB_DATA", "")) / "weights").glob("vit_tiny*.pth"))
    known = {"visual_weights": str(found[0])} if found else {}
    return {name: {**change, **known} if VIT.items() <= change.items() else change for name, change in VARIANTS.items()
            if known or not VIT.items() <= change.items()}  # fmt: skip


def trained_checkpoint(args: PromptADArgs) -> Path:
    """Where the training of these options has left its contexts."""
    checkpoint = SYSTEMS["promptad"].train(args).checkpoint
    assert checkpoint is not None
    return checkpoint


def rescored(trained: PromptADArgs, checkpoint: Path, change: dict[str, Any]) -> dict[str, float]:
    """Test figures of the contexts in ``checkpoint`` under other options of memory and scoring."""
    import torch

    from anomaly_lib.detect.scores import summary
    from anomaly_lib.systems.promptad.data import open_task
    from anomaly_lib.systems.promptad.features import Towers
    from anomaly_lib.systems.promptad.train import build, detector_of

    args = replace(trained, **change)
    data = open_task(args)
    experiment = build(args, data, Towers(args, torch.device("cpu")))
    saved = SYSTEMS.read(checkpoint)["model"]
    contexts = {name.removeprefix("learner."): v for name, v in saved.items() if name.startswith("learner.")}
    experiment.model.learner.load_state_dict(contexts)
    detector = detector_of(experiment)
    return summary(detector.score(detector.selection(data.test)), detector.decision)


def scored_alone(checkpoint: Path, name: str) -> dict[str, float]:
    """Test figures of one class by the model of all classes in ``checkpoint``."""
    from anomaly_lib.detect.scores import summary

    detector = SYSTEMS.load(checkpoint, device="cpu")
    return summary(detector.score(detector.items(Choice(obj=name))), detector.decision)


def settings_of(args: Args) -> dict[str, Any]:
    """What rows must agree in to stand in one table."""
    from anomaly_lib.backbones.clip import DEMO, DEMO_FILE
    from anomaly_lib.backbones.weights import file_sha256

    return {
        "k": args.shot, "epochs": args.epochs, "seed": args.seed, "resolution": args.resolution,
        "backbone": args.backbone, "image_size": args.image_size,
        "weights": file_sha256(DEMO_FILE.with_suffix(".safetensors")) if args.backbone == DEMO else "",
    }  # fmt: skip


def study(args: Args) -> int:
    """Fill the table row by row."""
    from anomaly_lib.engine.log import Log
    from anomaly_lib.engine.run import machine_facts

    log, path, settings = Log(), Path(args.results), settings_of(args)
    record = read_json(path) if path.is_file() else {}
    rows: dict[str, dict[str, float]] = record["rows"] if record.get("settings") == settings else {}

    def keep(key: str, metrics: dict[str, float]) -> None:
        rows[key] = {name: round(value, 5) for name, value in metrics.items()}
        log.line(f"{key}: " + ", ".join(f"{name} {rows[key][name]:.3f}" for name in SHOWN[key.split("|")[2]]))
        write_json(path, {"settings": settings, "machine": machine_facts(), "rows": rows})

    for half, folder, classes in data_folders(args):
        for task in args.tasks:
            for name in classes:
                trained = options(args, folder, task, name)
                if f"{half}|{name}|{task}|{EXP}" not in rows:
                    other = replace(trained, logit_scale="exp", output_dir=f"{trained.output_dir}-exp")
                    keep(f"{half}|{name}|{task}|{EXP}", SYSTEMS["promptad"].train(other).metrics)
                wanted = {variant: change for variant, change in variants().items()
                          if f"{half}|{name}|{task}|{variant}" not in rows}  # fmt: skip
                checkpoint = trained_checkpoint(trained) if wanted else Path()
                for variant, change in wanted.items():
                    keep(f"{half}|{name}|{task}|{variant}", rescored(trained, checkpoint, change))
            missing = [name for name in classes if f"{half}|{name}|{task}|{MULTI}" not in rows]
            checkpoint = trained_checkpoint(options(args, folder, task, ALL)) if missing else Path()
            for name in missing:
                keep(f"{half}|{name}|{task}|{MULTI}", scored_alone(checkpoint, name))
    tables = "\n\n".join(table_of(rows, half) for half in args.halves if any(key.startswith(half) for key in rows))
    log.line(tables)
    if args.write_docs:
        write_between(ROOT / "docs" / "notebook" / "promptad_options.md", MARKS, tables)
    return 0


def table_of(rows: dict[str, dict[str, float]], half: str) -> str:
    """A Markdown table: the real half class by class, the demo half as means over its classes."""
    keys = [key.split("|") for key in rows if key.startswith(f"{half}|")]
    classes = list(dict.fromkeys(key[1] for key in keys))
    groups = {name: [name] for name in classes} if half == "real" else {f"demo, mean of {len(classes)}": classes}
    columns = [f"{task} {metric.replace('_', ' ')}" for task, metrics in SHOWN.items() for metric in metrics]
    lines: list[dict[str, Cell]] = []
    for group, names in groups.items():
        for variant in [name for name in (*VARIANTS, EXP, MULTI) if any(key[3] == name for key in keys)]:
            line: dict[str, Cell] = {"data": group, "options": variant}
            for task, metrics in SHOWN.items():
                for metric in metrics:
                    found = [rows[f"{half}|{name}|{task}|{variant}"].get(metric) for name in names
                             if f"{half}|{name}|{task}|{variant}" in rows]  # fmt: skip
                    values = [value for value in found if value is not None]
                    complete = len(values) == len(names)
                    shown = f"{100 * sum(values) / len(values):.1f}" if values and complete else ""
                    line[f"{task} {metric.replace('_', ' ')}"] = shown
            lines.append(line)
    return Table(["data", "options", *columns], lines).markdown().strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, leave with an exit code."""
    return command(Args, study, argv, prog="study_options.py", description="PromptAD's options beyond the original")


if __name__ == "__main__":
    sys.exit(main())
