"""The last blocks of an encoder by themselves: on top of what is below them they are the encoder, bit for bit."""

import copy

import pytest
import torch
from torch import Tensor

from anomaly_lib.backbones import FrozenBackbone, create_backbone
from anomaly_lib.backbones.top_blocks import TopBlocks, cut_top
from anomaly_lib.errors import UserError

ASKED = {
    "tiny-dinov2": (0, "prefix.0", 1, "prefix.1"),
    "tiny-dinov3": (0, "prefix.0", 1, "prefix.1"),
    "tiny-vjepa2": ("patch_tokens",),
    "tiny-ast": ("tokens",),
}
SHAPES = {"tiny-vjepa2": (2, 4, 3, 32, 32), "tiny-ast": (2, 64, 32)}


def batch_for(name: str) -> Tensor:
    return torch.randn(SHAPES.get(name, (2, 3, 32, 48)), generator=torch.Generator().manual_seed(0))


def cut(name: str, blocks: int) -> tuple[FrozenBackbone, TopBlocks]:
    backbone = create_backbone(name, weights="random", layers=ASKED[name])
    return backbone, cut_top(backbone, blocks)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("name", sorted(ASKED))
def test_top_of_below_is_the_whole_encoder(name: str, blocks: int) -> None:
    whole = create_backbone(name, weights="random", layers=ASKED[name])
    batch = batch_for(name)
    want = whole.encode(batch)
    below, top = cut(name, blocks)
    low = below.encode(batch)
    found = {**low, **top(low["tokens"], (32, 48))}
    assert set(want) <= {*found, "tokens"}
    for output, tensor in want.items():
        assert torch.equal(found[output], tensor), output
    assert set(top.outputs) == {o for o in whole.outputs if blocks == 2 or not o.endswith(".0")}
    counts = [sum(p.numel() for p in net.parameters()) for net in (whole, below, top)]
    unused = 64 if "dino" in name else 0  # the final norm, which no output of a block passes
    assert counts[0] == counts[1] + counts[2] + unused


@pytest.mark.parametrize("name", sorted(ASKED))
def test_recomputing_gives_the_same_gradients(name: str) -> None:
    below, top = cut(name, 2)
    top.requires_grad_(True).train()
    assert not any(module.training for module in top.modules())
    frugal = copy.deepcopy(top)
    frugal.recompute = True
    state = below.encode(batch_for(name))["tokens"]
    for one in (top, frugal):
        sum(output.square().mean() for output in one(state, (32, 48)).values()).backward()  # type: ignore[union-attr]
    for (path, a), b in zip(top.named_parameters(), frugal.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None, path
        assert torch.equal(a.grad, b.grad), path


def test_what_cannot_be_cut_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^encoder_blocks=3: it runs 2 blocks for what is asked of it$"):
        cut("tiny-ast", 3)
    with pytest.raises(UserError, match=r"^encoder_blocks=2: it runs 1 block"):  # a network ends behind what is asked
        cut_top(create_backbone("tiny-dinov3", weights="random", layers=(0,)), 2)
    with pytest.raises(UserError, match="choose an encoder of transformers"):
        cut_top(create_backbone("tiny-clip", weights="random"), 1)
