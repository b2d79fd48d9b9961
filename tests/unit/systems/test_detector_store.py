"""A frozen network is run once over every image: whatever detector, coreset, seed or shot is tried on its features."""

from pathlib import Path
from typing import Any

import pytest
import torch

import anomaly_lib
from anomaly_lib.backbones.base import FrozenBackbone
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.types import RunResult
from tests.unit.systems.test_detectors import write_class

SMALL = {"backbone": "demo-clip", "weights": None, "layers": ["layer.1"], "image_size": [32, 32], "batch_size": 3}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """How many images each pass of a frozen network saw; the store lies in a folder of this test."""
    monkeypatch.setenv("ANOMALY_LIB_CACHE", str(tmp_path / "cache"))
    seen: list[int] = []
    encode = FrozenBackbone.encode
    monkeypatch.setattr(FrozenBackbone, "encode", lambda self, x: (seen.append(len(x)), encode(self, x))[1])
    return seen


def train(tmp_path: Path, name: str, **changes: Any) -> RunResult:
    """A run on four normal and four test images."""
    if not (tmp_path / "nut").is_dir():
        write_class(tmp_path, "nut")
    system = SYSTEMS["detectors"]
    data = {"dataset": "mvtec", "data_path": str(tmp_path), "obj": "nut", "output_dir": str(tmp_path / name)}
    return system.train(system.tiny(**(SMALL | data | changes)))


def test_another_detector_coreset_seed_or_shot_encodes_nothing(encoded: list[int], tmp_path: Path) -> None:
    first = train(tmp_path, "a", coreset_size=20)
    once = sum(encoded)
    assert once == 4 + 4 + 1  # normal and test images, and an empty one that says what it will cost
    other = [
        train(tmp_path, "b", coreset_size=30),
        train(tmp_path, "c", coreset_size=20, seed=1),
        train(tmp_path, "d", coreset_size=20, shot=4),
        train(tmp_path, "e", model="padim", features=8),
    ]
    assert sum(encoded) == once + len(other)
    assert len({result.metrics["pixel_auroc"] for result in [first, *other]}) > 1


@pytest.mark.parametrize("model", ["patchcore", "padim", "anomalydino"])
def test_scores_with_and_without_store_are_equal_to_the_bit(
    model: str,
    encoded: list[int],
    tmp_path: Path,
) -> None:
    own: dict[str, Any] = {"features": 8} if model == "padim" else {"rotations": 2} if model == "anomalydino" else {}
    found = []
    for cache in ("off", "disk", "disk"):  # not kept, kept, and read back
        result = train(tmp_path, f"{cache}{len(found)}", model=model, cache=cache, **own)
        detector = anomaly_lib.load(result.checkpoint)
        scores = detector.score(detector.items())
        found.append((scores.scores, scores.maps, detector.decision.normal))
    for scores, maps, normal in found[1:]:
        assert (scores == found[0][0]).all()
        assert (maps == found[0][1]).all()
        assert normal == found[0][2]


def test_what_is_predicted_is_what_was_evaluated(encoded: list[int], tmp_path: Path) -> None:
    detector = anomaly_lib.load(train(tmp_path, "a", coreset_size=20).checkpoint)
    selection = detector.items()
    scores = detector.score(selection)
    images = torch.stack([selection.beside[i]["image"] for i in range(4)])
    torch.testing.assert_close(detector.predict(images).score, torch.from_numpy(scores.scores), rtol=1e-6, atol=0)


def test_the_images_of_a_shot_are_drawn_by_seed_and_listed(encoded: list[int], tmp_path: Path) -> None:
    from anomaly_lib.files import read_json

    runs = [
        train(tmp_path, f"s{seed}{again}", shot=3, seed=seed, coreset_size=20) for seed in (0, 1) for again in (0, 1)
    ]
    drawn = [read_json(result.run_dir / "run.json")["support"] for result in runs]
    assert [len(set(one)) for one in drawn] == [3] * 4
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]
    assert len(anomaly_lib.load(runs[0].checkpoint).decision.normal) == 3
