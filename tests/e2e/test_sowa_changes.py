"""Every block of docs/manual/coming_from_sowa.md runs as it stands: the five usual changes of the user's document."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "manual" / "coming_from_sowa.md").read_text(encoding="utf-8")
CHANGES = dict(re.findall(r"^\*\*(.+?)\.\*\*(.*?)(?=^\*\*|^## )", PAGE, flags=re.S | re.M))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("changes")
    for name in ("scripts", "evaluate.py"):
        (here / name).symlink_to(ROOT / name)
    return here


def run_blocks(change: str, folder: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = ""
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", CHANGES[change], flags=re.S):
        command = ["bash", "-e", "-c", block] if language == "bash" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
        said += done.stdout
    return said


def options(folder: Path, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "runs" / name / "run.json").read_text())["args"]
    return found


@pytest.mark.slow
def test_other_layers_and_adapters(folder: Path) -> None:
    said = run_blocks("Other layers and adapters", folder)
    assert options(folder, "layers")["adapter"] == ["soldier", "soldier", "officer", "officer"]
    assert options(folder, "layers")["feature_map_idx"] == [0, 1, 3, 4]
    assert "SOWA, soldier-bottleneck adapters" in said
    assert "equals what training recorded" in said


@pytest.mark.slow
def test_other_prompts(folder: Path) -> None:
    run_blocks("Other prompts", folder)
    assert options(folder, "plain")["plain_templates"] == "ensemble"
    assert options(folder, "phrases")["anomaly_templates"] == ["damaged {}", "broken {}"]


@pytest.mark.slow
def test_new_data(folder: Path) -> None:
    assert "train on woven" in run_blocks("New data", folder)
    assert (folder / "parts" / "meta.json").is_file()


@pytest.mark.slow
def test_another_metric_every_picture(folder: Path) -> None:
    said = run_blocks("Another metric, every picture", folder)
    metrics = json.loads((folder / "runs" / "metric" / "run.json").read_text())["metrics"]
    assert 0 <= metrics["found_at_no_false_alarm"] <= 1
    assert "found_at_no_false_alarm" in (folder / "runs" / "metric" / "classes.csv").read_text()
    assert "equals what training recorded" in said
    pictures, again = (sorted((folder / name).rglob("*.png")) for name in ("pictures", "more"))
    assert [path.name for path in pictures] == [path.name for path in again]
    assert len(pictures) == int(re.findall(r"(\d+) pictures", said)[0]) > 0
    width, height = Image.open(pictures[0]).size
    assert width == 3 * height


@pytest.mark.slow
def test_few_shot_memory(folder: Path) -> None:
    assert "torch.Size([2, 128, 128])" in run_blocks("Few-shot memory", folder)


def test_every_change_of_the_document_is_there() -> None:
    assert list(CHANGES) == [
        "Other layers and adapters", "Other prompts", "New data", "Another metric, every picture", "Few-shot memory",
    ]  # fmt: skip
