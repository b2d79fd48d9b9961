"""Processes that build graphs end with the run: on SIGTERM, and when the run itself is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json
from anomaly_lib.systems.crystal.data.demo import write_crystal_demo
from anomaly_lib.systems.crystal.data.pool import worker_pool

ROOT = Path(__file__).resolve().parents[3]
SLOW = """
import sys, time
from pathlib import Path
from anomaly_lib.systems.crystal.data import store
read = store.read_crystal
def slow(path):
    time.sleep(0.5)
    return read(path)
store.read_crystal = slow  # forked workers inherit it: 100 structures each take 50 s
sys.path.insert(0, {root!r})
from train_with_cross_modal_attention import main
sys.exit(main(sys.argv[1:]))
"""


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def core_seconds(pid: int) -> float:
    """Time this process had a core: what holds on a busy machine, where everything takes several times as long."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def until(condition: object, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_run_and_its_workers(number: signal.Signals, tmp_path: Path) -> None:
    write_crystal_demo(tmp_path, count=200)
    words = ["--root_dir", str(tmp_path), "--num_workers", "2", "--cache", "ram", "--output_dir", str(tmp_path / "out")]
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(root=str(ROOT)), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    workers: list[int] = []
    try:
        assert until(lambda: len(children_of(run.pid)) >= 2, 60), run.communicate(timeout=5)
        time.sleep(0.3)
        workers = children_of(run.pid)
        before = core_seconds(run.pid)
        run.send_signal(number)
        assert until(lambda: not any(map(running, workers)), 5), workers
        assert until(lambda: not running(run.pid), 60)
        assert core_seconds(run.pid) - before < 5  # torch's end of the interpreter is the most of it
        _, said = run.communicate(timeout=5)
    finally:
        run.kill()
        for worker in workers:
            if running(worker):
                os.kill(worker, signal.SIGKILL)
    if number == signal.SIGTERM:
        assert run.returncode == 130
        assert len(said.decode().strip().splitlines()) == 1, said.decode()
        record = read_json(tmp_path / "out" / "formation_energy_peratom" / "run.json")
        assert record["status"] == "interrupted"


def square(number: int) -> int:
    return number * number


def test_a_pool_works_and_passes_errors_on() -> None:
    with worker_pool(2) as pool:
        assert list(pool.map(square, range(5))) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError), worker_pool(1) as pool:
        list(pool.map(square, [1 // 0]))
    with pytest.raises(UserError, match="fewer num_workers="), worker_pool(1) as pool:
        list(pool.map(os._exit, [1]))
