"""From options to a detector, and from a checkpoint back to one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.errors import UserError
from anomaly_lib.models.detectors.draem import Draem
from anomaly_lib.models.detectors.draem_sevnet import DraemSevNet
from anomaly_lib.models.detectors.padim import Padim
from anomaly_lib.models.detectors.patchcore import PatchCore
from anomaly_lib.models.detectors.reverse_distillation import ReverseDistillation
from anomaly_lib.types import Prediction

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
    """The detector of resolved options, every size visible."""
    makers: dict[str, Callable[[Any], nn.Module]] = {
        "patchcore": _patchcore,
        "padim": _padim,
        "reverse_distillation": _reverse_distillation,
        "draem": _draem,
        "draem_sevnet": _sevnet,
    }
    return makers[args.model](args).to(device)


def _patchcore(args: Any) -> nn.Module:
    return PatchCore(
        extractor=make_extractor(args),
        layers=args.layers,
        coreset_ratio=args.coreset_ratio,
        coreset_size=args.coreset_size,
        neighbours=args.neighbours,
        scoring=args.scoring,
        patch_neighbours=args.patch_neighbours,
        squared=args.squared,
        embedding=args.embedding,
        upsample=args.upsample,
        sigma=args.sigma,
        seed=args.seed,
    )


def _padim(args: Any) -> nn.Module:
    return Padim(
        extractor=make_extractor(args),
        features=args.n_features,
        layers=args.layers,
        sigma=args.sigma,
        seed=args.seed,
    )


def _reverse_distillation(args: Any) -> nn.Module:
    try:
        return ReverseDistillation(
            extractor=make_extractor(args),
            backbone=args.backbone,
            layers=args.layers,
            map_mode=args.map_mode,
            sigma=args.sigma,
        )
    except ValueError as error:
        raise UserError(f"--backbone / --layers: {error}") from None


def _draem_options(args: Any) -> dict[str, Any]:
    """What DRAEM and DRAEM-SevNet share."""
    return {
        "channels": args.channels,
        "repair_width": args.repair_width,
        "segment_width": args.segment_width,
        "concat_order": args.concat_order,
        "focal_alpha": None if args.focal_alpha is None or args.focal_alpha < 0 else args.focal_alpha,
    }


def _draem(args: Any) -> nn.Module:
    return Draem(score=args.draem_score, **_draem_options(args))


def _sevnet(args: Any) -> nn.Module:
    return DraemSevNet(
        head_mode=args.severity_head_mode,
        head_pooling=args.severity_head_pooling_type,
        head_hidden=args.severity_head_hidden,
        head_grid=args.severity_head_spatial_size,
        head_attention=args.severity_head_use_spatial_attention,
        combination=args.score_combination,
        combination_weight=args.severity_weight_for_combination,
        severity_weight=args.severity_weight,
        severity_loss=args.severity_loss_type,
        severity_max=args.severity_max,
        severity_target=args.severity_target,
        **_draem_options(args),
    )


class TrainedPart:
    """What a checkpoint of a detector holds: everything but the frozen backbone."""

    def __init__(self, detector: nn.Module) -> None:
        self.detector = detector

    def state_dict(self) -> dict[str, Tensor]:
        return {n: t for n, t in self.detector.state_dict().items() if not n.startswith(FROZEN)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        missing, unexpected = self.detector.load_state_dict(state, strict=False)
        missing = [name for name in missing if not name.startswith(FROZEN)]
        if missing or unexpected:
            raise UserError(f"the checkpoint does not fit this detector: {[*missing, *unexpected][:3]}")


def image_transform(args: Any) -> ImageTransform:
    """All of the image at the detector's size, values 0..1; the backbone's statistics are applied in FrozenFeatures."""
    size = args.image_size[0], args.image_size[1]
    return ImageTransform(
        size=size, resize="stretch", interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )


@torch.no_grad()
def score_batches(detector: nn.Module, batches: Any, device: torch.device) -> Prediction:
    """Scores and maps of many batches of images, on the CPU."""
    detector.eval()
    found: list[Prediction] = [detector(images.to(device)) for images in batches]
    maps = [prediction.map.float().cpu() for prediction in found if prediction.map is not None]
    return Prediction(torch.cat([p.score.float().cpu() for p in found]), torch.cat(maps) if maps else None)
