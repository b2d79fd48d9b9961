"""Every recipe obeys the contract: it trains at tiny size, its checkpoint opens plainly, its detector answers."""

import dataclasses
import math
from typing import Any

import pytest
import torch

import anomaly_lib
from anomaly_lib.detect.contract import EvaluateArgs
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json
from anomaly_lib.systems.registry import RECIPES, recipe_of
from anomaly_lib.types import RunResult
from scripts.pages.results_page import FinishedRun, result_table

UNTRAINED = set(RECIPES) - {"crystal"}  # systems whose tiny() has a frozen network with random weights
PARTS = ("Args", "build", "train", "predict", "tiny", "load_detector", "evaluate")
SYSTEMS = sorted(RECIPES)


@pytest.mark.parametrize("system", SYSTEMS)
def test_recipe_has_every_part(system: str) -> None:
    missing = [part for part in PARTS if not hasattr(recipe_of(system), part)]
    assert not missing


@dataclasses.dataclass
class Tiny:
    """A recipe's tiny() run."""

    system: str
    args: Any
    result: RunResult


@pytest.fixture(scope="module", params=SYSTEMS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    recipe = recipe_of(request.param)
    args = dataclasses.replace(recipe.tiny(), output_dir=str(tmp_path_factory.mktemp(request.param) / "run"))
    return Tiny(request.param, args, recipe.train(args))


def test_tiny_run_trains_loads_and_repeats(tiny: Tiny) -> None:
    assert tiny.result.metrics
    assert all(math.isfinite(value) for value in tiny.result.metrics.values())
    assert hasattr(anomaly_lib.load(tiny.result.checkpoint), "predict")
    again = recipe_of(tiny.system).train(tiny.args)
    assert again.metrics == tiny.result.metrics  # already done: reported, not repeated


def test_run_and_checkpoints_name_the_weights_of_every_frozen_network(tiny: Tiny) -> None:
    weights = read_json(tiny.result.run_dir / "run.json")["weights"]
    assert weights
    assert all(type(name) is str and type(identity) is str for name, identity in weights.items())
    files = [path for path in tiny.result.run_dir.rglob("*") if path.suffix in (".pt", ".pth")]
    assert files
    for path in files:
        assert torch.load(path, weights_only=True)["extra"]["weights"] == weights


def test_random_weights_are_marked_in_table_evaluation_and_log(tiny: Tiny) -> None:
    folder, untrained = tiny.result.run_dir, tiny.system in UNTRAINED
    record = read_json(folder / "run.json")
    assert ("random" in record["weights"].values()) == untrained
    assert ("random weights" in result_table([FinishedRun(folder, record)]).markdown()) == untrained
    log = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    assert any("random weights" in line and "(untrained" in line for line in log) == untrained
    evaluation = recipe_of(tiny.system).evaluate(tiny.result.checkpoint, EvaluateArgs(device="cpu"))
    assert any("random weights" in note for note in evaluation.notes) == untrained


def test_unknown_system_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="promptad"):
        recipe_of("nothing")
