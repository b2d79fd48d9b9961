"""Importing is cheap and does nothing: no heavy package, no file, no download, no parsing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "anomaly_lib"
HEAVY = {
    "transformers",
    "sklearn",
    "matplotlib",
    "open_clip",
    "timm",
    "librosa",
    "pandas",
    "torchvision",
    "ase",
    "wandb",
    "ray",
}
WORK = {"from_pretrained", "open", "parse_args", "download", "load_state_dict", "read_text", "mkdir"}


@pytest.mark.parametrize(
    ("statement", "refused"),
    [
        ("import anomaly_lib", HEAVY | {"torch"}),
        ("import anomaly_lib.metrics, anomaly_lib.fusion, anomaly_lib.losses, anomaly_lib.ops", HEAVY),
        ("import anomaly_lib.features, anomaly_lib.backbones, anomaly_lib.systems.registry", HEAVY),
        ("import anomaly_lib.viz", HEAVY),
    ],
)
def test_no_heavy_import(statement: str, refused: set[str]) -> None:
    code = f"import sys\n{statement}\nprint(sorted({refused!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr[-500:]


def test_a_run_on_a_resnet_loads_no_heavy_package(tmp_path: Path) -> None:
    """Nor torch._dynamo, whose import takes as long as torch's; networks of timm and open_clip bring it."""
    code = (
        "import sys\nfrom anomaly_lib.systems.registry import SYSTEMS\nsystem = SYSTEMS['detectors']\n"
        f"system.train(system.tiny(model='patchcore', backbone='resnet18', output_dir={str(tmp_path)!r}))\n"
        f"print(sorted({HEAVY | {'torch._dynamo'}!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=PACKAGE.parent)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr[-500:]


def top_level_calls(tree: ast.Module) -> list[str]:
    """Names of functions called while a module is being imported (bodies of functions are not)."""
    names = []
    queue: list[ast.AST] = list(tree.body)
    while queue:
        node = queue.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "__name__" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Call):
            names.append(node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
        queue.extend(ast.iter_child_nodes(node))
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_do_no_work(path: Path) -> None:
    assert not WORK & set(top_level_calls(ast.parse(path.read_text(encoding="utf-8"))))
