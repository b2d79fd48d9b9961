"""Packages offer their names without importing them; what they offer is what type checkers see."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "anomaly_lib"
LAZY = sorted(path for path in PACKAGE.rglob("__init__.py") if "lazy_names(" in path.read_text(encoding="utf-8"))


def dotted(path: Path) -> str:
    return ".".join(path.parent.relative_to(PACKAGE.parent).parts)


def test_the_shared_rooms_are_lazy() -> None:
    assert {f"anomaly_lib.{room}" for room in ("backbones", "data", "features", "fusion", "metrics")} <= {
        dotted(path) for path in LAZY
    }


@pytest.mark.parametrize("path", LAZY, ids=dotted)
def test_type_checkers_see_the_names_that_are_offered(path: Path) -> None:
    seen = {}
    for block in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING":
            for node in block.body:
                assert isinstance(node, ast.ImportFrom)
                assert node.module is not None
                seen |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    package = importlib.import_module(dotted(path))
    assert dir(package) == sorted(seen)
    for name, (module, original) in seen.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), original), name


@pytest.mark.parametrize("path", LAZY, ids=dotted)
def test_importing_a_lazy_package_loads_no_torch(path: Path) -> None:
    code = f"import sys, {dotted(path)}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=PACKAGE.parent)


def test_names_for_options_are_the_keys_of_the_registries() -> None:
    from anomaly_lib import fusion
    from anomaly_lib.data.demo.items import CATEGORIES
    from anomaly_lib.data.names import DATASET_NAMES, DEMO_CATEGORIES
    from anomaly_lib.data.registry import DATASETS
    from anomaly_lib.fusion.names import CALIBRATION_NAMES, FUSION_NAMES, LATE_FUSION_NAMES

    assert tuple(fusion.FUSIONS) == FUSION_NAMES
    assert tuple(fusion.CALIBRATIONS) == CALIBRATION_NAMES
    assert tuple(fusion.LATE_FUSIONS) == LATE_FUSION_NAMES
    assert tuple(DATASETS) == DATASET_NAMES
    assert tuple(CATEGORIES) == DEMO_CATEGORIES


def test_modules_that_options_import_load_no_torch() -> None:
    names = "anomaly_lib.fusion.names, anomaly_lib.data.names, anomaly_lib.metrics.names"
    code = f"import sys, {names}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=PACKAGE.parent)
