"""The table of the family: every member is what it says, and runs on the demo backbone."""

import importlib
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from torch import nn

from anomaly_lib import models
from anomaly_lib.backbones import create_backbone
from anomaly_lib.models.detectors.contract import FeatureDetector
from anomaly_lib.models.detectors.family_configs import FAMILY


class Demo(nn.Module):
    """The demo CLIP with maps for tokens."""

    def __init__(self, layers: list[str]) -> None:
        super().__init__()
        self.net = create_backbone("demo-clip", layers=layers)
        self.mean, self.std = (torch.tensor(x).view(-1, 1, 1) for x in (self.net.mean, self.net.std))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.net((images - self.mean) / self.std)
        return {name: x.mT.unflatten(2, self.net.grid) if x.ndim == 3 else x for name, x in found.items()}


def module_of(name: str) -> type[FeatureDetector]:
    file, _, cls = FAMILY[name]["module"].partition(":")
    return getattr(importlib.import_module(f"anomaly_lib.models.detectors.{file}"), cls)


@pytest.mark.parametrize("name", FAMILY)
def test_a_member_is_what_the_table_says(name: str) -> None:
    row = FAMILY[name]
    module = module_of(name)
    assert getattr(models, module.__name__) is module
    assert issubclass(module, FeatureDetector)
    assert {"backbone", "image_size", "batch_size"} == set(row["training"])
    assert set(row["demo"]) <= {f.name for f in fields(row["config"])}
    assert all(f.metadata["raw_help"] for f in fields(row["config"]))


@pytest.mark.parametrize("name", FAMILY)
def test_a_member_runs_on_the_demo_backbone(name: str) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 128, 128) * 0.2 + 0.1 * torch.rand(2, 3, 128, 128) + torch.rand(1, 3, 8, 8).mean()
    config = FAMILY[name]["config"](**FAMILY[name]["demo"])
    detector = module_of(name)(config, extractor=Demo(config.layers)).fit([images])
    features = detector.features_of(images, detector.query_views)
    found = detector.score_features(features, (128, 128))
    assert found.score.shape == (2,)
    assert found.map.shape == (2, 128, 128)
    assert found.score.isfinite().all()
    assert found.map.isfinite().all()
    if detector.least_images is not None:
        others = detector.left_out_features(features, range(2), (128, 128))
        assert others.score.isfinite().all()
        assert not torch.allclose(others.map, found.map)


def test_the_table_loads_no_torch() -> None:
    code = "import sys, anomaly_lib.models.detectors.family_configs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class Answer(nn.Module):
    """A detector's scores and maps as plain tensors."""

    def __init__(self, detector: FeatureDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        found = self.detector(images)
        return found.score, found.map


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_a_fitted_member_is_one_graph(name: str) -> None:
    """What torch.export keeps of it answers as it does itself."""
    config = FAMILY[name]["config"](**FAMILY[name]["demo"])
    detector = module_of(name)(config, extractor=Demo(config.layers)).fit([torch.rand(2, 3, 128, 128)]).eval()
    images = torch.rand(2, 3, 128, 128)
    graph = torch.export.export(Answer(detector), (torch.rand(2, 3, 128, 128),), strict=False).module()
    for found, want in zip(graph(images), Answer(detector)(images), strict=True):
        torch.testing.assert_close(found, want)
