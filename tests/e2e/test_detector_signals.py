"""SIGTERM ends a PatchCore run within five seconds wherever it is, with 130, and the same command starts again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_lib.engine.checkpoint import load_checkpoint
from anomaly_lib.files import read_json

ROOT = Path(__file__).resolve().parents[2]
# The script itself; the named function leaves a file behind when it is called for the first time.
CHILD = """
import importlib, sys
from pathlib import Path

place, name, marker, *argv = sys.argv[1:]
sys.path.insert(0, "scripts")
owner = importlib.import_module("anomaly_lib.models.detectors.patchcore")
owner = getattr(owner, place) if place != "-" else owner
original = getattr(owner, name)

def noted(*args, **kwargs):
    Path(marker).touch()
    return original(*args, **kwargs)

setattr(owner, name, noted)
sys.exit(importlib.import_module("train_detector").main(argv))
"""
PHASES = {
    "encoding": ("PatchCore", "_rows_of"),
    "coreset": ("-", "greedy_coreset"),
    "test": ("PatchCore", "score_grid"),
}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a fit of a few seconds: 40 images of 160 x 160, a coreset of 4,800 of 16,000 patches."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for place, count in (("train/good", 40), ("test/good", 20), ("test/hole", 20)):
        (root / "part" / place).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 255, (160, 160, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "part" / place / f"{i:03d}.png")
    data = ["--dataset", "mvtec", "--data-path", str(root), "--image-size", "160", "--batch-size", "4"]
    return [*data, "--backbone", "resnet18", "--weights", "random", "--coreset-ratio", "0.3", "--no-figures"]


def child(place: tuple[str, str], marker: Path, argv: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *place, str(marker), *argv], stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_ends_the_run_and_the_same_command_starts_again(phase: str, command: list[str], tmp_path: Path) -> None:
    run, marker = tmp_path / "run", tmp_path / "marker"
    argv = [*command, "--output-dir", str(run)]
    process = child(PHASES[phase], marker, argv)
    try:
        deadline = time.monotonic() + 300
        while not marker.exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        assert process.wait(timeout=60) == 130
        assert time.monotonic() - sent < 5
        assert "interrupted (SIGTERM; the same command continues this run)" in process.stderr.read()
    finally:
        process.kill()
        process.wait()
    assert read_json(run / "run.json")["status"] == "interrupted"
    assert not (run / "checkpoint.pt").exists()
    if phase != "coreset":
        return
    again = child(PHASES[phase], marker, argv)
    assert again.wait(timeout=600) == 0, again.stderr.read()
    assert read_json(run / "run.json")["status"] == "finished"
    assert load_checkpoint(run / "checkpoint.pt")["model"]["bank.rows"].shape == (4800, 384)
