"""Reverse Distillation (Deng and Li, CVPR 2022): a student decodes the teacher's features from a one-class bottleneck.

Module names follow the published checkpoints. f1, f2, f3 are the teacher's maps at 1/4, 1/8 and 1/16 of the image.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.models.detectors.configs import DECODER_BLOCKS, ReverseDistillationConfig, summary_of
from anomaly_lib.models.detectors.contract import FeatureDetector, Features, Size
from anomaly_lib.models.detectors.shapes import maps_by_image, parameter_count
from anomaly_lib.ops import gaussian_blur
from anomaly_lib.ops.patches import pad_to_multiple
from anomaly_lib.ops.smooth import cell_of, upsample_maps
from anomaly_lib.types import Prediction

BASIC = {"resnet18", "resnet34"}
STRIDE = 32  # of the teacher and the bottleneck together


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


def grow2x2(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Stride-2 transposed convolution: the decoder's mirror of a stride-2 convolution."""
    return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)


class Residual(nn.Module):
    """A ResNet block of two or three (bottleneck) convolutions; ``grow`` doubles the grid instead of halving it."""

    def __init__(
        self, *, inputs: int, planes: int, basic: bool, stride: int = 1, grow: bool = False, width: int = 64
    ) -> None:
        super().__init__()
        outputs = planes if basic else planes * 4
        resized = grow2x2 if grow else lambda i, o: conv3x3(i, o, stride)
        self.conv1: nn.Module
        self.conv2: nn.Module
        if basic:
            self.conv1, self.bn1 = resized(inputs, planes), nn.BatchNorm2d(planes)
            self.conv2, self.bn2 = conv3x3(planes, planes), nn.BatchNorm2d(planes)
        else:
            middle = planes * width // 64
            self.conv1, self.bn1 = conv1x1(inputs, middle), nn.BatchNorm2d(middle)
            self.conv2, self.bn2 = resized(middle, middle), nn.BatchNorm2d(middle)
            self.conv3, self.bn3 = conv1x1(middle, outputs), nn.BatchNorm2d(outputs)
        self.basic = basic
        self.shortcut = "upsample" if grow else "downsample"
        change: nn.Module | None = None
        if grow:
            change = nn.Sequential(grow2x2(inputs, outputs), nn.BatchNorm2d(outputs))
        elif stride != 1 or inputs != outputs:
            change = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
        self.add_module(self.shortcut, change)

    def forward(self, x: Tensor) -> Tensor:
        change = getattr(self, self.shortcut)
        identity = x if change is None else change(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if not self.basic:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + identity)


