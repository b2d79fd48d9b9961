"""The option set of every Args class is frozen in tests/golden/cli.json, so that a mandated spelling cannot vanish.

After a wanted change: python tests/test_cli_frozen.py --write
"""

import ast
import dataclasses
import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "anomaly_lib"
REFUSED = {  # without options
    "systems.detectors.hdmap.options.Args[musc]": "a transfer cannot be read from it",
    "commands.training.FitSOWA": "a folder is needed",
}
GOLDEN = ROOT / "tests" / "golden" / "cli.json"
ROOMS = ("systems", "detect", "evaluation", "serving", "commands")


def args_classes() -> dict[str, type]:
    """Every dataclass of options of the systems, the programs over detectors and the commands, by module and name."""
    found = {}
    for path in [path for room in ROOMS for path in sorted((PACKAGE / room).rglob("*.py"))]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(name.removesuffix(".__init__"))
        for key, value in vars(module).items():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__:
                fields = dataclasses.fields(value)
                if fields and all("raw_help" in f.metadata for f in fields):
                    full = f"{module.__name__.removeprefix('anomaly_lib.')}.{key}"
                    found |= {full: value} | {f"{full}[{model}]": one for model, one in variants(value).items()}
    return found


def variants(cls: type) -> dict[str, type]:
    """The classes of options that the choice of a model makes of `cls`."""
    from anomaly_lib.models.detectors.registry import entries

    if "model" not in getattr(cls, "CHOOSES", ()) or "systems" not in cls.__module__:  # fit: the same ones
        return {}
    return {entry.name: cls.variant({"model": entry.name}) for entry in entries()}


def current() -> dict[str, list[str]]:
    from anomaly_lib.command_line import option_strings

    return {name: sorted(option_strings(cls)) for name, cls in sorted(args_classes().items())}


def test_options_are_the_frozen_ones() -> None:
    assert current() == json.loads(GOLDEN.read_text()), "run: python tests/test_cli_frozen.py --write (and say why)"


def test_every_declaration_parses() -> None:
    from anomaly_lib.command_line import parse

    for name, cls in args_classes().items():
        if name not in REFUSED:
            assert dataclasses.asdict(parse(cls, [])) == dataclasses.asdict(cls()), name


def test_no_option_that_nobody_reads() -> None:
    read = set()
    for path in [*PACKAGE.rglob("*.py"), *ROOT.glob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        read |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
        read |= {
            n.args[1].value
            for n in ast.walk(tree)
            if isinstance(n, ast.Call)
            and getattr(n.func, "id", "") == "getattr"
            and len(n.args) > 1
            and isinstance(n.args[1], ast.Constant)
        }
    read |= {name for cls in args_classes().values() for name in cls.CHOOSES}
    read |= {name for cls in args_classes().values() for preset in cls.presets() for name in preset.when}
    unread = {f"{name}.{f.name}" for name, cls in args_classes().items() for f in dataclasses.fields(cls)} - {
        f"{name}.{field}" for name in args_classes() for field in read
    }
    unread -= {
        f"{name}.{f.name}"
        for name, cls in args_classes().items()
        for f in dataclasses.fields(cls)
        if f.metadata["raw_help"].startswith(
            "no meaning"
        )  # of the originals: the run announces them (test_options_act.py)
    }
    assert not unread


def test_one_thing_has_one_name() -> None:
    """Shared options keep their shared names: no second spelling as a field of its own."""
    foreign = {"lr", "epoch", "num_epochs", "root_dir", "data_dir", "class_name", "workers"}
    root_dir = {"root_dir"}  # the original's loop root, which is no folder of a run
    own = {"systems.promptad.options": root_dir, "commands.training": root_dir}
    for name, cls in args_classes().items():
        allowed = own.get(name.rpartition(".")[0], set())
        assert not (foreign - allowed) & {f.name for f in dataclasses.fields(cls)}, name


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if "--write" in sys.argv:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(current(), indent=1) + "\n")
