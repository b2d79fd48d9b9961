"""Muon: orthogonal updates for matrices, torch's own AdamW for the rest, and a state that survives a checkpoint."""

import copy

import pytest
import torch
from torch import nn

from scripts.demo_backbone.muon import Muon, muon_groups, orthogonalised


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16), (3, 16, 40)])
def test_singular_values_become_equal_and_directions_stay(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 7
    found = orthogonalised(matrix)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.3
    assert values.max() < 1.3
    assert torch.linalg.svdvals(matrix).max() / torch.linalg.svdvals(matrix).min() > values.max() / values.min()
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.mT @ found @ right.mT  # diagonal where the singular vectors are kept
    torch.testing.assert_close(turned, torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1)), atol=1e-4, rtol=0)
    torch.testing.assert_close(orthogonalised(matrix.mT), found.mT, atol=1e-5, rtol=0)


def test_other_parameters_follow_torch_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 12)) for _ in range(2))
    mine = Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.03)
    reference = torch.optim.AdamW([theirs], lr=0.03, betas=(0.9, 0.98), weight_decay=0.1)
    for _ in range(20):
        noise = torch.randn(12)
        ours.grad, theirs.grad = noise.clone(), noise.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)
    assert (ours - torch.linspace(-1, 1, 12)).abs().max() > 0.05


def test_matrices_agree_with_torch_muon() -> None:
    peer = getattr(torch.optim, "Muon", None)
    if peer is None:
        pytest.skip("this torch has no Muon")
    torch.manual_seed(0)
    start = torch.randn(24, 40)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = Muon([{"params": [ours], "weight_decay": 0.1, "muon": True}], lr=0.02)
    reference = peer([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        noise = torch.randn(24, 40)
        ours.grad, theirs.grad = noise.clone(), noise.clone()
        mine.step()
        reference.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # torch works in bfloat16


def test_every_parameter_is_in_one_group_and_state_continues_exactly() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"tower": nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6)), "head": nn.Linear(6, 2)})
    groups = muon_groups(model, model["tower"], 0.05)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, model.parameters()))
    assert [p.shape for p in groups[0]["params"]] == [(8, 6), (6, 8)]
    batch = torch.randn(5, 16, 6)

    def run(net: nn.ModuleDict, optimizer: Muon, steps: range) -> None:
        for index in steps:
            optimizer.zero_grad()
            net["head"](net["tower"](batch[index])).square().mean().backward()
            optimizer.step()

    optimizer = Muon(groups, lr=0.05)
    run(model, optimizer, range(2))
    twin = copy.deepcopy(model)
    other = Muon(muon_groups(twin, twin["tower"], 0.05), lr=0.05)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(model, optimizer, range(2, 5))
    run(twin, other, range(2, 5))
    for one, same in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, same)
