"""The published weights of $ANOMALY_LIB_DATA load by path and see defects."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from anomaly_lib.backbones import create_backbone
from anomaly_lib.data.base import ImageDataset, select
from anomaly_lib.data.readers import read_mvtec
from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.metrics import auroc
from anomaly_lib.ops import nearest_neighbours

pytestmark = [pytest.mark.data, pytest.mark.slow]


def few_shot_auroc(root: Path, name: str, weights: str, output: str, mean: float | None = None) -> float:
    """Image AUROC on bottle: largest distance of a patch to the nearest patch of four normal images."""
    backbone = create_backbone(name, weights=root / "weights" / weights, layers=(output,))
    mean_std = ((mean,) * 3, (mean,) * 3) if mean is not None else (backbone.mean, backbone.std)
    transform = ImageTransform(size=(224, 224), resize="stretch", mean=mean_std[0], std=mean_std[1])
    items = read_mvtec(root / "mvtec_ad", classes=["bottle"])

    def rows(chosen: list) -> Tensor:
        data = ImageDataset(chosen, transform=transform)
        batches = torch.stack([data[i]["image"] for i in range(len(data))]).split(16)
        found = torch.cat([backbone.encode(batch)[output] for batch in batches])
        found = found.flatten(2).transpose(1, 2) if found.ndim == 4 else found  # [N, P, C]
        return torch.nn.functional.normalize(found, dim=-1)

    bank = rows(select(items, split="train")[:4]).flatten(0, 1)
    tested = select(items, split="test")
    patches = rows(tested)
    distances = nearest_neighbours(patches.flatten(0, 1), bank)[0].view(patches.shape[:2])
    return auroc(distances.amax(1), [item.label for item in tested])


def test_vit_tiny_four_shot_bottle(real_data: Path) -> None:
    weights = "vit_tiny_patch16_224_imagenet_fp16.pth"
    assert few_shot_auroc(real_data, "timm:vit_tiny_patch16_224", weights, "layer.7") >= 0.98


def test_resnet18_four_shot_bottle(real_data: Path) -> None:
    weights = "resnet18_imagenet1k_layers1-3_bnfolded.pth"
    assert few_shot_auroc(real_data, "resnet18", weights, "layer3") >= 0.95


def test_mobilenet_four_shot_bottle(real_data: Path) -> None:
    weights = "mobilenet_v2_1.0_224_imagenet_fp16.pth"
    assert few_shot_auroc(real_data, "mobilenet_v2", weights, "features.13", mean=0.5) >= 0.9
