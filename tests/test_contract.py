"""Every system obeys the contract: it trains at tiny size, opens and closes its run alike, and its detector answers."""

import csv
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anomaly_lib
from anomaly_lib.__main__ import main
from anomaly_lib.detect.choice import EVERYWHERE, Choice
from anomaly_lib.detect.contract import Detector
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.detect.scores import Scores, summary
from anomaly_lib.engine.checkpoint import save_checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.types import Prediction, RunResult
from scripts.pages.results_page import FinishedRun, result_table

UNTRAINED = set(SYSTEMS) - {"crystal"}  # systems whose tiny() has a frozen network with random weights
UNDECIDED = {"crystal"}  # systems whose tiny() ends without a decision: a property is neither normal nor anomalous
OTHER: dict[str, Any] = {"dataset": "mvtec", "obj": "nut", "shot": 3, "on_error": "skip"}  # none is a default


@dataclass
class Tiny:
    """A system's tiny() run, and what it said."""

    system: str
    args: Any
    result: RunResult
    log: list[str]


@pytest.fixture(scope="module", params=sorted(SYSTEMS))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    system = SYSTEMS[request.param]
    args = system.tiny(output_dir=str(tmp_path_factory.mktemp(request.param) / "run"))
    result = system.train(args)
    lines = (result.run_dir / "log.txt").read_text(encoding="utf-8").splitlines()
    return Tiny(request.param, args, result, [line[20:] for line in lines])  # without the time


@pytest.fixture(scope="module")
def detector(tiny: Tiny) -> Detector:
    return anomaly_lib.load(tiny.result.checkpoint)


@pytest.fixture(scope="module")
def scores(detector: Detector) -> Scores:
    return detector.score(detector.items())


def test_opening_epochs_and_closing(tiny: Tiny) -> None:
    log = tiny.log
    assert any(line.startswith("data: ") for line in log[:6])
    assert any("BUILT-IN" in line.upper() for line in log[:6] if line.startswith("data: "))
    assert any(line.startswith("device: ") for line in log[:12])
    frozen = [line for line in log if line.startswith("frozen: ")]
    assert len(frozen) == len(read_json(tiny.result.run_dir / "run.json")["weights"])
    if getattr(tiny.args, "epochs", 0) > 1:
        epochs = [line for line in log if line.startswith("epoch ")]
        assert epochs[0].startswith(f"epoch 1/{tiny.args.epochs}: ")
        assert "s left)" in epochs[0]
    closing = log[-6:]
    for start in ("result: ", "run folder: ", "checkpoint: ", "next: "):
        assert sum(line.startswith(start) for line in closing) == 1, (start, closing)
    assert str(tiny.result.checkpoint) in "\n".join(closing)


