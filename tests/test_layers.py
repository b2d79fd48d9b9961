"""An import arrow may only point down. See docs/manual/architecture.md for the picture this test enforces."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "anomaly_lib"

# Lower rank = lower floor. Rooms of one rank are siblings and never import each other.
RANK = {
    "errors": 0, "types": 0.05, "lazy": 0,
    "files": 0.1, "interrupt": 0.1, "parts": 0.1, "config": 0.2, "command_line": 0.25,
    "options": 0.3, "bare_words": 0.3,
    "ops": 1,
    "backbones": 2, "features": 2, "data": 2, "fusion": 2, "losses": 2, "metrics": 2,
    "models": 3, "engine": 3, "viz": 3,
    "detect": 4,
    "systems": 5,
    "evaluation": 6,
    "fitting": 6.5,
    "serving": 6.7,
    "commands": 6.8,
    "__init__": 7, "__main__": 7,
}  # fmt: skip
SYSTEMS = ("promptad", "sowa", "detectors", "weld", "crystal")  # the folders of systems/
PURE = {"ops", "fusion", "losses", "metrics", "models"}
NOT_IN_PURE = {"argparse", "argparse_dataclass", "logging", "matplotlib", "wandb", "tensorboard"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_modules(path: Path, *, typing: bool = True) -> list[str]:
    """Absolute dotted names of everything `path` imports, function-level imports included."""
    package_parts = ("anomaly_lib", *path.relative_to(PACKAGE).parent.parts)
    names = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unused = {
        id(inner)
        for node in ast.walk(tree)
        if not typing and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in unused:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package_parts[: len(package_parts) - node.level + 1]) if node.level else []
            stem = ".".join([*base, node.module] if node.module else base)
            names += [f"{stem}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    here = room_of(path)
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] != "anomaly_lib":
            assert parts[0] not in {"scripts", "train_cls", "train_seg", "evaluate", "tests"}, f"{path} imports {name}"
            continue
        room = parts[1] if len(parts) > 1 and parts[1] in RANK else "__init__"
        if room == here or (room == "__init__" and parts[1:2] == ["__version__"]):
            continue
        assert RANK[room] < RANK[here], f"{here} (floor {RANK[here]}) imports {name} (floor {RANK[room]})"


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in PURE], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_pure_rooms_have_no_tools(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported_modules(path)}
    assert not roots & NOT_IN_PURE, f"{path} imports {roots & NOT_IN_PURE}"


def test_only_viz_draws() -> None:
    drawers = {
        str(p.relative_to(PACKAGE))
        for p in FILES
        if room_of(p) != "viz" and any(n.split(".")[0] == "matplotlib" for n in imported_modules(p))
    }
    assert drawers == set()


def module_of(path: Path) -> str:
    """Dotted name below anomaly_lib."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Modules of the package that `path` imports, at the top or inside a function; type-checking blocks left out."""
    names = set()
    for name in imported_modules(path, typing=False):
        if not name.startswith("anomaly_lib."):
            continue
        inner = name.removeprefix("anomaly_lib.")
        while inner and inner not in MODULES:
            inner = inner.rpartition(".")[0]
        names.add(inner)
    return names - {"", module_of(path)}


MODULES = {module_of(path) for path in FILES}


def test_no_circle_hidden_or_open() -> None:
    graph = {module_of(path): imports_of(path) for path in FILES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(p) == "systems"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_a_system_never_imports_another(path: Path) -> None:
    parts = path.relative_to(PACKAGE / "systems").parts
    others = set(SYSTEMS) - {parts[0]}
    for name in imported_modules(path):
        inner = name.split(".")
        if inner[:2] == ["anomaly_lib", "systems"] and len(inner) > 2:
            assert inner[2] not in others, f"{path} imports {name}"


def test_each_program_over_detectors_exists_once() -> None:
    """One evaluate, one predict, one place that computes the figures of a split."""
    for name, home in (("evaluate", "evaluation/evaluate.py"), ("summary", "detect/scores.py")):
        homes = {
            str(path.relative_to(PACKAGE))
            for path in FILES
            for node in ast.parse(path.read_text(encoding="utf-8")).body  # a method of that name calls it
            if isinstance(node, ast.FunctionDef) and node.name == name
        }
        assert homes == {home}