def stage(
    *, inputs: int, planes: int, blocks: int, basic: bool, stride: int = 1, grow: bool = False, width: int = 64
) -> nn.Sequential:
    first = Residual(inputs=inputs, planes=planes, basic=basic, stride=stride, grow=grow, width=width)
    outputs = planes if basic else planes * 4
    rest = [Residual(inputs=outputs, planes=planes, basic=basic, width=width) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


class Bottleneck(nn.Module):
    """Multi-scale fusion and one-class embedding: f1, f2 at f3's grid, joined and squeezed by a residual stage."""

    def __init__(self, *, basic: bool) -> None:
        super().__init__()
        e = 1 if basic else 4
        self.conv1, self.bn1 = conv3x3(64 * e, 128 * e, 2), nn.BatchNorm2d(128 * e)
        self.conv2, self.bn2 = conv3x3(128 * e, 256 * e, 2), nn.BatchNorm2d(256 * e)
        self.conv3, self.bn3 = conv3x3(128 * e, 256 * e, 2), nn.BatchNorm2d(256 * e)
        # Never used, kept because published checkpoints hold them.
        self.conv4, self.bn4 = conv1x1(1024 * e, 512 * e), nn.BatchNorm2d(512 * e)
        self.conv4.requires_grad_(False)
        self.bn4.requires_grad_(False)
        self.bn_layer = stage(inputs=768 * e, planes=512, blocks=2 if basic else 3, basic=basic, stride=2)
        _kaiming(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        if self.training and len(features[2]) == 1 and max(features[2].shape[2:]) <= 2:
            raise UserError(
                "a batch of one image of at most 32 px has nothing to normalise by: take another batch_size= "
                "(the last batch of an epoch is what the others leave) or a larger image_size="
            )
        first = F.relu(self.bn1(self.conv1(features[0])))
        first = F.relu(self.bn2(self.conv2(first)))
        second = F.relu(self.bn3(self.conv3(features[1])))
        return self.bn_layer(torch.cat([first, second, features[2]], dim=1))


class Decoder(nn.Module):
    """The ResNet in reverse; answers maps of f1's, f2's and f3's shapes."""

    def __init__(self, *, basic: bool, blocks: Sequence[int], width: int = 64) -> None:
        super().__init__()
        e = 1 if basic else 4
        self.layer1 = stage(inputs=512 * e, planes=256, blocks=blocks[0], basic=basic, grow=True, width=width)
        self.layer2 = stage(inputs=256 * e, planes=128, blocks=blocks[1], basic=basic, grow=True, width=width)
        self.layer3 = stage(inputs=128 * e, planes=64, blocks=blocks[2], basic=basic, grow=True, width=width)
        _kaiming(self)

    def forward(self, code: Tensor) -> list[Tensor]:
        third = self.layer1(code)
        second = self.layer2(third)
        return [self.layer3(second), second, third]


def _kaiming(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


class ReverseDistillation(FeatureDetector):
    """Images [B, 3, H, W] -> scores [B] and maps [B, H, W]: where a student fails to rebuild the teacher's features.

    ``ReverseDistillation(extractor=net, backbone="resnet18")``. `extractor`, the frozen teacher: images ->
    {layer: [B, C, h, w]} of three layers at 1/4, 1/8 and 1/16 of the image; the decoder mirrors the ResNet `backbone`.
    Anomaly = 1 - cosine between teacher and student; bottleneck and decoder are trained with `training_losses`.
    """

    def __init__(
        self, config: ReverseDistillationConfig | None = None, *, extractor: nn.Module, **options: Any
    ) -> None:
        super().__init__()
        self.config = config = configure(ReverseDistillationConfig, config, options)
        basic, width = config.backbone in BASIC, 128 if config.backbone.startswith("wide") else 64
        self.extractor = extractor
        self.bottleneck = Bottleneck(basic=basic)
        self.decoder = Decoder(basic=basic, blocks=DECODER_BLOCKS[config.backbone], width=width)

    def __repr__(self) -> str:
        return summary_of("ReverseDistillation", ReverseDistillationConfig, self.config, [parameter_count(self)])

    def support_views(self, images: Tensor) -> Tensor:
        """Padded to sides that divide by 32."""
        return pad_to_multiple(images, STRIDE).unsqueeze(1)

    query_views = support_views

    @property
    def view_names(self) -> tuple[str, str]:
        return ("padded to 32",) * 2

    def teacher_student(self, features: Features) -> tuple[list[Tensor], list[Tensor]]:
        """Three maps each of padded images: [B, C, H/4, W/4], ..."""
        teacher = maps_by_image(features, self.config.layers)
        return teacher, self.decoder(self.bottleneck(teacher))

    def training_losses(self, features: Features, generator: Generator | None = None) -> dict[str, Tensor]:  # noqa: ARG002
        """Per scale, 1 - cosine of the two maps taken as one long vector each, averaged over the batch."""
        teacher, student = self.teacher_student(features)
        return {
            f"cosine_{name}": (1 - F.cosine_similarity(t.flatten(1), s.flatten(1), dim=1)).mean()
            for name, t, s in zip(self.config.layers, teacher, student, strict=True)
        }

    def score_features(self, features: Features, size: Size) -> Prediction:
        teacher, student = self.teacher_student(features)
        height, width = size
        padded = height + -height % STRIDE, width + -width % STRIDE
        maps = [
            upsample_maps(1 - F.cosine_similarity(t, s, dim=1), padded, align_corners=True)[:, :height, :width]
            for t, s in zip(teacher, student, strict=True)
        ]
        stacked = torch.stack(maps)  # [3, B, H, W]
        joined = gaussian_blur(
            stacked.prod(0) if self.config.map_mode == "multiply" else stacked.sum(0), self.config.sigma
        )
        parts = dict(zip(self.config.layers, maps, strict=True))
        return Prediction(joined.amax((1, 2)), joined, parts, cell=cell_of(teacher[0], padded))
