"""What holds for every frozen encoder: it stays frozen, keeps no state nobody asked for, and runs under autocast."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomaly_lib.backbones import FrozenBackbone, create_backbone

FAMILIES = ["tiny-clip", "resnet18", "timm:mobilenetv2_100", "timm:test_vit", "tiny-dinov2"]
TRANSFORMERS = ["tiny-dinov2", "tiny-dinov3", "tiny-vjepa2", "tiny-ast", "tiny-bert"]


def images(net: FrozenBackbone) -> Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)


def make(name: str, **options: Any) -> FrozenBackbone:
    size = 64 if name.startswith("timm") else None
    return create_backbone(name, weights="random", image_size=size, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_network_stays_frozen_and_in_eval_mode(name: str) -> None:
    backbone = make(name, layers=("pooled",))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    first = backbone.encode(images(backbone))["pooled"]
    parent = nn.Sequential(backbone).train()
    assert parent.training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    again = backbone.encode(images(backbone))["pooled"]
    assert again.equal(first)
    assert not again.requires_grad
    assert all(value.equal(before[key]) for key, value in backbone.state_dict().items())  # batch statistics too


def test_bfloat16_autocast_stays_near_float32() -> None:
    backbone = make("tiny-clip", layers=(1, 3, "pooled", "patch_tokens", "vv_tokens"))
    want = backbone.encode(images(backbone))
    with torch.autocast("cpu", torch.bfloat16):
        found = backbone.encode(images(backbone))
    for name, value in want.items():
        error = (found[name].float() - value).norm() / value.norm()
        assert 1e-5 < error < 0.02, name


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_run_fused_attention(name: str) -> None:
    assert make(name).net.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["tiny-clip", "resnet18"])
def test_a_pass_answers_only_what_was_asked(name: str) -> None:
    backbone = make(name, layers=("layer1",) if name == "resnet18" else (1,))
    assert tuple(backbone._encode(images(backbone))) == backbone.outputs


@pytest.mark.parametrize("name", ["timm:test_vit", "tiny-dinov2"])
def test_a_pass_frees_the_states_nobody_asked_for(name: str) -> None:
    from anomaly_lib.backbones.huggingface import block_list

    backbone: Any = make(name, layers=("pooled",))
    timm = name.startswith("timm")
    blocks = backbone.net.blocks if timm else block_list(backbone.net)
    end = backbone.net.norm if timm else backbone.net.layernorm
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(_module: nn.Module, _inputs: object, output: Any) -> None:
        alive.append(sum(state() is not None for state in seen))
        seen.append(weakref.ref(output if isinstance(output, Tensor) else output[0]))

    for block in [*blocks, end]:
        block.register_forward_hook(watch)
    backbone.encode(images(backbone))
    assert len(alive) == len(blocks) + 1
    assert max(alive) <= 1  # the input of what has just run


@pytest.mark.parametrize("name", ["tiny-dinov2", "tiny-dinov3", "timm:test_vit"])
def test_normed_outputs_are_the_blocks_behind_the_final_norm(name: str) -> None:
    backbone = make(name, layers=("normed.0", 0, "normed.-1", "patch_tokens"))
    found = list(backbone.encode(images(backbone)).values())
    norms = [m for n, m in backbone.named_modules() if n in ("net.norm", "net.layernorm")]
    assert found[0].equal(norms[0](found[1]))
    assert not found[0].equal(found[1])
    assert found[2].equal(found[3])
    alone = make(name, layers=("normed.0",)).encode(images(backbone))
    assert list(alone) == ["normed.0"]
