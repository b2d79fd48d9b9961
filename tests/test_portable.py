"""The package imports where Python has no POSIX modules (Windows)."""

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "anomaly_lib"
POSIX = ("fcntl", "resource", "pwd", "grp", "termios")
CODE = """
import importlib, sys
names = sys.stdin.read().split()
importlib.import_module("torch")  # what other libraries do about POSIX is theirs
for name in {posix}:
    sys.modules[name] = None
broken = []
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        broken.append((name, str(error)))
print(broken)
"""


def test_every_module_imports_without_posix() -> None:
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(PACKAGE.rglob("*.py"))
    ]
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(posix=POSIX)], input="\n".join(names), capture_output=True, text=True,
        timeout=240, cwd=PACKAGE.parent, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
