"""SIGTERM in any phase of any system ends it within five seconds with 130, and the same command ends as if nothing
had happened, bit for bit."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from anomaly_lib.config import to_plain
from anomaly_lib.engine.checkpoint import load_checkpoint
from anomaly_lib.files import read_json
from anomaly_lib.systems.registry import SYSTEMS
from tests.e2e.test_resume import same

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Stopped:
    """A system that is stopped in its phases."""

    system: str
    program: str
    phases: dict[str, str]  # phase -> CALL:MODULE:FUNCTION
    options: dict[str, Any] = field(default_factory=dict)  # beside its tiny() ones


SCORE = "1:anomaly_lib.detect.contract:Detector.score"
DETECTORS = "anomaly_lib.systems.detectors"
WELD = "anomaly_lib.systems.weld"
ENCODE_WELDS = f"2:{WELD}.features:WeldFeatures._to_device"
IN_STORE = {"backbone": "demo-clip", "weights": None, "cache": "disk"}  # features of random weights are not kept
CASES = {
    "promptad": Stopped(
        "promptad",
        "train_cls.py",
        {
            "encoding": "2:anomaly_lib.backbones.clip:ClipBackbone.encode",
            "training": "2:anomaly_lib.systems.promptad.train:step",
            "test": SCORE,
        },
        IN_STORE,
    ),
    "sowa": Stopped(
        "sowa",
        "scripts/sowa/train_sowa.py",
        {
            "encoding": "2:anomaly_lib.backbones.clip:ClipBackbone.encode",
            "training": "2:anomaly_lib.systems.sowa.train:step",
            "test": SCORE,
        },
        IN_STORE,
    ),
    "sowa, epochs chosen": Stopped(
        "sowa",
        "scripts/sowa/train_sowa.py",
        {"choosing": "3:anomaly_lib.systems.sowa.train:class_value"},
        {"train_classes": ["woven", "brushed_metal"], "fast_dev_run": False, "select": "val", "epochs": 1},
    ),
    "causal_film": Stopped(
        "causal_film",
        "train_causal_film.py",
        {"encoding": ENCODE_WELDS, "training": f"2:{WELD}.causal_film.train:step", "test": SCORE},
    ),
    "weld_supcon": Stopped(
        "weld_supcon",
        "scripts/weld/train_supcon.py",
        {"encoding": ENCODE_WELDS, "training": f"2:{WELD}.supcon.train:step", "test": SCORE},
    ),
    "video_ae": Stopped(
        "video_ae",
        "scripts/weld/train_video_ae.py",
        {
            "encoding": f"1:{WELD}.video_ae.clips:ClipEncoder.load",
            "training": f"2:{WELD}.video_ae.train:step",
            "test": SCORE,
        },
    ),
    "crystal": Stopped(
        "crystal",
        "train_with_cross_modal_attention.py",
        {
            "graphs": "1:anomaly_lib.systems.crystal.data.store:_build_chunk",
            "encoding": "1:anomaly_lib.systems.crystal.inputs:encode_texts",
            "training": "5:anomaly_lib.systems.crystal.train:step",
            "test": "3:anomaly_lib.systems.crystal.train:write_scores",
            "baselines": "1:anomaly_lib.systems.crystal.train:_baselines",
        },
        {"compare": True, "cache": "disk"},
    ),
    "hdmap": Stopped(
        "hdmap",
        "tests/support/transfer.py",
        {
            "encoding": "2:anomaly_lib.models.detectors.padim:Padim.embed",
            "validation": f"1:{DETECTORS}.hdmap.train:source_decision",
            "test": f"1:{DETECTORS}.hdmap.detector:TransferDetector.score",
        },
        {"model": "padim"},
    ),
    "padim": Stopped(
        "detectors",
        "scripts/train_detector.py",
        {
            "encoding": "2:anomaly_lib.models.detectors.contract:FeatureDetector.features_of",
            "decision": "1:anomaly_lib.models.detectors.padim:Padim.left_out_features",
            "test": SCORE,
        },
        {"model": "padim"},
    ),
    "reverse_distillation": Stopped(
        "detectors",
        "scripts/train_detector.py",
        {"training": f"4:{DETECTORS}.fitting:step", "test": SCORE},
        {"model": "reverse_distillation", "epochs": 2},
    ),
    "draem": Stopped(
        "detectors",
        "scripts/train_detector.py",
        {"training": f"4:{DETECTORS}.fitting:step", "test": SCORE},
        {"model": "draem", "epochs": 2},
    ),
}


def assert_ended_alike(left: Path, right: Path) -> None:
    """Two run folders hold the same trained tensors, figures and tables."""
    files = sorted(path.relative_to(left) for path in left.rglob("*.pt*"))
    assert files
    for path in files:
        a, b = load_checkpoint(left / path), load_checkpoint(right / path)
        a["history"], b["history"] = ([_without_seconds(row) for row in one["history"]] for one in (a, b))
        for part in a.keys() - {"args", "wandb_run_id"}:
            assert same(a[part], b[part]), (path, part)
    (one,), (other,) = (list(folder.rglob("run.json")) for folder in (left, right))
    assert read_json(one)["metrics"] == read_json(other)["metrics"]


def _without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "seconds"}


def stop_in_each_phase(case: Stopped, folder: Path, phases: list[str]) -> None:
    options = folder / "options.json"
    options.write_text(json.dumps(to_plain(SYSTEMS[case.system].tiny(**case.options))))
    told = [f"{phase}={case.phases[phase]}" for phase in phases]
    helper = ROOT / "tests" / "support" / "stopping.py"
    done = subprocess.run(
        [sys.executable, str(helper), str(ROOT / case.program), str(options), str(folder), *told],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report.pop("straight") == {"code": 0}, (folder / "straight.txt").read_text()[-2000:]
    for phase, found in report.items():
        assert found["code"] == 130, (phase, found)
        assert found["seconds"] < 5, (phase, found)
        assert found["said"].endswith("interrupted (SIGTERM; the same command continues this run)\n"), (phase, found)
        assert found["status"] == ["interrupted"], (phase, found)
        assert found["again"] == 0, (phase, found)
        assert_ended_alike(folder / "straight", folder / phase)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_stopped_in_each_phase_a_run_goes_on_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    stop_in_each_phase(CASES[name], tmp_path, list(CASES[name].phases))


@pytest.mark.parametrize(("name", "phase"), [("promptad", "training")])
def test_one_phase_of_one_system(name: str, phase: str, tmp_path: Path) -> None:
    stop_in_each_phase(CASES[name], tmp_path, [phase])
