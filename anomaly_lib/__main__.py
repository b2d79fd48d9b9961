"""python -m anomaly_lib list | info | check | demo DIR | cache info|clear | predict ...: look around, never train."""

import importlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from anomaly_lib.config import Options, arg, command, override
from anomaly_lib.options import CacheArgs


@dataclass
class ListArgs(Options):
    """What there is to choose from."""


@dataclass
class InfoArgs(Options):
    """Versions and devices, to paste into an issue."""


@dataclass
class CheckArgs(Options):
    """A run of seconds over every system present."""

    system: str = arg("all", "one system, or all")


@dataclass
class DemoArgs(Options):
    """Built-in data as real files."""

    output: str = arg("demo_data", "folder to write")
    system: str = arg("promptad", "whose data layout", choices=["promptad", "weld", "crystal", "hdmap"])
    seed: int = arg(0, "seed of every random number", at_least=0)


@dataclass
class CacheInfoArgs(Options):
    """The feature cache."""

    action: str = arg("info", "info = what it holds, clear = delete it", choices=["info", "clear"])
    cache_dir: Optional[str] = override(CacheArgs, "cache_dir")


def show_list(_: ListArgs) -> None:
    from anomaly_lib.backbones import list_backbones
    from anomaly_lib.data import DATASETS
    from anomaly_lib.fusion import FUSIONS
    from anomaly_lib.systems.registry import RECIPES

    rows: dict[str, Iterable[str]] = {
        "systems": RECIPES,
        "data sets": DATASETS,
        "backbones": list_backbones(),
        "score fusions": FUSIONS,
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
    """Train every recipe's tiny() configuration and read its checkpoint back; the exit code counts."""

    from anomaly_lib.systems.registry import RECIPES, load_detector, recipe_of

    systems = sorted(set(RECIPES)) if args.system == "all" else [args.system]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="anomaly_lib_check_") as folder:
        for system in systems:
            started = time.monotonic()
            recipe = recipe_of(system)
            try:
                tiny = replace(recipe.tiny(), output_dir=str(Path(folder) / system))
                result = recipe.train(tiny)
                load_detector(result.checkpoint)
            except Exception as error:  # noqa: BLE001  (one broken system must not hide the others)
                failed += 1
                print(f"{system:>14}: FAILED ({type(error).__name__}: {error})")
                continue
            figures = ", ".join(f"{name} {value:.3f}" for name, value in list(result.metrics.items())[:3])
            print(f"{system:>14}: ok in {time.monotonic() - started:.1f} s ({figures})")
    return 1 if failed else 0


# Who writes the built-in data of which system: (module, function).
DEMO_WRITERS = {
    "promptad": ("data.demo.items", "write_demo"),
    "weld": ("systems.weld.data.demo", "write_weld_demo"),
    "crystal": ("systems.crystal.data.demo", "write_crystal_demo"),
    "hdmap": ("systems.detectors.hdmap.demo_maps", "write_hdmap_demo"),
}


def write_demo_files(args: DemoArgs) -> None:
    """The built-in data of one system, in the real layout."""
    module, function = DEMO_WRITERS[args.system]
    folder = Path(args.output)
    getattr(importlib.import_module(f"anomaly_lib.{module}"), function)(folder, seed=args.seed)
    count = sum(1 for path in folder.rglob("*") if path.is_file())
    print(f"wrote {count} files to {folder}")


def cache(args: CacheInfoArgs) -> None:
    from anomaly_lib.features import clear_store, default_cache_dir, store_info

    root = Path(args.cache_dir) if args.cache_dir else default_cache_dir()
    if args.action == "clear":
        print(f"{root}: deleted {clear_store(root) / 2**20:.1f} MiB")
        return
    stores = store_info(root)
    print("\n".join(map(str, stores)) or f"{root}: nothing cached")


def predict(argv: list[str]) -> int:
    from anomaly_lib.evaluation.predict import main as predict_main

    return predict_main(argv)


COMMANDS: dict[str, tuple[Any, Callable[[Any], object]]] = {
    "list": (ListArgs, show_list),
    "info": (InfoArgs, show_info),
    "check": (CheckArgs, check),
    "demo": (DemoArgs, write_demo_files),
    "cache": (CacheInfoArgs, cache),
}
# `demo DIR` and `cache clear` read well without a flag: the first bare word fills this option.
FIRST_WORD = {"demo": "--output", "cache": "--action", "check": "--system"}


def main(argv: list[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(f"{__doc__}\nEach takes --help.")
        return 0 if words else 2
    name, rest = words[0], words[1:]
    if name == "predict":
        return predict(rest)
    if name not in COMMANDS:
        sys.stderr.write(
            f"python -m anomaly_lib: unknown command {name!r}; there are {', '.join([*COMMANDS, 'predict'])}\n"
        )
        return 2
    if rest and not rest[0].startswith("-") and name in FIRST_WORD:
        rest = [FIRST_WORD[name], *rest]
    cls, body = COMMANDS[name]
    return command(cls, body, rest, prog=f"python -m anomaly_lib {name}", description=(cls.__doc__ or ""))


if __name__ == "__main__":
    sys.exit(main())
