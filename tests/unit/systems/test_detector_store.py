"""A frozen network is run once over every image: whatever detector, coreset, seed or shot is tried on its features."""

import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anomaly_lib
from anomaly_lib.backbones import create_backbone
from anomaly_lib.backbones.base import FrozenBackbone
from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.systems.detectors.build import build
from anomaly_lib.systems.detectors.data import open_class
from anomaly_lib.systems.detectors.inputs import Inputs
from anomaly_lib.systems.detectors.normal import NormalImages
from anomaly_lib.systems.detectors.options import Args
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.types import RunResult
from tests.unit.systems.test_detectors import write_class

SMALL = {"backbone": "demo-clip", "weights": None, "layers": ["layer.1"], "image_size": [32, 32], "batch_size": 3}
PICTURES = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3), dtype=np.uint8)
CPU = torch.device("cpu")


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
    assert once == 4 + 4 + 1  # normal and test images; an empty one says what it will cost while the store is empty
    other = [
        train(tmp_path, "b", coreset_size=30),
        train(tmp_path, "c", coreset_size=20, seed=1),
        train(tmp_path, "d", coreset_size=20, shot=4),
        train(tmp_path, "e", model="padim", features=8),
        train(tmp_path, "f", model="anomalydino", rotations=1),
        train(tmp_path, "g", model="subspacead", rotations=0, seed=1),
    ]
    assert sum(encoded) == once
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


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_reverse_distillation_asks_its_teacher_once_for_each_image(
    cache: str, encoded: list[int], tmp_path: Path
) -> None:
    torch.save(create_backbone("resnet18", weights="random").net.state_dict(), tmp_path / "teacher.pth")
    own = {"backbone": "resnet18", "weights": str(tmp_path / "teacher.pth"), "layers": ["layer1", "layer2", "layer3"]}
    own |= {"model": "reverse_distillation", "epochs": 3, "batch_size": 2, "calibration_share": 0.0}
    found = {}
    for kept in ("off", cache):
        encoded.clear()
        result = train(tmp_path, kept, cache=kept, **own)
        count, detector = sum(encoded), anomaly_lib.load(result.checkpoint)
        found[kept] = count, detector.score(detector.items()), detector.model.state_dict()
    assert found["off"][0] - 1 == 4 * 3 + 4  # of four normal images every epoch, and the four of the test
    assert found[cache][0] - 1 == 4 + 4
    assert (found["off"][1].maps == found[cache][1].maps).all()
    assert all(torch.equal(tensor, found[cache][2][name]) for name, tensor in found["off"][2].items())


def test_images_are_decoded_a_few_batches_ahead_of_the_network_and_let_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So memory does not depend on how many there are."""
    monkeypatch.setenv("ANOMALY_LIB_CACHE", str(tmp_path / "cache"))
    write_class(tmp_path, "nut")
    decoded: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    threads: set[int] = set()
    transform, encode = ImageTransform.__call__, FrozenBackbone.encode

    def decode(self: ImageTransform, image: Any) -> torch.Tensor:
        made = transform(self, image)
        decoded.append(weakref.ref(made))
        threads.add(threading.get_ident())
        return made

    def count(self: FrozenBackbone, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        alive.append(sum(one() is not None for one in decoded))
        return encode(self, batch)

    monkeypatch.setattr(ImageTransform, "__call__", decode)
    monkeypatch.setattr(FrozenBackbone, "encode", count)
    args = Args(**{**SMALL, "dataset": "mvtec", "data_path": str(tmp_path), "obj": "nut", "batch_size": 2})
    items = [replace(open_class("mvtec", str(tmp_path), "nut")[1][0], image=picture) for picture in PICTURES]
    normal = NormalImages.of(items, args)
    inputs = Inputs(build(args, CPU), normal.images(args, normal.learn), args, CPU, learnt=True)
    assert len(list(inputs.whole(range(inputs.count), "normal images"))) == len(PICTURES) // 2
    assert len(decoded) == len(PICTURES)
    assert threading.get_ident() not in threads
    assert max(alive) <= 4 * args.batch_size  # those encoded, two batches that wait, one that is being read


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
