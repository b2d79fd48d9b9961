"""A tiny frozen network and the checks that every detector on frozen features must pass."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_lib.models.detectors.contract import FeatureDetector, Features

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


class TinyNet(nn.Module):
    """Images [N, 3, H, W] -> maps [N, 12, H/8, W/8] of three layers and a pooled vector [N, 12]."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.names = names
        self.stages = nn.ModuleList(nn.Conv2d(3, 12, 8, stride=8) for _ in names)
        self.register_buffer("mean", torch.full((3, 1, 1), 0.45))
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = {
            name: torch.tanh(stage(images - self.mean)) for name, stage in zip(self.names, self.stages, strict=True)
        }
        return maps | {"pooled": next(iter(maps.values())).mean((2, 3))}


def pictures(count: int, size: int = 40, seed: int = 0) -> Tensor:
    """Smooth pictures [count, 3, size, size] with a little noise: alike, none equal."""
    generator = torch.Generator().manual_seed(seed)
    base = F.interpolate(torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)), size=size, mode="bilinear")
    return (base + 0.05 * torch.randn(count, 3, size, size, generator=generator)).clamp(0, 1)


def features_of(detector: FeatureDetector, images: Tensor) -> Features:
    return detector.features_of(images, detector.query_views)


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def check_left_out(make, images: Tensor) -> None:
    """Each image left out of the fit is scored as by a detector that was fitted on the others."""
    size = (images.shape[-2], images.shape[-1])
    fitted = make().fit([images[:2], images[2:]])
    found = fitted.left_out_features(features_of(fitted, images), range(len(images)), size)
    for n in range(len(images)):
        alone = make().fit([torch.cat([images[:n], images[n + 1 :]])])(images[n : n + 1])
        torch.testing.assert_close(found.score[n], alone.score[0], **CLOSE)
        torch.testing.assert_close(found.map[n], alone.map[0], **CLOSE)
    assert not torch.allclose(found.score, fitted(images).score)


def check_planted(detector: FeatureDetector, images: Tensor) -> None:
    """A checkered square raises the image's score, and the map is highest in it."""
    odd = images.clone()
    odd[:, :, 16:24, 24:32] = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    normal, found = detector(images), detector(odd)
    assert (found.score > normal.score).all()
    highest = found.map.flatten(1).argmax(1)
    rows, columns = highest // images.shape[-1], highest % images.shape[-1]
    assert ((rows >= 14) & (rows < 26) & (columns >= 22) & (columns < 34)).all()


def check_saved(make, images: Tensor) -> None:
    """A detector whose state is loaded into a fresh one scores the same."""
    fitted, fresh = make().fit([images]), make()
    fresh.load_state_dict(fitted.state_dict())
    torch.testing.assert_close(fresh(images).map, fitted(images).map, rtol=0, atol=0)
