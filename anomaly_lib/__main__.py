"""python -m anomaly_lib list | info | check | demo DIR | cache | new-detector NAME | evaluate FILE | predict IMAGES |
    calibrate FILE | export FILE

Looks around and uses trained detectors; training is train_*.py and scripts/.
"""

import importlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from anomaly_lib.bare_words import name_bare_words, split_bare_words
from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg, override
from anomaly_lib.evaluation.options import CalibrateArgs, EvaluateArgs, ExportArgs, PredictArgs
from anomaly_lib.options import CacheArgs
from anomaly_lib.systems.registry import SYSTEMS

PICTURES = "anomaly_lib.data.demo.items:write_demo"
# Who writes the built-in data of which system.
DEMO_WRITERS = {
    "promptad": PICTURES,
    "sowa": PICTURES,
    "detectors": PICTURES,
    "weld": "anomaly_lib.systems.weld.data.demo:write_weld_demo",
    "crystal": "anomaly_lib.systems.crystal.data.demo:write_crystal_demo",
    "hdmap": "anomaly_lib.systems.detectors.hdmap.demo_maps:write_hdmap_demo",
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
    system: str = arg("promptad", "whose data", choices=list(DEMO_WRITERS))
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
        "detectors (train_detector.py --model)": detector_names(),
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
    module, _, function = DEMO_WRITERS[args.system].partition(":")
    folder = Path(args.output)
    getattr(importlib.import_module(module), function)(folder, seed=args.seed)
    count = sum(1 for path in folder.rglob("*") if path.is_file())
    print(f"wrote {count} files to {folder}")


def new_detector(args: NewDetectorArgs) -> None:
    from anomaly_lib.systems.detectors.new import write_detector

    for path in write_detector(args.name, Path(args.output)):
        print(path)
    plugin = Path(args.output) / "detectors" / f"{args.name}.py"
    print(f"next: python scripts/train_detector.py --plugin {plugin} --model {args.name}")


def cache(args: CacheInfoArgs) -> None:
    from anomaly_lib.features import clear_store, default_cache_dir, store_info

    root = Path(args.cache_dir) if args.cache_dir else default_cache_dir()
    if args.action == "clear":
        print(f"{root}: deleted {clear_store(root) / 2**20:.1f} MiB")
        return
    stores = store_info(root)
    print("\n".join(map(str, stores)) or f"{root}: nothing cached")


def run_evaluation(args: EvaluateArgs) -> int:
    from anomaly_lib.evaluation.evaluate import evaluate

    return evaluate(args, SYSTEMS, print)


def run_prediction(args: PredictArgs) -> int:
    from anomaly_lib.evaluation.predict import predict_stream

    return predict_stream(args, SYSTEMS, print)


def run_calibration(args: CalibrateArgs) -> int:
    from anomaly_lib.evaluation.calibrate import calibrate

    return calibrate(args, SYSTEMS, print)


def run_export(args: ExportArgs) -> int:
    from anomaly_lib.evaluation.export import export

    return export(args, SYSTEMS, print)


COMMANDS: dict[str, tuple[type[Options], Callable[[Any], object], Sequence[str]]] = {
    "list": (ListArgs, show_list, ()),
    "info": (InfoArgs, show_info, ()),
    "check": (CheckArgs, check, ["system"]),
    "demo": (DemoArgs, write_demo_files, ["output"]),
    "cache": (CacheInfoArgs, cache, ["action"]),
    "new-detector": (NewDetectorArgs, new_detector, ["name"]),
    "evaluate": (EvaluateArgs, run_evaluation, ["checkpoint"]),
    "predict": (PredictArgs, run_prediction, ["input"]),
    "calibrate": (CalibrateArgs, run_calibration, ["checkpoint"]),
    "export": (ExportArgs, run_export, ["checkpoint"]),
}
"""Command -> its options, its body, and the options that words without a name fill."""


def main(argv: list[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(f"{__doc__}\nEach takes --help.")
        return 0 if words else 2
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        sys.stderr.write(f"python -m anomaly_lib: unknown command {name!r}; there are {', '.join(COMMANDS)}\n")
        return 2
    cls, body, bare = COMMANDS[name]
    if name == "predict":  # any number of images, whose names may hold blanks and commas
        rest, images = split_bare_words(rest, PredictArgs, values_of="input")
        body = lambda args: run_prediction(replace(args, input=images))  # noqa: E731
    else:
        rest = name_bare_words(rest, cls, bare)
    return command(cls, body, rest, prog=f"python -m anomaly_lib {name}", description=cls.__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
