"""--help and mistakes come at once: no program loads torch before it knows what it is to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from anomaly_lib.commands.table import COMMANDS
from anomaly_lib.commands.training import TRAINERS

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("train_*.py"), ROOT / "evaluate.py", *(ROOT / "scripts").rglob("*.py")]
    if "__main__" in path.read_text(encoding="utf-8")
)
CHECK = """
import runpy, sys
sys.argv = [{path!r}, {flag!r}]
try:
    runpy.run_path({path!r}, run_name="__main__")
except SystemExit as leaving:
    code = leaving.code
print("code", code, "torch" if "torch" in sys.modules else "light", file=sys.__stderr__)
"""


@pytest.mark.parametrize("flag", ["--help", "--no-such-option"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_mistakes_need_no_torch(program: str, flag: str) -> None:
    code = CHECK.format(path=str(ROOT / program), flag=flag)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT / "tests")
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"code {0 if flag == '--help' else 2} light", done.stderr[-800:]
    if flag == "--help":
        assert "--" in done.stdout
    else:
        assert "--no-such-option" in done.stderr


HEAVY = {
    "torch",
    "numpy",
    "scipy",
    "sklearn",
    "matplotlib",
    "pandas",
    "PIL",
    "fastapi",
    "uvicorn",
    "onnx",
    "onnxruntime",
}
MODULES = 400  # that are loaded in all, those of Python among them; half a second takes more than a thousand


@pytest.mark.parametrize("name", ["", *COMMANDS, *(f"train {name}" for name in TRAINERS)])
def test_the_command_too(name: str) -> None:
    code = (
        "import sys; from anomaly_lib.__main__ import main; "
        f"code = main({[*name.split(), '--help']!r}); "
        f"print('code', code, sorted({HEAVY!r} & set(sys.modules)), len(sys.modules) < {MODULES})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip().splitlines()[-1] == "code 0 [] True", done.stderr[-800:]
