"""ResNets and MobileNetV2 with torchvision's names of parts, so that its weight files fit; for frozen use only.

Importing torchvision costs as much as importing torch (it pulls in torch._dynamo), for five plain networks. A frozen
network's batch norms are linear, so each is a part of the convolution before it: that takes a pass over memory less.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


class Conv(nn.Conv2d):
    """A convolution that does the batch norm behind it as well; in the state the two stay apart."""

    folded_weight: Tensor | None
    folded_bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=False)
        self.register_buffer("folded_weight", None, persistent=False)
        self.register_buffer("folded_bias", None, persistent=False)
        self.norm: tuple[Norm, ...] = ()  # in a tuple: it is no part of this module
        self.folded_from: list[tuple[Tensor, int]] = []

    def fold(self) -> None:
        """Work out the weights of both, if that has not been done for the values there are."""
        (norm,) = self.norm
        assert norm.running_var is not None
        assert norm.running_mean is not None
        parts = [self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]
        known = self.folded_from
        if known and all(
            old is part and version == part._version for (old, version), part in zip(known, parts, strict=True)
        ):
            return
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        self.folded_weight = self.weight.detach() * scale.view(-1, 1, 1, 1)
        self.folded_bias = norm.bias.detach() - norm.running_mean * scale
        self.folded_from = [(part, part._version) for part in parts]

    def forward(self, x: Tensor) -> Tensor:
        if self.folded_weight is None or not torch.compiler.is_compiling():
            self.fold()
        assert self.folded_weight is not None
        return self._conv_forward(x, self.folded_weight, self.folded_bias)


class Norm(nn.BatchNorm2d):
    """A batch norm whose work the convolution before it does."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    widening = 1

    def __init__(self, inputs: int, width: int, *, stride: int, downsample: nn.Module | None, **_: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv(inputs, width, 3, stride=stride), Norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = Conv(width, width, 3), Norm(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(x)).add_(kept))
        return out


class Bottleneck(nn.Module):
    """A 3x3 convolution of few channels between two 1x1, beside a shortcut."""

    widening = 4

    def __init__(self, inputs: int, width: int, *, stride: int, downsample: nn.Module | None, inner: int = 64) -> None:
        super().__init__()
        few = width * inner // 64
        self.conv1, self.bn1 = Conv(inputs, few, 1), Norm(few)
        self.conv2, self.bn2 = Conv(few, few, 3, stride=stride), Norm(few)
        self.conv3, self.bn3 = Conv(few, 4 * width, 1), Norm(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.relu(self.bn3(self.conv3(x)).add_(kept))
        return out


class ResNet(nn.Module):
    """Parts of a residual network (He et al., CVPR 2016): stem, ``layer1``..``layer4`` and a classifier.

    Parts are made, and drawn, in torchvision's order: one seed gives one network in both.
    """

    def __init__(self, block: type[Basic] | type[Bottleneck], counts: tuple[int, ...], *, inner: int = 64) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv(3, 64, 7, stride=2), Norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for stage, count in enumerate(counts):
            width, blocks = 64 * 2**stage, []
            for number in range(count):
                stride = 2 if stage and not number else 1
                wide, shortcut = width * block.widening, None
                if stride != 1 or channels != wide:
                    shortcut = nn.Sequential(Conv(channels, wide, 1, stride=stride), Norm(wide))
                blocks.append(block(channels, width, stride=stride, downsample=shortcut, inner=inner))
                channels = wide
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, 1000)
        finish(self)


class Inverted(nn.Module):
    """Few channels to many, a 3x3 convolution of each, and to few again, beside a shortcut where the sizes allow it."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, factor: int) -> None:
        super().__init__()
        many = inputs * factor
        widen = [activated(inputs, many, 1)] if factor != 1 else []
        each = activated(many, many, 3, stride=stride, groups=many)
        self.conv = nn.Sequential(*widen, each, Conv(many, outputs, 1), Norm(outputs))
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


def activated(inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    made = Conv(inputs, outputs, size, stride=stride, groups=groups)
    return nn.Sequential(made, Norm(outputs), nn.ReLU6(inplace=True))


class MobileNetV2(nn.Module):
    """Parts of MobileNetV2 (Sandler et al., CVPR 2018): ``features.0``..``features.18`` and a classifier."""

    # factor, channels, blocks and first stride of each group
    GROUPS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = [activated(3, 32, 3, stride=2)]
        channels = 32
        for factor, outputs, count, stride in self.GROUPS:
            for number in range(count):
                stages.append(Inverted(channels, outputs, stride=1 if number else stride, factor=factor))
                channels = outputs
        self.features = nn.Sequential(*stages, activated(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))
        finish(self)


def finish(net: nn.Module) -> None:
    """Draw the convolutions and give each the norm that stands behind it."""
    for module in net.modules():
        if isinstance(module, Conv) and not module.weight.is_meta:  # drawing nothing there would import torch._dynamo
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for part, following in pairwise(module.children()):
            if isinstance(part, Conv) and isinstance(following, Norm):
                part.norm = (following,)


CONVNETS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: ResNet(Basic, (2, 2, 2, 2)),
    "resnet34": lambda: ResNet(Basic, (3, 4, 6, 3)),
    "resnet50": lambda: ResNet(Bottleneck, (3, 4, 6, 3)),
    "wide_resnet50_2": lambda: ResNet(Bottleneck, (3, 4, 6, 3), inner=128),
    "mobilenet_v2": MobileNetV2,
}
