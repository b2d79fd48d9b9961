"""Which values a patch token stands for: against loops, and against what the encoders themselves read."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from anomaly_lib.backbones import create_backbone
from anomaly_lib.backbones.huggingface import HuggingFaceBackbone, _classes
from anomaly_lib.backbones.patches import PatchGrid
from anomaly_lib.errors import UserError

# family, sizes of the network, clips [T, C, H, W] with edges that no patch covers, and the cells along T, H, W
NETS = {
    "dinov2": ({"patch_size": 14, "image_size": 28}, (1, 3, 30, 45), (1, 2, 3)),
    "dinov3": ({"patch_size": 16, "image_size": 32}, (1, 3, 32, 48), (1, 2, 3)),
    "vjepa2": ({"patch_size": 16, "crop_size": 32, "tubelet_size": 2}, (4, 1, 32, 32), (2, 2, 2)),
    "vjepa2 one frame": ({"patch_size": 16, "crop_size": 32, "tubelet_size": 2}, (1, 3, 32, 32), (1, 2, 2)),
    "ast 14": ({"frequency_stride": 14, "time_stride": 14}, (1, 1, 32, 62), (1, 2, 4)),
    "ast 10": ({"frequency_stride": 10, "time_stride": 10}, (1, 1, 38, 47), (1, 3, 4)),
}


def network(name: str) -> HuggingFaceBackbone:
    family = name.split()[0]
    sizes, (_, _, height, width), _ = NETS[name]
    config_class, model_class = _classes(family)
    more: dict[str, Any] = {"num_mel_bins": height, "max_length": width} if family == "ast" else {}
    small = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    small |= {"pred_num_hidden_layers": 1, "pred_hidden_size": 24, "pred_num_attention_heads": 2}
    torch.manual_seed(0)
    return HuggingFaceBackbone(
        model_class(config_class(**small, **sizes, **more)), family=family, name=name, outputs=["patch_tokens"],
        weights_id="random", folder=None,
    )  # fmt: skip


def embedded(net: HuggingFaceBackbone, clips: Tensor) -> Tensor:
    """What the first layer makes of each patch [N, P, C]."""
    owner: Any = net.net.encoder if net.family == "vjepa2" else net.net
    embed = owner.embeddings.patch_embeddings
    if net.family == "vjepa2":
        found = owner.embeddings(clips.expand(-1, -1, 3, -1, -1))
    elif net.family == "ast":
        found = embed(clips[:, 0, 0].transpose(1, 2))
    else:
        found = embed(clips[:, 0])
    return found.flatten(2).transpose(1, 2) if found.ndim == 4 else found


@pytest.mark.parametrize("name", NETS)
def test_cells_equal_a_loop_and_come_in_the_order_of_the_tokens(name: str) -> None:
    net, (_, shape, cells) = network(name), NETS[name]
    grid = PatchGrid.of(net)
    clips = torch.randn(2, *shape)
    assert grid.cells(clips) == cells
    cut = grid.cut(clips)
    steps = min(grid.size[0], shape[0]), *grid.size[1:]
    places = list(itertools.product(*map(range, cells)))
    assert cut.shape == (2, len(places), grid.values(*shape[:2]))
    for index, place in enumerate(places):
        (t, h, w), (dt, dh, dw) = [i * step for i, step in zip(place, steps, strict=True)], steps
        assert torch.equal(cut[:, index], clips[:, t : t + dt, :, h : h + dh, w : w + dw].flatten(1))
        chosen = torch.zeros(2, len(places), dtype=torch.bool)
        chosen[1, index] = True
        looped = torch.zeros(2, shape[0], 1, *shape[2:], dtype=torch.bool)
        looped[1, t : t + dt, :, h : h + dh, w : w + dw] = True
        assert torch.equal(grid.spread(chosen, clips), looped)
        covered = grid.spread(chosen, clips)[1:]
        moved = embedded(net, torch.where(covered, 9.0, clips[1:])) - embedded(net, clips[1:])
        assert index in moved.abs().amax((0, 2)).nonzero()
        if not name.startswith("ast"):  # those of AST overlap
            assert moved.abs().amax((0, 2)).nonzero().flatten().tolist() == [index]
    everything = grid.spread(torch.ones(2, len(places), dtype=torch.bool), clips)
    assert int(everything.sum()) * shape[1] == cut.numel()


def test_published_shapes_and_other_networks() -> None:
    ast = PatchGrid((1, 14, 14), (1, 16, 16))
    assert ast.cells(torch.zeros(1, 1, 1, 128, 1024)) == (1, 9, 73)  # 657 tokens of the published AST
    assert PatchGrid((2, 16, 16), (2, 16, 16)).cells(torch.zeros(1, 64, 1, 256, 256)) == (32, 16, 16)
    assert PatchGrid((1, 14, 14), (1, 14, 14)).cells(torch.zeros(1, 1, 3, 518, 518)) == (1, 37, 37)
    with pytest.raises(UserError, match=r"^tiny-bert: its patches are not known"):
        PatchGrid.of(create_backbone("tiny-bert", weights="random"))
