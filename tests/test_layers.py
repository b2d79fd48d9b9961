"""An import arrow may only point down. See docs/manual/architecture.md for the picture this test enforces."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "anomaly_lib"

# Lower rank = lower floor. Rooms of one rank are siblings and never import each other.
RANK = {
    "errors": 0, "types": 0, "files": 0.1, "config": 0.2, "options": 0.3,
    "ops": 1,
    "backbones": 2, "features": 2, "data": 2, "fusion": 2, "losses": 2, "metrics": 2,
    "models": 3, "engine": 3, "viz": 3,
    "detect": 4,
    "systems": 5,
    "evaluation": 6,
    "__init__": 7, "__main__": 7,
}  # fmt: skip
PURE = {"ops", "fusion", "losses", "metrics", "models"}
NOT_IN_PURE = {"argparse", "argparse_dataclass", "logging", "matplotlib", "wandb", "tensorboard"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_modules(path: Path) -> list[str]:
    """Absolute dotted names of everything `path` imports, function-level imports included."""
    package_parts = ("anomaly_lib", *path.relative_to(PACKAGE).parent.parts)
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
