"""What setup.py requires is imported by the package, and what the package imports is required or in an extra."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "anomaly_lib"
# Distribution -> the name it is imported by, where the two differ.
IMPORTED_AS = {
    "argparse-dataclass": "argparse_dataclass",
    "mamba-ssm": "mamba_ssm",
    "causal-conv1d": "causal_conv1d",
    "open_clip_torch": "open_clip",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "python-multipart": "python_multipart",
    "scikit-learn": "sklearn",
    "tensorboard": "torch.utils.tensorboard",
}
# Of extras: needed by a package of the same extra, or by what the export writes, and imported by neither name here.
NEEDED_BY_OTHERS = {"causal-conv1d", "onnxscript", "onnx"}
TOOLS = ("test", "bench")  # extras of the repository, not of the package


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """(required distributions, extra -> distributions) as setup.py writes them."""
    names: dict[str, ast.expr] = {
        node.targets[0].id: node.value
        for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }

    def distributions(texts: list[str]) -> list[str]:
        return [re.split(r"[<>=!~;\[ ]", text)[0] for text in texts]

    extras = ast.literal_eval(names["EXTRAS"])
    return distributions(ast.literal_eval(names["REQUIRED"])), {k: distributions(v) for k, v in extras.items()}


def imports() -> dict[str, set[str]]:
    """Third-party module, with every dotted name below it -> the files of the package that import it."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                parts = name.split(".")
                if parts[0] not in sys.stdlib_module_names | {"anomaly_lib"}:
                    for end in range(1, len(parts) + 1):
                        found.setdefault(".".join(parts[:end]), set()).add(str(path.relative_to(ROOT)))
    return found


REQUIRED, EXTRAS = requirements()
IMPORTS = imports()


def module_of(distribution: str) -> str:
    return IMPORTED_AS.get(distribution, distribution)


@pytest.mark.parametrize("distribution", REQUIRED)
def test_what_is_required_is_imported(distribution: str) -> None:
    assert IMPORTS.get(module_of(distribution)), f"no file of the package imports {module_of(distribution)}"


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - set(TOOLS)))
def test_what_an_extra_brings_is_imported(extra: str) -> None:
    scripts = {
        alias.name.split(".")[0]
        for path in (ROOT / "scripts").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(getattr(node, "module", "") or "")])
    }
    for distribution in set(EXTRAS[extra]) - NEEDED_BY_OTHERS:
        assert module_of(distribution) in IMPORTS or module_of(distribution).split(".")[0] in scripts, distribution


def test_what_is_imported_is_required_or_in_an_extra() -> None:
    known = {module_of(one).split(".")[0] for one in [*REQUIRED, *(one for extra in EXTRAS.values() for one in extra)]}
    strangers = {name: files for name, files in IMPORTS.items() if "." not in name and name not in known}
    assert strangers == {}


def test_the_page_names_every_required_distribution() -> None:
    page = (ROOT / "docs" / "manual" / "dependencies.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    named = {name.strip().split(" ")[0] for row in rows for name in row.split(",")} - {"package", ""}
    assert named == set(REQUIRED)
