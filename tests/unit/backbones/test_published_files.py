"""Every named backbone loads a file as published: true shapes, true key names, true container, half precision.

The peer's own network, filled with reproducible random numbers, is the source of the file and of what must come out.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from anomaly_lib.backbones import create_backbone
from anomaly_lib.backbones.huggingface_names import KNOWN
from tests.support.archives import save_archive
from tests.support.published import FORMATS, published

pytestmark = [pytest.mark.slow, pytest.mark.parity]
HEADS = {
    "ast": {"classifier.dense.weight": torch.zeros(527, 768)},
    "bert": {"cls.predictions.bias": torch.zeros(31090)},
}


def filled(net: nn.Module) -> dict[str, Tensor]:
    """The state dict in half precision with small random values that keep a deep network's activations in range."""
    torch.manual_seed(8)
    state = {}
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape)
            scale = value.ndim < 2 and (name.endswith((".weight", "_var", "lambda1", "gamma")) or "logit_scale" in name)
            value = (
                1 + 0.1 * noise.clamp(-3, 3)
                if scale
                else noise / math.sqrt(max(value[0].numel(), 100) if value.ndim else 1)
            )
        state[name] = value.half() if value.is_floating_point() else value
    net.load_state_dict(state)
    net.eval()
    return state


def open_clip_net(name: str, tag: str) -> tuple[Any, str, Callable[[Any], Tensor], tuple[int, ...]]:
    import open_clip

    net: Any = open_clip.create_model(name, pretrained=None, force_quick_gelu=tag == "openai")
    return net, "pooled", net.encode_image, (1, 3, *net.visual.image_size)


def timm_net(name: str) -> tuple[Any, str, Callable[[Any], Tensor], tuple[int, ...]]:
    import timm

    net: Any = timm.create_model(name)  # the published file has the classifier
    return (
        net,
        "pooled",
        lambda x: net.forward_head(net.forward_features(x), pre_logits=True),
        net.pretrained_cfg["input_size"],
    )


def torchvision_net(name: str) -> tuple[Any, str, Callable[[Any], Tensor], tuple[int, ...]]:
    import torchvision.models as zoo

    net: Any = zoo.get_model(name, weights=None)
    body = nn.Sequential(*list(net.children())[:-1])  # without the classifier
    return net, "pooled", lambda x: body(x).mean((2, 3)), (1, 3, 64, 64)


def transformers_net(name: str) -> tuple[Any, str, Callable[[Any], Tensor], tuple[int, ...]]:
    import transformers

    family, config = KNOWN[name].family, dict(KNOWN[name].config)
    stem = {"dinov2": "Dinov2", "dinov3": "DINOv3ViT", "vjepa2": "VJEPA2", "ast": "AST", "bert": "Bert"}[family]
    net: Any = getattr(transformers, f"{stem}Model")(getattr(transformers, f"{stem}Config")(**config))
    more = {"skip_predictor": True} if family == "vjepa2" else {}
    shape = {"dinov2": (1, 3, 70, 70), "dinov3": (1, 3, 64, 64), "vjepa2": (1, 2, 3, 64, 64), "ast": (1, 1024, 128)}
    return net, "tokens", lambda x: net(x, **more).last_hidden_state, shape.get(family, (1, 9))


def as_published(library: str, name: str, state: dict[str, Tensor], folder: Path) -> Path:
    """The file or folder its authors offer."""
    if library == "huggingface":
        family = KNOWN[name].family
        kind, renames, prefix, _ = FORMATS[family]
        inside = {published(key, renames, prefix): value.contiguous() for key, value in state.items()}
        inside |= HEADS.get(family, {})
        (folder / "config.json").write_text(json.dumps({**KNOWN[name].config, "model_type": kind}))
        if family == "bert":
            torch.save(inside, folder / "pytorch_model.bin")
        else:
            save_file(inside, folder / "model.safetensors")
        return folder
    if library == "timm":
        save_file(state, folder / "model.safetensors")
        return folder / "model.safetensors"
    if name.endswith(":openai"):
        save_archive(state, folder / "openai.pt")
        return folder / "openai.pt"
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


CASES = [
    *[("open_clip", name) for name in ("ViT-B-16", "ViT-B-16:openai", "ViT-B-16-plus-240", "ViT-L-14-336:openai")],
    *[("timm", f"vit_{name}") for name in ("tiny_patch16_224", "small_patch14_dinov2", "small_patch16_dinov3")],
    ("timm", "mobilenetv2_100"),
    *[("torchvision", name) for name in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "mobilenet_v2")],
    *[("huggingface", name) for name in ("dinov2-base", "dinov3-vits16", "vjepa2-vitl", "ast-14-14", "matscibert")],
]


@pytest.mark.parametrize(("library", "name"), CASES)
def test_published_file(library: str, name: str, tmp_path: Path) -> None:
    bare, _, tag = name.partition(":")
    makers: dict[str, Callable[[], Any]] = {
        "open_clip": lambda: open_clip_net(bare, tag),
        "timm": lambda: timm_net(name),
        "torchvision": lambda: torchvision_net(name),
        "huggingface": lambda: transformers_net(name),
    }
    net, output, forward, shape = makers[library]()
    path = as_published(library, name, filled(net), tmp_path)
    torch.manual_seed(9)
    batch = torch.randint(1, 31090, shape) if name == "matscibert" else torch.randn(shape)
    batch = batch if batch.ndim > 3 or library == "huggingface" else batch[None]  # timm states [3, H, W]
    with torch.no_grad():
        want = forward(batch)
    loaded = create_backbone(f"timm:{name}" if library == "timm" else name, weights=path, layers=(output,))
    found = loaded.encode(batch)[output]
    assert want.std() > 1e-3
    assert found.shape == want.shape
    assert (found - want).abs().max() <= 5e-5 * want.abs().max()
    assert not loaded.is_random
