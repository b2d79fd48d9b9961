"""Whatever ends a queue of experiments ends its trainings; a queue whose training is stopped starts no other."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anomaly_lib.systems.detectors.new import write_detector

ROOT = Path(__file__).resolve().parents[2]
NAME = "multi_domain_hdmap_padim"
WAITS = """import os, pathlib, signal, sys, time
if "--get-experiment-count" in sys.argv: print(3); sys.exit()
signal.signal(signal.SIGTERM, lambda *_: (time.sleep({deaf}), os._exit(130)))
folder = pathlib.Path(sys.argv[sys.argv.index("--log-dir") + 1])
(folder / f"child_{{os.getpid()}}").touch()
time.sleep(600)
"""
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true: Callable[[], object], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def children(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("child_")) for path in folder.glob("child_*")]


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Path]:
    """The folder of the scripts; the training only waits."""
    shutil.copytree(ROOT / "scripts" / "hdmap", tmp_path / "hdmap")
    (tmp_path / "hdmap" / f"{NAME}-training.py").write_text(WAITS.format(deaf=0.5))
    yield tmp_path / "hdmap"
    for process in children(tmp_path / "logs"):
        if alive(process):
            os.kill(process, signal.SIGKILL)


def started(script: Path, logs: Path, *words: str) -> "subprocess.Popen[str]":
    """The script with the first of its trainings at work."""
    queue = subprocess.Popen([script, *words], env=environment(logs), text=True, stdout=-1, stderr=subprocess.STDOUT)
    until(lambda: children(logs))
    return queue


def environment(logs: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "LOG_DIR": str(logs), "GPUS": ""}


def ended(queue: "subprocess.Popen[str]", logs: Path) -> str:
    """What the queue has said; it has ended as interrupted, with its one training."""
    said, _ = queue.communicate(timeout=60)
    assert queue.returncode == 130, said
    (training,) = children(logs)
    assert not alive(training)
    assert not list(logs.glob("run*.pid"))
    return said


def test_pkill_by_the_name_of_the_script(scripts: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    queue = started(scripts / f"{NAME}-run.sh", logs)
    subprocess.run(["pkill", "-f", str(scripts / f"{NAME}-run.sh")], check=True)
    assert "interrupted" in ended(queue, logs)


def test_a_second_signal_leaves_no_training(scripts: Path, tmp_path: Path) -> None:
    (scripts / f"{NAME}-training.py").write_text(WAITS.format(deaf=2))
    logs = tmp_path / "logs"
    queue = started(scripts / f"{NAME}-run.sh", logs)
    for _ in range(4):
        queue.send_signal(signal.SIGTERM)
        time.sleep(0.4)
    ended(queue, logs)


def test_the_stop_flag(scripts: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    queue = started(scripts / f"{NAME}-run.sh", logs)
    (logs / "run_1.pid").write_text("1")  # of a runner that was killed: not locked, not signalled
    said = subprocess.run(
        [scripts / f"{NAME}-run.sh", "--stop"], env=environment(logs), text=True, capture_output=True, check=True
    ).stdout
    assert "1 stopped" in said
    (logs / "run_1.pid").unlink()
    ended(queue, logs)


def test_a_training_that_is_stopped_ends_the_queue(scripts: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    queue = started(scripts / f"{NAME}-run.sh", logs)
    os.kill(children(logs)[0], signal.SIGTERM)
    said, _ = queue.communicate(timeout=60)
    assert queue.returncode == 130, said
    assert "was stopped; the same command continues" in said
    assert len(children(logs)) == 1


@pytest.mark.parametrize("how", ["pkill", "--stop"])
def test_the_script_of_a_new_detector(how: str, tmp_path: Path) -> None:
    write_detector("my_colours", tmp_path)
    (tmp_path / "multi_domain_hdmap_my_colours-training.py").write_text(WAITS.format(deaf=0.5))
    script, logs = tmp_path / "multi_domain_hdmap_my_colours-run.sh", tmp_path / "logs"
    queue = started(script, logs)
    if how == "pkill":
        subprocess.run(["pkill", "-f", str(script)], check=True)
    else:
        subprocess.run([script, "--stop"], env=environment(logs), check=True)
    ended(queue, logs)
