"""The fused steps against open twins made of autograd's own pieces."""

import pytest
import torch
from torch import Tensor, nn

from anomaly_lib.ops import gated_message as fused
from anomaly_lib.ops.graph import bond_cosine, line_graph, pad_segments, radial_basis, segment_mean

NODES, EDGES, CHANNELS = 6, 23, 5


@pytest.fixture(autouse=True, params=[8, 1 << 18], ids=["many blocks", "one block"])
def _block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_BLOCK_ELEMENTS", request.param)


def edges() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(0, NODES, (EDGES,), generator=generator)
    target = torch.randint(0, NODES - 1, (EDGES,), generator=generator).sort()[0]  # the last node receives nothing
    return source, target


def open_messages(send: Tensor, receive: Tensor, value: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
    source, target = edges()
    message = send[source] + receive[target] + edge
    rows = []
    for node in range(NODES):
        arriving = [i for i in range(EDGES) if target[i] == node]
        gate = torch.sigmoid(message[arriving])
        rows.append((gate * value[source[arriving]]).sum(0) / (gate.sum(0) + 1e-6))
    return message, torch.stack(rows)


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(NODES, CHANNELS)] * 3 + [(EDGES, CHANNELS)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def test_messages_equal_the_loop_forward_and_backward() -> None:
    given = inputs()
    want = open_messages(*given)
    have = fused.gated_messages(*given[:3], given[3] * 1, *edges())
    weights = [torch.randn_like(part) for part in want]
    for one, other in zip(have, want, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(have[1][-1], torch.zeros(CHANNELS, dtype=torch.float64))
    loss_want = sum((w * part).sum() for w, part in zip(weights, want, strict=True))
    loss_have = sum((w * part).sum() for w, part in zip(weights, have, strict=True))
    for one, other in zip(torch.autograd.grad(loss_have, given), torch.autograd.grad(loss_want, given), strict=True):
        torch.testing.assert_close(one, other)


def test_gradient_without_the_edge_output() -> None:
    given = inputs()
    have = torch.autograd.grad(fused.gated_messages(*given[:3], given[3] * 1, *edges())[1].square().sum(), given)
    want = torch.autograd.grad(open_messages(*given)[1].square().sum(), given)
    for one, other in zip(have, want, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_batch_norm_silu_equals_torch(training: bool, residual: bool) -> None:
    mine, torchs = nn.BatchNorm1d(CHANNELS).double(), nn.BatchNorm1d(CHANNELS).double()
    for norm in (mine, torchs):
        norm.load_state_dict(
            {
                "weight": torch.linspace(0.5, 2, CHANNELS),
                "bias": torch.linspace(-1, 1, CHANNELS),
                "running_mean": torch.linspace(-2, 2, CHANNELS),
                "running_var": torch.linspace(0.5, 3, CHANNELS),
                "num_batches_tracked": torch.tensor(7),
            }
        )
        norm.train(training)
    x = (torch.randn(EDGES, CHANNELS, dtype=torch.float64) * 3 + 5).requires_grad_()
    old = torch.randn(EDGES, CHANNELS, dtype=torch.float64, requires_grad=True) if residual else None
    have = fused.batch_norm_silu(x, mine, old)
    want = nn.functional.silu(torchs(x)) + (0 if old is None else old)
    torch.testing.assert_close(have, want)
    weight = torch.randn_like(want)
    wanted = [x, *([] if old is None else [old])]
    have_grads = torch.autograd.grad((have * weight).sum(), [*wanted, mine.weight, mine.bias])
    want_grads = torch.autograd.grad((want * weight).sum(), [*wanted, torchs.weight, torchs.bias])
    for one, other in zip(have_grads, want_grads, strict=True):
        torch.testing.assert_close(one, other)
    for key, value in torchs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[key], value)


def test_statistics_far_from_zero_do_not_cancel() -> None:
    x = torch.randn(4096, 3) + 1e4
    mean, variance = fused.column_statistics(x)
    want_variance, want_mean = torch.var_mean(x.double(), 0, correction=0)
    torch.testing.assert_close(mean.double(), want_mean, rtol=1e-6, atol=1e-2)
    torch.testing.assert_close(variance.double(), want_variance, rtol=2e-2, atol=0)


def test_line_graph_by_loops() -> None:
    source, target = edges()
    links = [(a, b) for b in range(EDGES) for a in range(EDGES) if target[a] == source[b]]
    leader, follower = line_graph(source, target, NODES)
    assert list(zip(leader.tolist(), follower.tolist(), strict=True)) == links
    leader, follower = line_graph(source, target, NODES, keep_self_links=False)
    assert list(zip(leader.tolist(), follower.tolist(), strict=True)) == [(a, b) for a, b in links if a != b]


def test_angles_radial_basis_and_segments() -> None:
    vectors = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0, 2.0, 0], [3.0, 0, 0]])
    leader, follower = torch.tensor([0, 0, 0]), torch.tensor([1, 2, 3])
    torch.testing.assert_close(bond_cosine(vectors, leader, follower), torch.tensor([1.0, 0.0, -1.0]))
    basis = radial_basis(torch.tensor([2.0]), torch.tensor([0.0, 2.0, 3.0]), 1.5)
    torch.testing.assert_close(basis, torch.exp(-1.5 * torch.tensor([[4.0, 0.0, 1.0]])))
    values, owner = torch.arange(8.0).reshape(4, 2), torch.tensor([0, 0, 2, 2])
    torch.testing.assert_close(segment_mean(values, owner, 3), torch.tensor([[1.0, 2], [0, 0], [5, 6]]))
    padded, mask = pad_segments(values, torch.tensor([0, 1, 1, 1]), 2)
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    torch.testing.assert_close(padded[mask], values)
    assert float(padded[0, 1:].abs().sum()) == 0
