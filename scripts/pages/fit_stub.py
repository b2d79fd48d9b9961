"""Write anomaly_lib/__init__.pyi: the options of `anomaly_lib.fit` for each model, typed from their declarations.

`python scripts/make_figures.py --only stub`; tests/unit/test_fit_stub.py holds the file to the options.
"""

from collections.abc import Iterable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from anomaly_lib.config import Options, kinds_of
from anomaly_lib.files import write_text
from anomaly_lib.fitting.training import SYSTEMS_OF_IMAGES
from anomaly_lib.models.detectors.registry import entries
from anomaly_lib.systems.registry import SYSTEMS

PATH = Path(__file__).resolve().parents[2] / "anomaly_lib" / "__init__.pyi"
NOT_HERE = ("model", "data_path")  # `fit` takes them as its first two arguments
PATHS = ("output_dir", "save_path", "resume", "cache_dir", "weights", "plugin", "eval_data_path")
HEAD = '''"""What type checkers and editors know of the package. Written by make_figures.py --only stub; do not edit."""

from pathlib import Path
from typing import Any, Literal, TypedDict, overload

from typing_extensions import Unpack

from anomaly_lib.fitting import Fitted as Fitted

__version__: str
__all__ = ["__version__", "fit", "load"]

def load(path: Any, *, weights: Any = None, plugin: Any = None) -> Any: ...

'''
LAST = """@overload
def fit(model: str, data: Any, *, plugin: str | Path, **options: Any) -> Fitted: ...
"""


def options_of_models() -> dict[str, type[Options]]:
    """The options of each model that `fit` knows by name."""
    args = SYSTEMS["detectors"].Args
    return {one.name: args.variant({"model": one.name}) for one in entries() if isinstance(one.module, str)} | {
        name: SYSTEMS[name].Args for name in SYSTEMS_OF_IMAGES
    }


def typed(f: "Field[Any]") -> str:
    """The values of an option as a type."""
    kinds, optional = kinds_of(f.type)
    choices = f.metadata["options"]
    if choices and all(isinstance(one, str) for one in choices):
        one = f"Literal[{', '.join(map(repr, choices))}]".replace("'", '"')
    else:
        one = " | ".join(kind.__name__ for kind in kinds) + (" | Path" if f.name in PATHS else "")
    many = f"list[{one}] | {one}" if f.metadata.get("nargs") else one
    return f"{many} | None" if optional else many


def groups(models: dict[str, type[Options]]) -> Iterator[str]:
    """A TypedDict for the options all models share, one for those with a frozen network, one for the rest of each."""
    kinds = {name: {f.name: typed(f) for f in fields(cls) if f.name not in NOT_HERE} for name, cls in models.items()}
    shared = set.intersection(*(set(own.items()) for own in kinds.values()))
    frozen = set.intersection(*(set(own.items()) for own in kinds.values() if "backbone" in own))
    yield body("_Shared", "TypedDict", shared)
    yield body("_Frozen", "_Shared", frozen - shared)
    for name, own in kinds.items():
        base, known = ("_Frozen", frozen) if "backbone" in own else ("_Shared", shared)
        yield body(class_name(name), base, own.items() - known)


def class_name(model: str) -> str:
    return f"_{model.title().replace('_', '')}"


def body(name: str, base: str, own: Iterable[tuple[str, str]]) -> str:
    lines = [f"    {option}: {kind}" for option, kind in sorted(own)] or ["    pass"]
    return f"class {name}({base}, total=False):\n" + "\n".join(lines) + "\n"


def stub() -> str:
    models = options_of_models()
    call = '@overload\ndef fit(model: Literal["{}"], data: Any, **options: Unpack[{}]) -> Fitted: ...\n'
    calls = "".join(call.format(name, class_name(name)) for name in models)
    return HEAD + "\n".join(groups(models)) + "\n" + calls + LAST


def write_stub() -> Path:
    write_text(PATH, stub())
    return PATH
