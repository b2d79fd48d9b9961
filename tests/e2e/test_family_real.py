"""Detectors without training on the real bottles and the real ViT-Tiny of $ANOMALY_LIB_DATA."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anomaly_lib.backbones import create_backbone
from anomaly_lib.data.base import ImageDataset, Item, select
from anomaly_lib.data.readers import read_mvtec
from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.metrics import auroc
from anomaly_lib.models import detectors

pytestmark = [pytest.mark.data, pytest.mark.slow]
TRANSFORM = ImageTransform(size=(224, 224), resize="stretch", mean=(0.0,) * 3, std=(1.0,) * 3)
LAYERS = {
    "AnomalyDino": ["layer.7"],
    "SubspaceAd": ["layer.5", "layer.6", "layer.7"],
    "VisionAd": ["layer.3", "layer.5", "layer.7"],
    "Rad": ["pooled", "normed.3", "normed.6", "normed.9", "normed.11"],
    "MuSc": ["pooled", "layer.2", "layer.5", "layer.8", "layer.11"],
}


class Extractor(nn.Module):
    """Images 0..1 -> the network's maps and pooled vectors."""

    def __init__(self, root: Path, layers: list[str]) -> None:
        super().__init__()
        weights = root / "weights" / "vit_tiny_patch16_224_imagenet_fp16.pth"
        self.net = create_backbone("timm:vit_tiny_patch16_224", weights=weights, layers=layers)
        self.mean = torch.tensor(self.net.mean).view(-1, 1, 1)
        self.std = torch.tensor(self.net.std).view(-1, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.net((images - self.mean) / self.std)
        return {n: x.mT.unflatten(2, (14, 14)) if x.ndim == 3 else x for n, x in found.items()}


def stack(items: list[Item], key: str = "image") -> Tensor:
    data = ImageDataset(items, transform=TRANSFORM)
    return torch.stack([data[n][key] for n in range(len(data))])


@pytest.mark.parametrize("name", LAYERS)
def test_four_bottles_are_enough(name: str, real_data: Path) -> None:
    items = read_mvtec(real_data / "mvtec_ad", classes=["bottle"])
    tested = select(items, split="test")
    model = getattr(detectors, name)(extractor=Extractor(real_data, LAYERS[name]), layers=LAYERS[name])
    model.fit([stack(select(items, split="train")[:4])])
    images = stack(tested)
    found = [model(some) for some in images.split(len(images) if model.transductive else 8)]
    labels = [item.label for item in tested]
    assert auroc(torch.cat([one.score for one in found]), labels) >= 0.98
    maps, masks = torch.cat([one.map for one in found]), stack(tested, "mask")
    assert auroc(maps.flatten()[::5], masks.flatten()[::5] > 0.5) >= 0.96
