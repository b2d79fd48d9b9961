"""Commands that look around or write files to begin with: list, info, check, demo, cache, new-detector."""

import importlib
import platform
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from anomaly_lib.command_line import PROGRAM, as_word
from anomaly_lib.config import Options, arg, override
from anomaly_lib.options import CacheArgs
from anomaly_lib.systems.registry import SYSTEMS

PICTURES = "anomaly_lib.data.demo.items:write_demo"
# Who writes the built-in data of which system, and the command that trains on them.
DEMO_WRITERS = {
    "promptad": (PICTURES, "train promptad-cls --dataset mvtec --backbone demo-clip --data-path"),
    "sowa": (PICTURES, "train sowa --dataset mvtec --backbone demo-clip --data-path"),
    "detectors": (PICTURES, "fit --backbone demo-clip --obj capsule"),
    "weld": ("anomaly_lib.systems.weld.data.demo:write_weld_demo", "train causal-film --data-path"),
    "crystal": ("anomaly_lib.systems.crystal.data.demo:write_crystal_demo", "train crystal --data-path"),
    "hdmap": ("anomaly_lib.systems.detectors.hdmap.demo_maps:write_hdmap_demo", "train hdmap --data-path"),
}


@dataclass
class ListArgs(Options):
    """What there is to choose from."""


@dataclass
class InfoArgs(Options):
    """Versions and devices, to paste into an issue."""


@dataclass
class CheckArgs(Options):
    """A run of seconds over every system present."""

    system: str = arg("all", "one system, or all", choices=["all", *SYSTEMS])


@dataclass
class DemoArgs(Options):
    """Built-in data as real files."""

    output: str = arg("demo_data", "folder to write")
    system: str = arg("detectors", "whose data", choices=list(DEMO_WRITERS))
    seed: int = arg(0, "seed of every random number", at_least=0)


@dataclass
class NewDetectorArgs(Options):
    """Files of a detector of your own, which runs as it is written."""

    name: str = arg("my_detector", "its name: lower-case letters, digits and _")
    output: str = arg(".", "folder to write into")


@dataclass
class CacheInfoArgs(Options):
    """The feature cache."""

    action: str = arg("info", "info = what it holds, clear = delete it", choices=["info", "clear"])
    cache_dir: Optional[str] = override(CacheArgs, "cache_dir")


def show_list(_: ListArgs) -> None:
    from anomaly_lib.backbones import list_backbones
    from anomaly_lib.data.names import DATASET_NAMES
    from anomaly_lib.fusion.names import FUSION_NAMES
    from anomaly_lib.models.detectors.registry import names as detector_names

    rows: dict[str, Iterable[str]] = {
        "systems": SYSTEMS,
        f"detectors ({PROGRAM} fit FOLDER --model NAME)": detector_names(),
        "data sets": DATASET_NAMES,
        "backbones": list_backbones(),
        "score fusions": FUSION_NAMES,
    }
    for title, names in rows.items():
        print(f"{title}: {', '.join(sorted(names))}")


def show_info(_: InfoArgs) -> None:
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from anomaly_lib import __version__

    print(f"anomaly_lib {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "numpy", "scikit-learn"):
        try:
            print(f"  {package} {version(package)}")
        except PackageNotFoundError:
            print(f"  {package} is missing")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"  devices: cpu ({torch.get_num_threads()} threads){''.join(f', {name}' for name in gpus)}")


def check(args: CheckArgs) -> int:
    """Train every system's tiny() configuration and read its checkpoint back; the exit code counts."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="anomaly_lib_check_") as folder:
        for name in sorted(SYSTEMS) if args.system == "all" else [args.system]:
            started = time.monotonic()
            try:
                result = SYSTEMS[name].train(SYSTEMS[name].tiny(output_dir=str(Path(folder) / name)))
                assert result.checkpoint is not None
                SYSTEMS.load(result.checkpoint)
            except Exception as error:  # noqa: BLE001  (one broken system must not hide the others)
                failed += 1
                print(f"{name:>14}: FAILED ({type(error).__name__}: {error})")
                continue
            figures = ", ".join(f"{metric} {value:.3f}" for metric, value in list(result.metrics.items())[:3])
            print(f"{name:>14}: ok in {time.monotonic() - started:.1f} s ({figures})")
    return 1 if failed else 0


def write_demo_files(args: DemoArgs) -> None:
    """The built-in data of one system, in the real layout."""
    place, then = DEMO_WRITERS[args.system]
    module, _, function = place.partition(":")
    folder = Path(args.output)
    getattr(importlib.import_module(module), function)(folder, seed=args.seed)
    count = sum(1 for path in folder.rglob("*") if path.is_file())
    print(f"wrote {count} files to {folder}")
    print(f"next: {PROGRAM} {then} {as_word(folder)}")


def new_detector(args: NewDetectorArgs) -> None:
    from anomaly_lib.systems.detectors.new import write_detector

    for path in write_detector(args.name, Path(args.output)):
        print(path)
    plugin = Path(args.output) / "detectors" / f"{args.name}.py"
    print(f"next: {PROGRAM} train detector --plugin {as_word(plugin)} --model {args.name}")


def cache(args: CacheInfoArgs) -> None:
    from anomaly_lib.features import clear_store, default_cache_dir, store_info

    root = Path(args.cache_dir) if args.cache_dir else default_cache_dir()
    if args.action == "clear":
        print(f"{root}: deleted {clear_store(root) / 2**20:.1f} MiB")
        return
    stores = store_info(root)
    print("\n".join(map(str, stores)) or f"{root}: nothing cached")