def test_a_finished_run_says_so_and_repeats_its_closing(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.result.metrics
    assert all(math.isfinite(value) for value in tiny.result.metrics.values())
    again = SYSTEMS[tiny.system].train(tiny.args)
    assert again.already_done
    assert again.metrics == tiny.result.metrics
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("already done: ")
    assert said[1:] == read_json(tiny.result.run_dir / "run.json")["closing"]
    assert said[1].startswith("result: ")


def test_options_of_a_checkpoint_are_those_of_the_run(tiny: Tiny) -> None:
    checkpoint = SYSTEMS.read(tiny.result.checkpoint)
    assert checkpoint.system == tiny.system
    assert SYSTEMS[tiny.system].Args.from_saved(checkpoint.args) == tiny.args


def test_training_and_evaluation_share_one_scoring(tiny: Tiny, detector: Detector, scores: Scores) -> None:
    found = summary(scores, detector.decision)
    shared = set(found) & set(tiny.result.metrics)
    assert shared
    for name in shared:
        assert found[name] == pytest.approx(tiny.result.metrics[name], abs=1e-6, nan_ok=True), name


def test_scores_are_whole(detector: Detector, scores: Scores) -> None:
    count = len(scores)
    assert count > 0
    assert len(set(scores.paths)) == count == len(scores.groups) == len(scores.labels) == len(scores.scores)
    assert np.isfinite(np.asarray(scores.scores)).all()
    if scores.maps is not None:
        assert len(scores.maps) == count
        assert np.isfinite(np.asarray(scores.maps)).all()
    assert scores.system == detector.system


def test_a_choice_acts_or_is_refused(detector: Detector) -> None:
    for f in fields(Choice):
        if f.name in EVERYWHERE | {"split"} or f.name in detector.honours:
            continue
        with pytest.raises(UserError, match=f"^{f.name}={OTHER[f.name]}: has no meaning"):
            detector.items(Choice(**{f.name: OTHER[f.name]}))
    for split in {"train", "val", "test"} - set(detector.splits):
        with pytest.raises(UserError, match=f"^split={split}: "):
            detector.items(Choice(split=split))


@pytest.mark.parametrize("wrong", [None, 3, b"", set(), []])
def test_wrong_inputs_are_refused_in_one_line(detector: Detector, wrong: Any) -> None:
    with pytest.raises(UserError) as refused:
        detector.predict(wrong)
    assert "\n" not in str(refused.value)


def test_images_are_scored_with_the_decision(detector: Detector) -> None:
    if not isinstance(detector, ImageDetector):
        pytest.skip("no image system")
    picture = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    found: Prediction = detector.predict([picture, picture[:, ::-1].copy()])
    assert found.score.shape == (2,)
    one = detector.predict(picture)
    assert torch.allclose(one.score, found.score[:1], atol=1e-5)
    if detector.decision is None:
        assert found.anomalous is None
    else:
        assert found.anomalous.tolist() == (found.score >= detector.decision.threshold).tolist()
    assert found.map is None or 1 <= found.cell <= found.map[0].numel() / 4
    if detector.decision is not None and detector.decision.maxima:
        assert found.region.shape == found.map.shape
        assert ((found.area >= 0) & (found.area <= 1)).all()


def test_tables_of_predictions_have_no_empty_column(
    tiny: Tiny, detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the decision of the training, without one, and with one that `calibrate` adds."""
    if not isinstance(detector, ImageDetector):
        pytest.skip("no image system")
    pictures = tmp_path / "in"
    pictures.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (4, 70, 90, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    checkpoint = SYSTEMS.read(tiny.result.checkpoint)
    extra = {**checkpoint.extra, "decision": None, "decisions": {}}
    bare = save_checkpoint(tmp_path / "bare.pt", {**checkpoint.content, "extra": extra}, system=tiny.system)
    calibrated = tmp_path / "calibrated.pt"
    argv = ["calibrate", "--checkpoint", str(bare), "--normal", str(pictures), "--output", str(calibrated)]
    assert main(argv) == 0
    for place in (tiny.result.checkpoint, bare, calibrated):
        out = tmp_path / f"of {place.stem}"
        capsys.readouterr()
        assert main(["predict", "--checkpoint", str(place), str(pictures), "--out", str(out), "--no-overlays"]) == 0
        first = capsys.readouterr().out.splitlines()[0]
        with (out / "predictions.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == 4
        assert all(value for row in rows for name, value in row.items() if name != "error"), rows
        assert ("anomalous" in rows[0]) != ("no decision" in first), (rows[0], first)
        assert ("anomalous" in rows[0]) == (load_decision(place) is not None)
    assert list(rows[0]) == ["path", "score", "threshold", "p_value", "anomalous", "area", "error"]


def load_decision(path: Path) -> Any:
    return anomaly_lib.load(path).decision


def test_training_ends_with_a_decision_or_says_why_there_is_none(tiny: Tiny, detector: Detector) -> None:
    (line,) = [line for line in tiny.log[-6:] if line.startswith("decision: ")]
    decision = detector.decision
    assert SYSTEMS.read(tiny.result.checkpoint).extra.get("decision") == (decision and decision.plain())
    if decision is None:
        assert line == f"decision: none: {detector.undecided}"
        assert tiny.system in UNDECIDED
        return
    assert tiny.system not in UNDECIDED
    assert line == f"decision: {decision.describe()}"
    if decision.stand_ins:
        assert (decision.false_alarms, tiny.args.shot) == (None, 1)
    else:
        assert decision.false_alarms == max(tiny.args.false_alarms, 1 / (len(decision.normal) + 1))
    if isinstance(detector, ImageDetector):
        assert len(decision.maxima) == len(decision.normal)
        assert decision.map_threshold is not None


def test_every_input_is_decided(tiny: Tiny, detector: Detector) -> None:
    if tiny.system in UNDECIDED:
        pytest.skip("its decision is None, and it says why")
    picture = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    image = isinstance(detector, ImageDetector)
    found = detector.predict([picture, picture] if image else list(detector.items().items[:2]))
    assert found.anomalous.tolist() == (found.score.double() >= detector.decision.threshold).tolist()
    assert found.threshold == detector.decision.threshold
    assert (found.region is not None) == image
    if not detector.decision.stand_ins:
        assert bool(((found.p_value > 0) & (found.p_value <= 1)).all())


def test_run_and_checkpoints_name_the_weights_of_every_frozen_network(tiny: Tiny) -> None:
    weights = read_json(tiny.result.run_dir / "run.json")["weights"]
    assert weights
    assert all(type(name) is str and type(identity) is str for name, identity in weights.items())
    files = [path for path in tiny.result.run_dir.rglob("*") if path.suffix in (".pt", ".pth")]
    assert files
    for path in files:
        assert torch.load(path, weights_only=True)["extra"]["weights"] == weights


def test_random_weights_are_marked_in_table_evaluation_and_log(tiny: Tiny, detector: Detector) -> None:
    folder, untrained = tiny.result.run_dir, tiny.system in UNTRAINED
    record = read_json(folder / "run.json")
    assert ("random" in record["weights"].values()) == untrained
    assert ("random weights" in result_table([FinishedRun(folder, record)]).markdown()) == untrained
    assert any("UNTRAINED (random weights" in line for line in tiny.log if line.startswith("frozen: ")) == untrained
    assert any("random weights" in line for line in tiny.log if line.startswith("result: ")) == untrained
    assert any("random weights" in note for note in detector.facts.remarks()) == untrained


def test_averaged_parameters_are_used_or_refused(tiny: Tiny) -> None:
    checkpoint = SYSTEMS.read(tiny.result.checkpoint)
    system = SYSTEMS[tiny.system]
    if checkpoint.get("ema") is None:
        with pytest.raises(UserError, match="ema"):
            system.load(checkpoint, which="ema")
    else:
        raw, averaged = (system.load(checkpoint, which=which) for which in ("raw", "ema"))
        assert raw.score(raw.items()).scores.tolist() != averaged.score(averaged.items()).scores.tolist()


def test_unknown_system_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="promptad"):
        SYSTEMS["nothing"]
