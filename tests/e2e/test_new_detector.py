"""python -m anomaly_lib new-detector: what it writes runs as it is, in every program; the library stays unchanged."""

import importlib.util
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import anomaly_lib
from anomaly_lib import __main__ as commands
from anomaly_lib.models.detectors import registry
from scripts import train_detector


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    assert commands.main(["new-detector", "my_colours", "--output", str(tmp_path)]) == 0
    yield tmp_path
    registry._ENTRIES.pop("my_colours", None)
    registry._FILES.clear()


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_trains_and_its_own_test_passes(folder: Path) -> None:
    words = ["--plugin", str(folder / "detectors" / "my_colours.py"), "--model", "my_colours", "--no-figures"]
    assert train_detector.main([*words, "--output-dir", str(folder / "run")]) == 0
    detector = anomaly_lib.load(folder / "run" / "checkpoint.pt")
    assert detector.decision is not None
    assert type(detector.model).__name__ == "MyColours"
    demo = folder / "demo"
    assert commands.main(["demo", str(demo)]) == 0
    image = next(iter((demo / "woven" / "test" / "good").iterdir()))
    words = ["predict", str(image), "--checkpoint", str(folder / "run" / "checkpoint.pt")]
    words += ["--output-dir", str(folder / "out")]
    assert commands.main([*words, "--plugin", str(folder / "detectors" / "my_colours.py")]) == 0
    assert len((folder / "out" / "predictions.csv").read_text().splitlines()) == 2
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder / "tests")]
    assert "1 passed" in subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout


def test_its_experiment_has_the_template_s_functions(folder: Path) -> None:
    script = module_of(folder / "multi_domain_hdmap_my_colours-training.py")
    conditions = json.loads((folder / "multi_domain_hdmap_my_colours-exp_condition.json").read_text())
    condition = conditions["experiment_conditions"][0]
    result = script.run_single_my_colours_experiment(condition, str(folder / "log"))
    assert result["status"] == "success"
    assert set(result["target_results"]) == {"domain_B", "domain_C", "domain_D"}

    from anomaly_lib.systems.detectors.hdmap.detector import open_domains
    from anomaly_lib.systems.detectors.hdmap.options import Args

    data = open_domains(Args(model="my_colours", target_domains=["domain_B"]))
    config = condition["config"] | {"target_domains": ["domain_B"]}
    module, detector, best = script.train_my_colours_model_multi_domain(
        data, config, folder / "one", logging.getLogger("test")
    )
    assert module.config.bins == 8
    assert detector.decision is not None
    assert best is None


@pytest.mark.slow
def test_the_queue_runs_every_condition_once(folder: Path) -> None:
    run = folder / "multi_domain_hdmap_my_colours-run.sh"
    root = Path(anomaly_lib.__file__).parents[1]
    environment = {
        "PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "LOG_DIR": str(folder / "log"), "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    first = subprocess.run([str(run)], capture_output=True, text=True, env=environment, cwd=folder, check=True)
    assert first.stdout.count("transfer ratio") == 2
    again = subprocess.run([str(run)], capture_output=True, text=True, env=environment, cwd=folder, check=True)
    assert again.stdout.count("already done") == 2


def test_wrong_names_and_files_that_are_there_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in (
        ("My-Detector", "--name My-Detector: takes lower-case letters"),
        ("padim", "--name padim: there is such a detector already"),
        ("my_colours", "is there already; choose another name or folder"),
    ):
        assert commands.main(["new-detector", name, "--output", str(folder)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["colours", "mean_patch"])
def test_the_examples_of_the_manual_run(name: str, tmp_path: Path) -> None:
    page = (Path(anomaly_lib.__file__).parents[1] / "docs" / "manual" / "own_detector.md").read_text(encoding="utf-8")
    (text,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if f'"{name}"' in block]
    assert len(text.splitlines()) < 60
    (tmp_path / f"{name}.py").write_text(text)
    words = ["--plugin", str(tmp_path / f"{name}.py"), "--model", name, "--no-figures", "--image-size", "64"]
    try:
        assert train_detector.main([*words, "--output-dir", str(tmp_path / "run")]) == 0
        assert anomaly_lib.load(tmp_path / "run" / "checkpoint.pt").decision is not None
    finally:
        registry._ENTRIES.pop(name, None)
