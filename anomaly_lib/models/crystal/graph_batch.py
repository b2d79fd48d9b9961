"""Several crystal graphs as one: concatenation with offsets, and the line graph, made when a batch is made."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from anomaly_lib.errors import UserError
from anomaly_lib.ops.graph import line_graph


class GraphArrays(Protocol):
    """The arrays of one crystal's graph (`systems/crystal/data/graph.py` makes them)."""

    @property
    def numbers(self) -> Any: ...  # [N] atomic numbers
    @property
    def source(self) -> Any: ...  # [E]
    @property
    def target(self) -> Any: ...  # [E] ascending
    @property
    def vectors(self) -> Any: ...  # [E, 3]


@dataclass(frozen=True)
class GraphBatch:
    """B crystals, N atoms, E directed edges sorted by target, T links between edges sorted by the second edge."""

    numbers: Tensor  # [N] atomic numbers
    owner: Tensor  # [N] which crystal an atom belongs to, ascending
    source: Tensor  # [E]
    target: Tensor  # [E] ascending
    vectors: Tensor  # [E, 3] source -> target, Angstrom
    leader: Tensor  # [T] e1 of e1 -> e2
    follower: Tensor  # [T] e2, ascending
    num_crystals: int

    def to(self, device: torch.device | str) -> "GraphBatch":
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "num_crystals"}
        return replace(self, **moved)

    @property
    def atom_counts(self) -> Tensor:
        """Atoms of each crystal: [B]."""
        return torch.bincount(self.owner, minlength=self.num_crystals)


def check_graph(graph: Any) -> None:
    """Refuse what is no batch of graphs, in words."""
    if not isinstance(graph, GraphBatch):
        raise UserError(f"graph: expected a GraphBatch (batch_graphs([graph, ...])), got {type(graph).__name__}")


def batch_graphs(graphs: Sequence[GraphArrays], *, keep_self_links: bool = True) -> GraphBatch:
    """One batch from many graphs. Line graphs are never stored: they are large (17 links an edge) and quick to make."""
    atoms = np.array([len(graph.numbers) for graph in graphs])
    edges = np.array([len(graph.source) for graph in graphs])
    shift = np.repeat(np.cumsum(atoms) - atoms, edges)
    source = torch.from_numpy(np.concatenate([graph.source for graph in graphs]) + shift)
    target = torch.from_numpy(np.concatenate([graph.target for graph in graphs]) + shift)
    leader, follower = line_graph(source, target, int(atoms.sum()), keep_self_links=keep_self_links)
    return GraphBatch(
        numbers=torch.from_numpy(np.concatenate([graph.numbers for graph in graphs]).astype(np.int64)),
        owner=torch.from_numpy(np.repeat(np.arange(len(graphs)), atoms)),
        source=source,
        target=target,
        vectors=torch.from_numpy(np.concatenate([graph.vectors for graph in graphs])),
        leader=leader,
        follower=follower,
        num_crystals=len(graphs),
    )
