"""What the five detectors say of themselves and of inputs that do not fit: ValueErrors that name what was expected."""

import re

import pytest
import torch
from torch import nn

from anomaly_lib.models.detectors import Draem, DraemSevNet, Padim, PatchCore, ReverseDistillation
from anomaly_lib.models.detectors.configs import DraemConfig, PatchCoreConfig


class Pyramid(nn.Module):
    """resnet18-shaped maps at 1/4, 1/8 and 1/16 of the image."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = [nn.functional.avg_pool2d(images.mean(1, keepdim=True), 2 ** (i + 1)) for i in (1, 2, 3)]
        return {f"layer{i}": x.repeat(1, 32 * 2**i, 1, 1) for i, x in enumerate(pooled, start=1)}


def made() -> dict[str, nn.Module]:
    images = torch.rand(3, 3, 32, 32)
    return {
        "PatchCore": PatchCore(extractor=Pyramid(), coreset_size=5).fit([images]),
        "Padim": Padim(extractor=Pyramid(), features=3).fit([images]),
        "ReverseDistillation": ReverseDistillation(extractor=Pyramid(), backbone="resnet18").eval(),
        "Draem": Draem(repair_width=2, segment_width=2).eval(),
        "DraemSevNet": DraemSevNet(repair_width=2, segment_width=2, head_hidden=4).eval(),
    }


@pytest.mark.parametrize("name", ["PatchCore", "Padim", "ReverseDistillation", "Draem", "DraemSevNet"])
@torch.no_grad()
def test_images_of_another_shape_or_kind_are_refused(name: str) -> None:
    module = made()[name]
    assert module(torch.rand(2, 3, 32, 32)).map.shape == (2, 32, 32)
    for wrong in (torch.rand(3, 32, 32), torch.rand(2, 4, 32, 32), torch.rand(0, 3, 32, 32)):
        with pytest.raises(ValueError, match=re.escape(f"H, W] expected, got torch.float32 {list(wrong.shape)}")):
            module(wrong)
    with pytest.raises(ValueError, match=r"float images .* got torch.uint8"):
        module(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="expected, got str"):
        module("picture.png")


def test_a_repr_is_one_line_of_options_and_state() -> None:
    for name, module in made().items():
        assert repr(module).startswith(f"{name}(")
        assert "\n" not in repr(module)
    assert "coreset_size=5" in repr(made()["PatchCore"])
    assert repr(made()["PatchCore"]).endswith("; bank [5, 384]")
    assert repr(Padim(extractor=Pyramid())).endswith("; not fitted")
    assert "parameters are trained" in repr(made()["Draem"])


def test_configuration_or_keywords_but_not_both() -> None:
    config = PatchCoreConfig(coreset_size=7)
    assert PatchCore(config, extractor=Pyramid()).config is config
    assert PatchCore(extractor=Pyramid(), coreset_size=7).config == config
    with pytest.raises(ValueError, match="not both"):
        PatchCore(config, extractor=Pyramid(), neighbours=3)
    with pytest.raises(ValueError, match="'neighbors'; did you mean neighbours"):
        PatchCore(extractor=Pyramid(), neighbors=3)
    with pytest.raises(ValueError, match="channels=2: choose from 1, 3"):
        Draem(DraemConfig(channels=2))
    with pytest.raises(ValueError, match=r"severity_max=0\.0: must be positive"):
        DraemSevNet(severity_max=0)
    with pytest.raises(ValueError, match="layers=layer1: Reverse Distillation needs three"):
        ReverseDistillation(extractor=Pyramid(), layers=["layer1"])
    with pytest.raises(ValueError, match="backbone=vit: no decoder"):
        ReverseDistillation(extractor=Pyramid(), backbone="vit")


def test_layers_that_the_extractor_does_not_give_are_named() -> None:
    images = torch.rand(2, 3, 32, 32)
    for module in (PatchCore(extractor=Pyramid(), layers=["layer9"]), Padim(extractor=Pyramid(), layers=["layer9"])):
        with pytest.raises(ValueError, match="layers=layer9: the extractor gives layer1, layer2, layer3"):
            module.fit([images])


def test_losses_want_pairs_that_fit() -> None:
    draem, sevnet = Draem(repair_width=2, segment_width=2), DraemSevNet(repair_width=2, segment_width=2, head_hidden=4)
    images, mask = torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask \[2, 32, 32\] expected beside these images, got \[2, 1, 32, 32\]"):
        draem.losses(images, images, mask[:, None])
    with pytest.raises(ValueError, match=r"clean images \[2, 3, 32, 32\] expected"):
        draem.losses(images, images[:1], mask)
    with pytest.raises(ValueError, match=r"severity \[2\] expected beside these images, got \[3\]"):
        sevnet.losses(images, images, mask, torch.zeros(3))
    with pytest.raises(ValueError, match=r"float images \[B, 1, H, W\] expected"):
        Draem(channels=1, repair_width=2, segment_width=2)(images)
