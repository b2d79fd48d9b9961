"""What the README shows runs: every shell block, line by line, and every Python block."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SET_UP = (
    "pip install",
    "git clone",
    "cd ",
    "make ",
    "python3 -m venv",  # the two commands: .ci/run runs the second as it stands, a test below the first's job
)
# The main job itself always runs; the other systems' scripts take up to a minute each.
LONG = ("train_seg", "train_sowa", "train_causal", "train_with", "train_detector", "for ")


def shell_lines() -> list[str]:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", TEXT, flags=re.S)
    joined = "\n".join(blocks).replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def wants_more_than_a_demo(line: str) -> bool:
    return "<" in line or "$" in line  # a path only the reader has


def as_marked(line: str):  # type: ignore[no-untyped-def]
    marks = [pytest.mark.slow] if any(word in line for word in LONG) else []
    return pytest.param(line, marks=marks, id=line[:60])


RUNNABLE = [
    as_marked(line) for line in shell_lines() if not line.startswith(SET_UP) and not wants_more_than_a_demo(line)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """README commands run where a reader would stand: beside the scripts, but with results elsewhere."""
    here = tmp_path_factory.mktemp("readme")
    for name in ("scripts", "anomaly_lib", *(p.name for p in ROOT.glob("*.py"))):
        (here / name).symlink_to(ROOT / name)
    return here


@pytest.mark.parametrize("line", RUNNABLE)
def test_command_runs(line: str, folder: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]


def test_the_two_commands_are_one_line_each_and_need_python_alone(folder: Path) -> None:
    first, second = [line for line in shell_lines() if line.startswith("python3 -m venv")]
    assert second.endswith("pytest -q -n auto")
    made, job = first.rsplit(" && ", 1)
    assert made == "python3 -m venv .venv && .venv/bin/pip install -e ."
    test_command_runs(job.replace(".venv/bin/python", "python"), folder)


def test_python_blocks_run(folder: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    assert blocks
    for block in blocks:
        if "runs/" in block or "parts/" in block:  # need a run or parts; tests of notebooks and of fit cover them
            compile(block, "README.md", "exec")
            continue
        done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


def test_the_shop_window() -> None:
    """The way in one picture above the fold, the cast, eight rows of results or more, and others beside them."""
    pictures = re.findall(r"!\[[^\]]+\]\((\S+)\)", TEXT)
    assert pictures[0] == "docs/figures/way.png"
    assert TEXT.index(pictures[0]) < 400
    assert "docs/figures/cast.svg" in pictures
    assert [name for name in pictures if not (ROOT / name).is_file()] == []
    results = TEXT.partition("## Results")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\|(?! ?-)", results, flags=re.M)) >= 8 + 3  # three heads
    assert "anomalib 2.7" in results
    real, drawn = results.index("real categories |"), results.index("| built-in data |")
    assert real < drawn


def test_the_cast_is_one_file_that_fetches_nothing() -> None:
    text = (ROOT / "docs" / "figures" / "cast.svg").read_text(encoding="utf-8")
    assert not re.findall(r"<script|(?:href|src)=|url\(|@import", text)
    assert "anomaly-lib" in text
    seconds = [float(value) for value in re.findall(r"([0-9.]+)s\b", text)]
    assert 10 <= max(seconds) <= 40
