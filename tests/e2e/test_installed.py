"""The wheel in a clean environment outside the repository, without a network: each message names the next command.

And the source archive: it holds the programs, scripts, pages and tests of the repository.
"""

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = """
import socket

def refuse(self, address, *rest):
    raise OSError(f"the network was asked for: {address}")

socket.socket.connect = socket.socket.connect_ex = refuse
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the repository keeps, and nothing that was built beside it."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("sources")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    kept = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, kept.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(sources: Path, *words: str) -> Path:
    """The one file that a build leaves."""
    out = sources.parent / f"dist-{words[0]}"
    code = "import sys, setuptools.build_meta as backend; getattr(backend, sys.argv[1])(sys.argv[2])"
    out.mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, "-c", code, f"build_{words[0]}", str(out)], cwd=sources, capture_output=True, check=True
    )
    (found,) = out.iterdir()
    return found


def test_the_source_archive_is_complete(sources: Path) -> None:
    with tarfile.open(build(sources, "sdist")) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    ours = {path.relative_to(sources).as_posix() for path in sources.rglob("*") if path.is_file()}
    left_out = {name for name in ours - held if not name.startswith("anomaly_lib.egg-info/")}
    assert left_out <= {".gitignore", "MANIFEST.in"}


@pytest.fixture(scope="module")
def installed(sources: Path) -> Path:
    """The wheel in a new environment, which has the libraries of this one; returns the folder of its programs."""
    wheel = build(sources, "wheel")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    package = {path.relative_to(sources).as_posix() for path in (sources / "anomaly_lib").rglob("*") if path.is_file()}
    assert package <= held
    assert not {name for name in held if name.startswith(("tests/", "scripts/", "benchmarks/"))}
    clean = sources.parent / "clean"
    venv.create(clean, with_pip=False, symlinks=os.name == "posix")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(clean), "install", "-q", "--no-deps", "--no-index", str(wheel)],
        check=True,
        capture_output=True,
    )
    (packages,) = clean.glob("lib/python*/site-packages") if os.name == "posix" else [clean / "Lib" / "site-packages"]
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    (packages / "sitecustomize.py").write_text(OFFLINE, encoding="utf-8")
    return clean / ("bin" if os.name == "posix" else "Scripts")


def test_from_the_wheel_to_a_report_by_following_the_messages(
    installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ANOMALY", "HF_"))}
    here = keep | {"PATH": f"{installed}{os.pathsep}{keep['PATH']}", "ANOMALY_LIB_CACHE": str(tmp_path / "cache")}

    def said(line: str) -> str:
        done = subprocess.run(
            shlex.split(line), cwd=tmp_path, env=here, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def following(text: str) -> str:
        (line,) = re.findall(r"^next: (anomaly-lib .*)$", text, re.MULTILINE)
        return str(line)

    asked = f"{installed / 'python'} -c 'import anomaly_lib; print(anomaly_lib.__file__)'"
    assert Path(said(asked).strip()).is_relative_to(installed.parent)
    first = said("anomaly-lib")
    assert "anomaly-lib demo parts" in first
    started = time.monotonic()
    fitting = following(said("anomaly-lib demo parts"))
    assert fitting.startswith("anomaly-lib fit ")
    assert fitting.endswith(" parts")
    reporting = following(said(fitting))
    assert reporting.startswith("anomaly-lib report ")
    reported = said(reporting)
    (page,) = re.findall(r"^report: (\S+index.html)", reported, re.MULTILINE)
    assert "capsule" in (tmp_path / page).read_text(encoding="utf-8")
    predicting = following(reported)
    assert "50 images scored" in said(predicting.replace("NEW_IMAGES", "parts/capsule/test"))
    assert len(list((tmp_path / "predictions" / "overlays").rglob("*.png"))) == 50
    with capsys.disabled():
        sys.stdout.write(f"\n  demo, fit, report, predict from the wheel: {time.monotonic() - started:.1f} s\n")
