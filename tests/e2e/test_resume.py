"""Killed, interrupted and resumed runs end with exactly the weights of a run that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from anomaly_lib.engine.checkpoint import load_checkpoint
from tests.support.tiny_recipe import main

SUPPORT = Path(__file__).resolve().parent.parent / "support"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT.parent.parent)}


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)  # type: ignore[arg-type]
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)  # type: ignore[union-attr, index]
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))  # type: ignore[arg-type]
    return a == b or (a != a and b != b)


def assert_equal_runs(left: Path, right: Path) -> None:
    a, b = load_checkpoint(left / "checkpoint.pt"), load_checkpoint(right / "checkpoint.pt")
    for part in ("model", "optimizer", "scheduler", "ema", "early_stop", "history", "rng", "epoch"):
        assert same(a[part], b[part]), part
    assert (left / "metrics.jsonl").read_text() == (right / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    assert main(["--output-dir", str(folder), "--nap", "0.003"]) == 0
    return folder


def test_sigkill_at_ten_random_moments(straight: Path, tmp_path: Path) -> None:
    argv = ["--output-dir", str(tmp_path), "--nap", "0.003"]
    script = [sys.executable, str(SUPPORT / "killing.py"), str(SUPPORT / "tiny_recipe.py"), "10", "0.25", *argv]
    done = subprocess.run(script, env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= 3  # it may finish before all ten kills have hit
    assert_equal_runs(straight, tmp_path)
    leftovers = [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"]
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "finished"
    assert len(leftovers) <= 10  # at most one half-written file a kill, and never under a real name


def test_sigterm_saves_says_so_and_continues(straight: Path, tmp_path: Path) -> None:
    argv = [sys.executable, str(SUPPORT / "tiny_recipe.py"), "--output-dir", str(tmp_path), "--nap", "0.003"]
    child = subprocess.Popen([*argv[:-1], "0.003"], env=ENV, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "checkpoint.pt").is_file() and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=60)
    if child.returncode != 0:  # it may have been faster than the signal
        assert child.returncode == 130
        assert "continues this run" in errors
        assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    assert main(["--output-dir", str(tmp_path), "--nap", "0.003"]) == 0
    assert_equal_runs(straight, tmp_path)


def test_done_run_is_not_done_twice(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (straight / "checkpoint.pt").stat().st_mtime_ns
    assert main(["--output-dir", str(straight), "--nap", "0.003"]) == 0
    assert "already done" in capsys.readouterr().out
    assert (straight / "checkpoint.pt").stat().st_mtime_ns == before


def test_other_options_in_the_same_folder_are_refused(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output-dir", str(straight), "--nap", "0.003", "--lr", "0.5"]) == 2
    message = capsys.readouterr().err
    assert "--learning-rate 0.001 -> 0.5" in message
    assert message.count("\n") == 1


def test_fresh_starts_over_and_resume_extends(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert main(["--output-dir", folder, "--epochs", "2"]) == 0
    assert main(["--output-dir", folder, "--epochs", "3", "--fresh"]) == 0
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 3
    assert main(["--output-dir", folder, "--epochs", "4", "--resume", "latest"]) == 0
    assert [row["epoch"] for row in load_checkpoint(tmp_path / "checkpoint.pt")["history"]] == [0, 1, 2, 3]
    assert main(["--output-dir", folder, "--epochs", "4", "--resume", str(tmp_path / "nothing.pt")]) == 2


def test_save_path_gets_the_finished_checkpoint_and_is_restored(tmp_path: Path) -> None:
    target = tmp_path / "k_1" / "cls_checkpoint.pth"
    argv = ["--save-path", str(target), "--epochs", "2"]
    assert main(argv) == 0
    content = target.read_bytes()
    target.unlink()
    assert main(argv) == 0
    assert target.read_bytes() == content
    assert (tmp_path / "k_1" / "cls_checkpoint" / "run.json").is_file()


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    argv = [sys.executable, str(SUPPORT / "tiny_recipe.py"), "--output-dir", str(tmp_path), "--nap", "0.2"]
    first = subprocess.Popen(argv, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        second = subprocess.run(argv, env=ENV, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert "another process is writing this run" in second.stderr
    finally:
        first.kill()
        first.wait()


def test_two_gloo_ranks_give_the_loss_curve_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    argv = ["--dropout", "0", "--epochs", "6"]
    assert main([*argv, "--output-dir", str(one)]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, str(SUPPORT / "tiny_recipe.py"), *argv, "--output-dir", str(two)],
        env=ENV, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    curves = [[json.loads(line)["loss"] for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, two)]
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert curves[0][-1] < curves[0][0]
