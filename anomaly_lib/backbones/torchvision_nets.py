"""Convolutional networks of torchvision, cut behind the last stage asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.base import FrozenBackbone, Layer, output_names
from anomaly_lib.backbones.convnets import CONVNETS
from anomaly_lib.backbones.sources import WeightSource, resolve_weights
from anomaly_lib.backbones.weights import file_sha256, load_into, read_state_dict
from anomaly_lib.errors import UserError

RESNETS = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")
NETS = (*RESNETS, "mobilenet_v2")
PUBLISHED = {  # IMAGENET1K_V1; a name ends with the beginning of the file's sha256
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "wide_resnet50_2": "wide_resnet50_2-95faca4d.pth",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
}
ADDRESS = "https://download.pytorch.org/models/"
_STEM = ("conv1", "bn1", "relu", "maxpool")


class TorchvisionBackbone(FrozenBackbone):
    """Stages of a torchvision network: ``layer1``.. of a ResNet, ``features.N`` of MobileNetV2, and ``pooled``."""

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        outputs: Sequence[str],
        weights_id: str,
        image_size: tuple[int, int] | None,
        channels: dict[str, int],
    ) -> None:
        stages = stage_names(name)
        super().__init__(
            name=name,
            outputs=outputs,
            weights_id=weights_id,
            image_size=image_size,
            embed_dim=channels["pooled"],
            width=channels["pooled"],
            interpolation="bilinear",
        )
        self.channels = channels
        self.net = net
        self._stages = stages[: stages_needed(stages, outputs)]
        self.freeze()

    def dim_of(self, output: str) -> int:
        """Channels of one output."""
        return self.channels[output]

    def _encode(self, batch: Tensor) -> dict[str, Tensor]:
        # On a CPU these convolutions are fastest with the channels of a pixel side by side.
        x = batch.contiguous(memory_format=torch.channels_last) if batch.device.type == "cpu" else batch
        if hasattr(self.net, "conv1"):
            for step in _STEM:
                x = self.net.get_submodule(step)(x)
        out: dict[str, Tensor] = {}
        for stage in self._stages:
            x = self.net.get_submodule(stage)(x)  # [B, C, H, W]
            if stage in self.outputs:
                out[stage] = x
        if "pooled" in self.outputs:
            out["pooled"] = x.mean(dim=(2, 3))
        return out


def stage_names(name: str) -> list[str]:
    """Stages of a network in the order they run."""
    if name in RESNETS:
        return [f"layer{index}" for index in range(1, 5)]
    return [f"features.{index}" for index in range(19)]


def stages_needed(stages: Sequence[str], outputs: Sequence[str]) -> int:
    """How many stages must run for ``outputs``."""
    if "pooled" in outputs:
        return len(stages)
    return 1 + max(stages.index(output) for output in outputs)


def create_torchvision(
    name: str,
    *,
    weights: str | Path | None = None,
    layers: Sequence[Layer] | None = None,
    image_size: int | tuple[int, int] | None = None,
    download: bool = False,
) -> TorchvisionBackbone:
    """A frozen torchvision network; weights behind the last stage asked for need not be in the file.

    Default outputs are ``layer2`` and ``layer3`` (PatchCore's choice). Published weights are the IMAGENET1K_V1 ones.
    """
    if name not in NETS:
        raise UserError(f"no torchvision backbone called {name!r}; known: {', '.join(NETS)}")
    path = resolve_weights(name, weights, [WeightSource(url=ADDRESS + PUBLISHED[name])], download=download)
    stages = stage_names(name)
    default = ("layer2", "layer3") if name in RESNETS else ("features.6", "features.13")
    outputs = output_names(layers, depth=0, named=[*stages, "pooled"], default=default, owner=name)
    with torch.random.fork_rng(devices=[]), torch.device("meta" if path else "cpu"):
        torch.manual_seed(0)  # "random" names one network, so that features cached from it stay valid
        net: Any = CONVNETS[name]()
    channels = _trim(net, name, stages[: stages_needed(stages, outputs)])
    if path:
        load_into(net, read_state_dict(path), source=str(path))
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    weights_id = file_sha256(path) if path else "random"
    return TorchvisionBackbone(
        net, name=name, outputs=outputs, weights_id=weights_id, image_size=size or (224, 224), channels=channels
    )


def _trim(net: Any, name: str, kept: Sequence[str]) -> dict[str, int]:
    """Remove everything behind the stages ``kept``; answer the channels of each of them."""
    if name in RESNETS:
        net.fc = nn.Identity()
        for stage in set(stage_names(name)) - set(kept):
            setattr(net, stage, nn.Identity())
    else:
        net.classifier = nn.Identity()
        net.features = net.features[: len(kept)]
    channels = {stage: _out_channels(net.get_submodule(stage)) for stage in kept}
    return {**channels, "pooled": channels[kept[-1]]}


def _out_channels(stage: nn.Module) -> int:
    """Output channels of a stage: those of its last convolution (inverted residuals and ResNet blocks end with one)."""
    convolutions = [m for n, m in stage.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    return convolutions[-1].out_channels
