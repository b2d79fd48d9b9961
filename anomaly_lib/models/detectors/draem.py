"""DRAEM (Zavrtanik et al., ICCV 2021): repair the image, then segment what the repair changed.

Module names follow the published checkpoints.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.data.synthesis import Damaged, perlin_damage
from anomaly_lib.losses import focal_loss, ssim_loss
from anomaly_lib.models.detectors.configs import DraemConfig, DraemNetConfig, summary_of
from anomaly_lib.models.detectors.shapes import check_images, check_shape, parameter_count
from anomaly_lib.ops.patches import pad_to_multiple
from anomaly_lib.types import Prediction

STRIDE = 32  # five halvings, undone by exact doublings


def double_conv(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    def half(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]

    return nn.Sequential(*half(inputs, middle), *half(middle, outputs))


def enlarge(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class RepairEncoder(nn.Module):
    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        sizes = [channels, width, 2 * width, 4 * width, 8 * width, 8 * width]
        for i in range(5):
            self.add_module(f"block{i + 1}", double_conv(sizes[i], sizes[i + 1], sizes[i + 1]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.get_submodule("block1")(x)
        for i in range(2, 6):
            x = self.get_submodule(f"block{i}")(F.max_pool2d(x, 2))
        return x


class RepairDecoder(nn.Module):
    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        w = width
        for i, (wide, narrow) in enumerate([(8 * w, 4 * w), (4 * w, 2 * w), (2 * w, w), (w, w)], start=1):
            self.add_module(f"up{i}", enlarge(wide, wide))
            self.add_module(f"db{i}", double_conv(wide, wide, narrow))
        self.fin_out = nn.Sequential(nn.Conv2d(w, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, 5):
            x = self.get_submodule(f"db{i}")(self.get_submodule(f"up{i}")(x))
        return self.fin_out(x)


class ReconstructiveSubNetwork(nn.Module):
    """Image with a defect -> image without: a plain autoencoder, no skip connections."""

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        self.encoder = RepairEncoder(channels=channels, width=width)
        self.decoder = RepairDecoder(channels=channels, width=width)

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))


class SegmentEncoder(nn.Module):
    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        sizes = [channels, width, 2 * width, 4 * width, 8 * width, 8 * width, 8 * width]
        for i in range(6):
            self.add_module(f"block{i + 1}", double_conv(sizes[i], sizes[i + 1], sizes[i + 1]))

    def forward(self, x: Tensor) -> list[Tensor]:
        """act1 .. act6."""
        activations = [self.get_submodule("block1")(x)]
        for i in range(2, 7):
            activations.append(self.get_submodule(f"block{i}")(F.max_pool2d(activations[-1], 2)))
        return activations


class SegmentDecoder(nn.Module):
    def __init__(self, *, classes: int, width: int) -> None:
        super().__init__()
        w = width
        # name, channels in, after up, skip, out
        steps = [("_b", 8, 8, 8, 8), ("1", 8, 4, 8, 4), ("2", 4, 2, 4, 2), ("3", 2, 1, 2, 1), ("4", 1, 1, 1, 1)]
        self.names = [name for name, *_ in steps]
        for name, inputs, up, skip, out in steps:
            self.add_module(f"up{name}", enlarge(inputs * w, up * w))
            self.add_module(f"db{name}", double_conv((up + skip) * w, out * w, out * w))
        self.fin_out = nn.Sequential(nn.Conv2d(w, classes, 3, padding=1))

    def forward(self, activations: Sequence[Tensor]) -> Tensor:
        x = activations[-1]
        for name, skip in zip(self.names, reversed(activations[:-1]), strict=True):
            x = self.get_submodule(f"db{name}")(torch.cat([self.get_submodule(f"up{name}")(x), skip], dim=1))
        return self.fin_out(x)


class DiscriminativeSubNetwork(nn.Module):
    """Image and repair -> logits of (background, anomaly): a U-Net."""

    def __init__(self, *, channels: int, width: int, classes: int = 2) -> None:
        super().__init__()
        self.encoder_segment = SegmentEncoder(channels=channels, width=width)
        self.decoder_segment = SegmentDecoder(classes=classes, width=width)

    def forward(self, pair: Tensor) -> Tensor:
        return self.decoder_segment(self.encoder_segment(pair))


class Draem(nn.Module):
    """Images [B, C, H, W] in 0..1 -> scores [B] and maps [B, H, W]: a network repairs the image, another one segments
    what the repair changed. Both are trained with `training_losses`, on images that `damage` spoils.

    `concat_order` says which half of the segmentation's input comes first (weights depend on it): anomalib's
    ``image-first`` or the original's ``repair-first``. `score` is the map's maximum (anomalib) or the maximum of its
    21 x 21 mean (original). `focal_alpha` -1 weighs background and anomaly alike, as the paper does; 1 is what
    anomalib with a current kornia computes (no gradient from normal pixels).
    """

    CONFIG: ClassVar[type[DraemNetConfig]] = DraemConfig
    textures: Tensor | None = None  # [T, C, H, W] that damage is made of, read from the folder of that option

    def __init__(self, config: DraemNetConfig | None = None, **options: Any) -> None:
        super().__init__()
        self.config = config = configure(self.CONFIG, config, options)
        channels = config.channels
        self.reconstructive_subnetwork = ReconstructiveSubNetwork(channels=channels, width=config.repair_width)
        self.discriminative_subnetwork = DiscriminativeSubNetwork(channels=2 * channels, width=config.segment_width)
        self.apply(_paper_init)

    def __repr__(self) -> str:
        return summary_of(type(self).__name__, self.CONFIG, self.config, [parameter_count(self)])

    def repair_and_pair(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Repair [B, C, H, W] and both side by side [B, 2C, H, W]."""
        repair = self.reconstructive_subnetwork(images)
        pair = [images, repair] if self.config.concat_order == "image-first" else [repair, images]
        return repair, torch.cat(pair, dim=1)

    def networks(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Repair [B, C, H, W] and logits [B, 2, H, W]; sides that do not divide by 32 are padded and cut again."""
        check_images(images, (self.config.channels,))
        height, width = images.shape[-2:]
        repair, pair = self.repair_and_pair(pad_to_multiple(images, STRIDE))
        logits = self.discriminative_subnetwork(pair)
        return repair[..., :height, :width], logits[..., :height, :width]

    def damage(self, images: Tensor, generator: Generator) -> Damaged:
        """Images [B, C, H, W] with synthetic damage."""
        share = self.config.anomaly_probability
        return perlin_damage(images, probability=share, textures=self.textures, generator=generator)

    def training_losses(self, images: Tensor, generator: Generator) -> dict[str, Tensor]:
        """The terms of the loss of normal images [B, C, H, W]."""
        damaged = self.damage(images, generator)
        return self.losses(damaged.images, images, damaged.mask)

    def losses(self, damaged: Tensor, clean: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Of images with synthetic damage [B, C, H, W], the same undamaged, and where the damage is [B, H, W]."""
        self.check_pairs(damaged, clean, mask)
        repair, logits = self.networks(damaged)
        return self.repair_and_mask_losses(repair, logits, clean, mask)

    def check_pairs(self, damaged: Tensor, clean: Tensor, mask: Tensor) -> None:
        check_images(damaged, (self.config.channels,))
        check_shape("clean images", clean, damaged.shape)
        check_shape("mask", mask, (len(damaged), *damaged.shape[2:]))

    def repair_and_mask_losses(self, repair: Tensor, logits: Tensor, clean: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The terms ``l2``, ``ssim`` and ``focal`` of a repair [B, C, H, W] and logits [B, 2, H, W]."""
        repair, logits = repair.float(), logits.float()
        alpha = self.config.focal_alpha if self.config.focal_alpha >= 0 else None
        focal = focal_loss(logits, mask.long(), gamma=2.0, alpha=alpha, smoothing=1e-5) * self.config.focal_weight
        return {"l2": F.mse_loss(repair, clean), "ssim": ssim_loss(repair, clean), "focal": focal}

    def map_score(self, maps: Tensor) -> Tensor:
        """[B, H, W] -> [B]."""
        if self.config.score == "mean21-max":
            maps = F.avg_pool2d(maps.unsqueeze(1), 21, stride=1, padding=10).squeeze(1)
        return maps.amax((1, 2))

    def forward(self, images: Tensor) -> Prediction:
        repair, logits = self.networks(images)
        maps = logits.softmax(1)[:, 1]
        return Prediction(self.map_score(maps), maps, {"repair": repair})


def _paper_init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def swap_concat_order(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The same weights for the other concat order: swap the input halves of the discriminator's first convolution."""
    name = f"{prefix}discriminative_subnetwork.encoder_segment.block1.0.weight"
    first, second = state[name].chunk(2, dim=1)
    return {**state, name: torch.cat([second, first], dim=1)}
