"""From options to a detector's module, what a checkpoint holds of it, and its scores of many batches."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.errors import UserError
from anomaly_lib.models import detectors
from anomaly_lib.models.detectors.configs import READS_BACKBONE
from anomaly_lib.types import Prediction

MODULES = {
    "patchcore": "PatchCore",
    "padim": "Padim",
    "reverse_distillation": "ReverseDistillation",
    "draem": "Draem",
    "draem_sevnet": "DraemSevNet",
}
FROZEN = ("extractor.", "encoder.net.")


class FrozenFeatures(nn.Module):
    """Images 0..1 with one or three channels -> the backbone's maps; the backbone's own normalisation happens here.

    A transformer's patch rows [B, P, C] become maps [B, C, h, w], so that its blocks serve like a ResNet's stages.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.net((images - self.mean) / self.std)  # one channel becomes three by broadcasting
        return {name: x if x.ndim == 4 else x.transpose(1, 2).unflatten(2, self.net.grid) for name, x in found.items()}


def make_extractor(args: Any) -> FrozenFeatures:
    """The frozen network with its normalisation."""
    from anomaly_lib.backbones import create_backbone

    height, width = args.image_size
    backbone = create_backbone(
        args.backbone, weights=args.weights, layers=args.layers, image_size=(height, width), download=args.download
    )
    return FrozenFeatures(backbone, mean=backbone.mean, std=backbone.std)


def build(args: Any, device: torch.device) -> nn.Module:
    """The module that ``args.model`` names, made from the options as they are; not fitted or trained yet."""
    make = getattr(detectors, MODULES[args.model])
    module: nn.Module = make(args, extractor=make_extractor(args)) if args.model in READS_BACKBONE else make(args)
    return module.eval().to(device)


class TrainedPart:
    """What a checkpoint of a detector holds: everything but the frozen backbone."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Tensor]:
        return {n: t for n, t in self.module.state_dict().items() if not n.startswith(FROZEN)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        try:
            missing, unexpected = self.module.load_state_dict(state, strict=False)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"the checkpoint does not fit this detector: {reason[:120]}") from None
        missing = [name for name in missing if not name.startswith(FROZEN)]
        if missing or unexpected:
            raise UserError(f"the checkpoint does not fit this detector: {[*missing, *unexpected][:3]}")


@torch.no_grad()
def score_batches(module: nn.Module, batches: Iterable[Tensor], device: torch.device) -> Prediction:
    """Scores [N], maps [N, H, W] and the scores of branches of many batches of images, on the CPU."""
    module.eval()
    found: list[Prediction] = [module(images.to(device)) for images in batches]
    maps = [prediction.map.float().cpu() for prediction in found if prediction.map is not None]
    branches = [name for name, part in found[0].parts.items() if part.ndim == 1]
    return Prediction(
        score=torch.cat([p.score.float().cpu() for p in found]),
        map=torch.cat(maps) if maps else None,
        parts={name: torch.cat([p.parts[name].float().cpu() for p in found]) for name in branches},
        cell=found[0].cell,
    )
