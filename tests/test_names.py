"""The documents' classes can be imported by name, explain themselves, and cost nothing before they are asked for."""

import subprocess
import sys

import pytest
from torch import nn

from anomaly_lib import models

PACKAGES = ("promptad", "sowa", "weld", "crystal", "detectors")


@pytest.mark.parametrize("name", models.__all__)
def test_every_name_is_a_module_with_a_docstring(name: str) -> None:
    cls = getattr(models, name)
    assert isinstance(cls, type)
    assert issubclass(cls, nn.Module)
    assert cls.__doc__
    assert len(cls.__doc__.strip()) > 20
    assert name in dir(models)


def test_the_table_and_all_agree() -> None:
    assert sorted(models.PLACES) == sorted(models.__all__)
    with pytest.raises(AttributeError, match="NoSuchModel"):
        _ = models.NoSuchModel


@pytest.mark.parametrize("package", ["models", *(f"models.{name}" for name in PACKAGES)])
def test_importing_a_package_loads_no_torch(package: str) -> None:
    code = f"import sys, anomaly_lib.{package}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
