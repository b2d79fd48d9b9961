"""PatchCore and PaDiM with real ResNet-18 weights on real categories, beside anomalib's own modules when installed.

    ANOMALY_LIB_DATA=DIR python scripts/check_real_detectors.py --coreset-ratio 0.01 --seeds 0 1 2
    ANOMALY_LIB_DATA=DIR python scripts/check_real_detectors.py --models patchcore --coreset-ratio 0.1 --write-docs

DIR holds FOLDER/CATEGORY in MVTec's layout and weights/resnet18*.pth. Both libraries see the same images, weights,
sizes and metrics. Each draws its own channels (PaDiM) or coreset (PatchCore); a third run, `same_draws`, is our
detector with anomalib's draw and upsampling, so that what is left between the two is arithmetic; for PatchCore a fourth
has anomalib's draw and our bilinear resize of the map. Rows already in --output are kept.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, Switch, arg, default_of, override
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.files import read_json, write_between, write_json
from anomaly_lib.systems.detectors.options import Args as DetectorArgs
from anomaly_lib.systems.detectors.options import published

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts import each other from the repository root

from scripts.pages.beside_peer import key, table

ROOT = Path(__file__).resolve().parents[1]
MARKS = ("<!-- real-data:begin -->", "<!-- real-data:end -->")


@dataclass
class Args(Options):
    """Real-data check of PatchCore and PaDiM."""

    output: str = arg("benchmarks/results/real_detectors.json", "JSON file; its rows are kept and added to")
    categories: list[str] = arg(["mvtec_ad/bottle", "mtd/magnetic_tile", "battery_weld/weld"], "FOLDER/CATEGORY")
    models: list[str] = arg(["patchcore", "padim"], "which detectors", choices=["patchcore", "padim"])
    image_size: list[int] = override(DetectorArgs, "image_size", [224])
    coreset_ratio: float = arg(0.1, "share of patches that PatchCore keeps", at_least=0, at_most=1)
    seeds: list[int] = arg([0], "seeds of the draws")
    peer: Switch = arg(True, "also run anomalib's modules when they can be imported")
    write_docs: Switch = arg(False, "put the table into docs/manual/hdmap.md")

    def check(self) -> None:
        if "patchcore" not in self.models and self.coreset_ratio != default_of(
            self.__dataclass_fields__["coreset_ratio"]
        ):
            raise OptionError(f"coreset_ratio={self.coreset_ratio}: has no effect without models=patchcore")


def options(model: str, category: str, args: Args, seed: int) -> DetectorArgs:
    root = Path(os.environ.get("ANOMALY_LIB_DATA", ""))
    found = sorted((root / "weights").glob("resnet18*.pth"))
    if not found:
        raise UserError("set ANOMALY_LIB_DATA to a folder with weights/resnet18*.pth and mvtec_ad/bottle")
    folder, _, name = category.partition("/")
    own = {"coreset_ratio": args.coreset_ratio} if model == "patchcore" else {}
    return DetectorArgs(
        model=model,
        dataset="mvtec",
        data_path=str(root / folder),
        obj=name,
        backbone="resnet18",
        weights=str(found[0]),
        layers=published(model)["layers"],
        image_size=args.image_size,
        seed=seed,
        **own,
    )


def run(args: Args) -> None:
    from anomaly_lib.engine.run import machine_facts
    from scripts.pages.real_category import Category, check

    peer = args.peer and find_spec("anomalib") is not None
    if args.peer and not peer:
        print("peer=True has no meaning here: anomalib is not installed")
    path = Path(args.output)
    rows = read_json(path)["rows"] if path.is_file() else []
    for name in args.categories:
        wanted = [options(model, name, args, seed) for model in args.models for seed in args.seeds]
        data: Category | None = None
        for opts in wanted:
            ratio = opts.coreset_ratio if opts.model == "patchcore" else None
            if any(key(row) == (name, opts.model, ratio, opts.image_size[0], opts.seed) for row in rows):
                continue
            data = data or Category(name, options("padim", name, args, 0))
            begin = time.perf_counter()
            rows.append(check(data, opts, peer))
            print(f"{name} {opts.model} seed {opts.seed}: {time.perf_counter() - begin:.0f} s", flush=True)
            write_json(path, {"rows": rows, "machine": machine_facts()})
    text = table(rows)
    print(text)
    if args.write_docs:
        write_between(ROOT / "docs" / "manual" / "hdmap.md", MARKS, text)


def main(argv: Sequence[str] | None = None) -> int:
    return command(
        Args, run, argv, prog="check_real_detectors.py", description="Real-data check of PatchCore and PaDiM."
    )


if __name__ == "__main__":
    sys.exit(main())
