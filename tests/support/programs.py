"""Every program of the repository, found by looking: its options and its main."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from anomaly_lib import __main__ as commands
from anomaly_lib import command_line
from anomaly_lib.commands.table import COMMANDS
from anomaly_lib.commands.training import TRAINERS
from anomaly_lib.config import Options

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "python -m anomaly_lib "


@dataclass(frozen=True)
class Program:
    """What a user starts."""

    name: str  # a path below the repository, or ``python -m anomaly_lib COMMAND``
    Args: type[Options]
    main: Callable[[list[str]], int]


def paths_of_programs() -> list[str]:
    """Every Python file of the repository, outside the package, that can be started."""
    found = [*ROOT.glob("train_*.py"), ROOT / "evaluate.py", *(ROOT / "scripts").rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in found if "__main__" in path.read_text(encoding="utf-8"))


def load_script(path: str) -> ModuleType:
    """A script as a module, with its own folder importable as when it is started."""
    sys.path.insert(0, str((ROOT / path).parent))
    try:
        spec = importlib.util.spec_from_file_location(
            f"program_{path.replace('/', '_').replace('.', '_')}", ROOT / path
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str((ROOT / path).parent))
    return module


def args_class_of(main: Callable[[list[str]], int]) -> type[Options]:
    """The class of options that `main` parses."""
    seen: list[type[Options]] = []

    def note(cls: type[Options], *_: object, **__: object) -> None:
        seen.append(cls)
        raise SystemExit(0)

    with patch.object(command_line, "parse", note):
        main([])
    (cls,) = seen
    return cls


def all_programs() -> dict[str, Program]:
    """Name -> program, of all there are."""
    mains: dict[str, Callable[[list[str]], int]] = {}
    for path in paths_of_programs():
        main = load_script(path).main
        if inspect.signature(main).parameters:  # else it has no options at all
            mains[path] = main
    for name in COMMANDS:
        mains[PREFIX + name] = lambda argv, name=name: commands.main([name, *argv])
    for name in TRAINERS:
        mains[f"{PREFIX}train {name}"] = lambda argv, name=name: commands.main(["train", name, *argv])
    return {name: Program(name, args_class_of(main), main) for name, main in mains.items()}
