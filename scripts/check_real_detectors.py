"""Detectors with real ImageNet weights on real categories, beside anomalib's own modules when installed.

    ANOMALY_LIB_DATA=DIR python scripts/check_real_detectors.py --coreset-ratio 0.01 --seeds 0 1 2
    ANOMALY_LIB_DATA=DIR python scripts/check_real_detectors.py --models draem --image-size 64 --width 16 --epochs 12

DIR holds FOLDER/CATEGORY in MVTec's layout, weights/resnet18*.pth and textures_dtd for DRAEM's damage. Both libraries
see the same images, weights, sizes and metrics. Each draws its own channels (PaDiM) or coreset (PatchCore); a third
run, `same_draws`, is our detector with anomalib's draw and upsampling, so that what is left between the two is
arithmetic; for PatchCore a fourth has anomalib's draw and our bilinear resize of the map. Detectors that train do so
for the same epochs in the same order of images, and the last epoch is measured. Rows already in --output are kept.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, Switch, arg, override
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_between, write_json
from anomaly_lib.systems.detectors.options import Args as DetectorArgs
from anomaly_lib.systems.detectors.options import published

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts import each other from the repository root

from scripts.pages.beside_peer import key, table, what

ROOT = Path(__file__).resolve().parents[1]
MARKS = ("<!-- real-data:begin -->", "<!-- real-data:end -->")
TRAINED = ("reverse_distillation", "draem", "draem_sevnet")
DRAEM = TRAINED[1:]


@dataclass
class Args(Options):
    """Real-data check of detectors."""

    output: str = arg("benchmarks/results/real_detectors.json", "JSON file; its rows are kept and added to")
    categories: list[str] = arg(["mvtec_ad/bottle", "mtd/magnetic_tile", "battery_weld/weld"], "FOLDER/CATEGORY")
    models: list[str] = arg(["patchcore", "padim"], "which detectors", choices=["patchcore", "padim", *TRAINED])
    image_size: list[int] = override(DetectorArgs, "image_size", [224])
    coreset_ratio: float = arg(
        0.1, "share of patches that PatchCore keeps", at_least=0, at_most=1, needs={"models": "patchcore"}
    )
    epochs: Optional[int] = arg(
        None, "epochs of training; None = as published", type=int, at_least=1, needs={"models": TRAINED}
    )
    learning_rate: Optional[float] = arg(
        None, "step size of DRAEM's training; None = as published", type=float, needs={"models": DRAEM}
    )
    width: int = arg(
        128, "base width of DRAEM's repair, half of it the segmentation's", at_least=2, needs={"models": DRAEM}
    )
    seeds: list[int] = arg([0], "seeds of the draws")
    peer: Switch = arg(True, "also run anomalib's modules when they can be imported")
    write_docs: Switch = arg(False, "put the table into docs/manual/hdmap.md")


def options(model: str, category: str, args: Args, seed: int) -> DetectorArgs:
    root = Path(os.environ.get("ANOMALY_LIB_DATA", ""))
    found = sorted((root / "weights").glob("resnet18*.pth"))
    if not found:
        raise UserError("set ANOMALY_LIB_DATA to a folder with weights/resnet18*.pth and mvtec_ad/bottle")
    folder, _, name = category.partition("/")
    given: dict[str, Any] = {"coreset_ratio": args.coreset_ratio} if model == "patchcore" else {}
    if model in DRAEM:
        given |= {"repair_width": args.width, "segment_width": args.width // 2, "batch_size": 8}
        given |= {"learning_rate": args.learning_rate} if args.learning_rate else {}
        own: dict[str, Any] = {"textures": str(root / "textures_dtd")}
        if model == "draem_sevnet":  # the published patches, 20 to 80 of 256 pixels
            own = {"patch_width_range": [side * min(args.image_size) // 256 for side in (20, 80)]}
        given |= own
    else:
        given |= {"backbone": "resnet18", "weights": str(found[0]), "layers": published(model)["layers"]}
        given["cache"] = "ram"  # nothing is left behind
    if model in TRAINED:  # every normal image is learnt
        given |= {"calibration_share": 0.0, "figures": False} | ({"epochs": args.epochs} if args.epochs else {})
    return DetectorArgs(
        model=model,
        dataset="mvtec",
        data_path=str(root / folder),
        obj=name,
        image_size=args.image_size,
        seed=seed,
        **given,
    )


def run(args: Args) -> None:
    from anomaly_lib.engine.run import machine_facts
    from scripts.pages.real_category import Category, check
    from scripts.pages.real_training import check_training

    peer = args.peer and find_spec("anomalib") is not None
    if args.peer and not peer:
        print("peer=True has no meaning here: anomalib is not installed")
    path = Path(args.output)
    rows = read_json(path)["rows"] if path.is_file() else []
    for name in args.categories:
        wanted = [options(model, name, args, seed) for model in args.models for seed in args.seeds]
        data: Category | None = None
        for opts in wanted:
            if key(what(name, opts)) in map(key, rows):
                continue
            data = data or Category(name, options("padim", name, args, 0))
            begin = time.perf_counter()
            rows.append((check_training if opts.model in TRAINED else check)(data, opts, peer))
            print(f"{name} {opts.model} seed {opts.seed}: {time.perf_counter() - begin:.0f} s", flush=True)
            write_json(path, {"rows": rows, "machine": machine_facts()})
    text = table(rows)
    print(text)
    if args.write_docs:
        write_between(ROOT / "docs" / "manual" / "hdmap.md", MARKS, text)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, run, argv, prog="check_real_detectors.py", description="Real-data check of detectors.")


if __name__ == "__main__":
    sys.exit(main())
