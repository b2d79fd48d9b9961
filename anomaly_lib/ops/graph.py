"""Small pieces of message passing on directed edge lists sorted by their target."""

import torch
from torch import Tensor

# N nodes, E directed edges u -> v sorted by v, T links of the line graph, C channels


def segment_sum(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Sum of the rows of ``values`` [E, C] that share an ``index`` [E]: [num_segments, C]."""
    return values.new_zeros(num_segments, *values.shape[1:]).index_add_(0, index, values)


def segment_mean(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Mean of the rows of ``values`` [E, C] that share an ``index`` [E]; empty segments give zero."""
    counts = torch.bincount(index, minlength=num_segments).clamp_(min=1).to(values.dtype)
    return segment_sum(values, index, num_segments) / counts.unsqueeze(-1)


def pad_segments(values: Tensor, index: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """Rows [N, C] of an ascending ``index`` [N] as [B, A, C] with zeros behind, and the mask [B, A] of real rows."""
    counts = torch.bincount(index, minlength=num_segments)
    rank = torch.arange(len(index), device=index.device) - (counts.cumsum(0) - counts)[index]
    width = int(counts.max())
    padded = values.new_zeros(num_segments, width, values.shape[-1]).index_put((index, rank), values)
    return padded, torch.arange(width, device=index.device) < counts.unsqueeze(1)


def radial_basis(values: Tensor, centers: Tensor, gamma: float) -> Tensor:
    """exp(-gamma (x - mu_k)^2): [E] -> [E, K]."""
    return torch.exp(-gamma * (values.unsqueeze(-1) - centers).square())


def line_graph(
    source: Tensor, target: Tensor, num_nodes: int, *, keep_self_links: bool = True
) -> tuple[Tensor, Tensor]:
    """Links e1 -> e2 between edges with head(e1) = tail(e2), sorted by e2.

    ``target`` must be sorted, so the edges into a node are one contiguous run and no search is needed. A self-image
    edge follows itself on the way a -> a' -> a''; ``keep_self_links=False`` drops that link, as the original does.
    """
    incoming = torch.bincount(target, minlength=num_nodes)  # [N]
    first_incoming = incoming.cumsum(0) - incoming  # [N]
    links = incoming[source]  # [E] how many edges lead into the tail of each edge
    follower = torch.repeat_interleave(torch.arange(len(source), device=source.device), links)  # [T] e2
    first_link = links.cumsum(0) - links
    rank = torch.arange(len(follower), device=source.device) - first_link[follower]
    leader = first_incoming[source][follower] + rank  # [T] e1
    if keep_self_links:
        return leader, follower
    other = leader != follower
    return leader[other], follower[other]


def bond_cosine(vectors: Tensor, leader: Tensor, follower: Tensor) -> Tensor:
    """Cosine of the angle at the shared atom b of a -> b -> c, between b->a and b->c: [T]; going back gives +1."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    return -(unit[leader] * unit[follower]).sum(-1).clamp(-1.0, 1.0)
