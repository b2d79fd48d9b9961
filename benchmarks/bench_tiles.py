"""Large boards in tiles and resized: AUROC, peak memory and time, each run a process of its own.

    python benchmarks/bench_tiles.py [--models patchcore promptad-cls sowa] [--output benchmarks/results/tiles.json]

A board is a panel of 4 x 4 drawn circuit boards, 2048 pixels wide; on an anomalous one a single board has a defect.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from harness import BenchmarkArgs, finish, machine
from PIL import Image

from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.data.demo.items import CATEGORIES, render
from anomaly_lib.files import write_between
from anomaly_lib.systems.registry import SYSTEMS

MARKS = ("<!-- bench_tiles begins -->", "<!-- bench_tiles ends -->")
SIDE = 4  # boards of a panel
SYSTEM = {
    "patchcore": "detectors",
    "fewshot": "detectors",
    "promptad-cls": "promptad",
    "promptad-seg": "promptad",
    "sowa": "sowa",
}
OTHERS = ["grid", "capsule"]  # SOWA's adapters learn from other classes, which have masks; of the panels it remembers


@dataclass
class Args(BenchmarkArgs):
    """Large boards."""

    models: list[str] = arg(["patchcore", "promptad-cls", "sowa"], "which detectors", choices=list(SYSTEM))
    size: int = arg(2048, "width of a panel in pixels", at_least=64)
    train: int = arg(4, "normal panels to learn from", at_least=2)
    test: int = arg(6, "normal and as many anomalous panels to be scored", at_least=1)
    image_size: int = arg(512, "of the tiled runs", at_least=64)
    tile: int = arg(128, "side of a tile", at_least=32)
    resized: int = arg(128, "of the other runs", at_least=32)
    coreset_size: Optional[int] = arg(
        None, "rows of PatchCore's memory; None = its own share of all", type=int, at_least=1
    )
    page: Optional[str] = arg(None, "page whose table is renewed", type=str)
    run: Optional[str] = arg(None, "one run as JSON; the program starts itself with it", type=str)


def draw_panels(folder: Path, args: Args) -> None:
    """Panels in MVTec's layout: train/good, test/good, test/defect with masks."""
    size, rng = args.size // SIDE, np.random.default_rng(0)
    good = {split: render("circuit_board", "good", 24, split=split, size=size)[0] for split in ("train", "test")}
    kinds = list(CATEGORIES["circuit_board"].defects)
    bad = [render("circuit_board", kinds[i % len(kinds)], i // len(kinds) + 1, size=size) for i in range(args.test)]
    for split, label, count in (("train", "good", args.train), ("test", "good", args.test), ("test", "bad", args.test)):
        for number in range(count):
            boards = [good[split][i] for i in rng.choice(24, SIDE * SIDE, replace=False)]
            masks = np.zeros((SIDE * SIDE, size, size), dtype=bool)
            if label == "bad":
                place = int(rng.integers(SIDE * SIDE))
                boards[place], masks[place] = bad[number][0][-1], bad[number][1][-1]
                truth = folder / "panel" / "ground_truth" / label / f"{number:03d}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(panel(masks[..., None])[..., 0].astype(np.uint8) * 255).save(truth)
            path = folder / "panel" / split / label / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(panel(np.stack(boards))).save(path, compress_level=1)


def panel(boards: np.ndarray) -> np.ndarray:
    """[16, h, w, C] -> [4 h, 4 w, C]."""
    count, height, width, channels = boards.shape
    rows = boards.reshape(SIDE, count // SIDE, height, width, channels)
    return np.ascontiguousarray(rows.transpose(0, 2, 1, 3, 4).reshape(SIDE * height, SIDE * width, channels))


def one_run(options: dict[str, Any]) -> dict[str, float]:
    """Train, score the test panels, and tell what it took."""
    model = options.pop("name")
    if SYSTEM[model] == "promptad":
        options |= {"task": model.rpartition("-")[2], "epochs": 10, "shot": 2}
    elif model == "sowa":
        panels = {"eval_dataset": options.pop("dataset"), "eval_data_path": options.pop("data_path")}
        options |= {"dataset": "demo", "train_classes": OTHERS, **panels, "epochs": 2, "select": "last", "shot": 2}
    else:
        options["model"] = model
    before, core = time.perf_counter(), time.process_time()
    result = SYSTEMS[SYSTEM[model]].train(SYSTEMS[SYSTEM[model]].Args(**options))
    return {
        "image_auroc": result.metrics["image_auroc"],
        "pixel_auroc": result.metrics.get("pixel_auroc", float("nan")),
        "seconds": time.perf_counter() - before,
        "core_seconds": time.process_time() - core,
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
    """Most memory that this process has held; what getrusage tells is inherited from the one that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def bench(args: Args) -> None:
    """Draw, run each, print, write."""
    if args.run is not None:
        print(json.dumps(one_run(json.loads(args.run))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        draw_panels(Path(name) / "data", args)
        shared = {"dataset": "mvtec", "data_path": f"{name}/data", "backbone": "demo-clip"}
        tiled = {"image_size": [args.image_size], "tile": args.tile}
        for model in args.models:
            for kind, how in (("resized", {"image_size": [args.resized]}), ("tiled", tiled)):
                more = {"name": model, "output_dir": f"{name}/{model}-{kind}", "figures": False}
                more |= {"cache": "disk", "cache_dir": f"{name}/{model}-{kind}-cache"}  # a board of tiles is 150 MB
                if model == "patchcore" and args.coreset_size is not None:
                    more["coreset_size"] = args.coreset_size
                words = [sys.executable, __file__, "--run", json.dumps(shared | how | more)]
                done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
                if done.returncode:
                    raise RuntimeError(done.stderr[-2000:])
                rows.append({"detector": model, "kind": kind, **how, **json.loads(done.stdout.splitlines()[-1])})
                print(json.dumps(rows[-1]), flush=True)
    options = {name: getattr(args, name) for name in ("size", "train", "test")}
    report = {"machine": machine(), **options, "rows": rows, "load": os.getloadavg()[0]}
    if args.page is not None:
        write_between(Path(args.page), MARKS, table(report))
    finish(report, args.output)


def table(report: dict[str, Any]) -> str:
    """The page's table."""
    lines = [
        "| detector | seen as | image AUROC | pixel AUROC | peak memory | core seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        size = row["image_size"][0]
        seen = f"{size} px, tiles of {row['tile']}" if "tile" in row else f"{size} px"
        lines.append(
            f"| {row['detector']} | {seen} | {100 * row['image_auroc']:.1f} | {100 * row['pixel_auroc']:.1f} | "
            f"{row['peak_mib']:.0f} MiB | {row['core_seconds']:.0f} |"
        )
    commits = dict.fromkeys(row.get("commit", report["machine"]["commit"]) for row in report["rows"])
    note = (
        f"{report['train']} panels of {report['size']} px to learn from (PromptAD and SOWA two of them; SOWA's "
        f"adapters learn from {' and '.join(OTHERS)} of the built-in data), {report['test']} "
        f"normal and {report['test']} anomalous ones to score, the packaged demo CLIP, one thread, training and "
        f"scoring together. `python benchmarks/bench_tiles.py`, commit {' and '.join(commits)}."
    )
    return "\n".join([*lines, "", note])


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_tiles.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
