"""ALIGNN in plain PyTorch: atoms, bonds and bond angles pass gated messages (Choudhary and DeCost, 2021).

State-dict names are those of the published code, so its weights load. Two things differ in how, not in what, is
computed: the memory-bound steps are fused (`ops.gated_message`), and edge features that nothing reads
afterwards (after the last angle layer and the last bond layer) are not updated.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from anomaly_lib.models.crystal.elements import NUM_ATOM_FEATURES, atom_feature_table
from anomaly_lib.models.crystal.graph_batch import GraphBatch
from anomaly_lib.ops.gated_message import batch_norm_silu, gated_messages
from anomaly_lib.ops.graph import bond_cosine, radial_basis, segment_mean

# N atoms, E directed bonds, T angles (links between bonds), C hidden channels


class RadialBasis(nn.Module):
    """Gaussians on an even grid; gamma is one over the spacing (not its square), as published."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        super().__init__()
        self.centers: Tensor
        self.register_buffer("centers", torch.linspace(low, high, bins))
        self.gamma = (bins - 1) / (high - low)

    def forward(self, values: Tensor) -> Tensor:
        return radial_basis(values, self.centers, self.gamma)  # [E] -> [E, bins]


class MLPLayer(nn.Module):
    """Linear, batch norm, SiLU."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(in_features, out_features), nn.BatchNorm1d(out_features), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        norm = cast(nn.BatchNorm1d, self.layer[1])  # the activation is fused into it, and listed for the names only
        return batch_norm_silu(self.layer[0](x), norm)


class EdgeGatedGraphConv(nn.Module):
    """x'_v = x_v + SiLU(BN(B_src x_v + gated mean of B_dst x_u)); e'_uv = e_uv + SiLU(BN(m_uv)).

    The published names are kept: `dst_update` acts on the sender, `src_update` on the node itself.
    """

    def __init__(self, features: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.src_gate = nn.Linear(features, features)
        self.dst_gate = nn.Linear(features, features)
        self.edge_gate = nn.Linear(features, features)
        self.src_update = nn.Linear(features, features)
        self.dst_update = nn.Linear(features, features)
        self.bn_nodes = nn.BatchNorm1d(features)
        self.bn_edges = nn.BatchNorm1d(features)
        self.dropout = dropout

    def forward(
        self, x: Tensor, edges: Tensor, source: Tensor, target: Tensor, *, update_edges: bool = True
    ) -> tuple[Tensor, Tensor]:
        """`x` [N, C], `edges` [E, C] -> the same shapes."""
        message, mean = gated_messages(
            self.src_gate(x), self.dst_gate(x), self.dst_update(x), self.edge_gate(edges), source, target
        )
        new_x = self._residual(x, self.src_update(x) + mean, self.bn_nodes)
        return new_x, self._residual(edges, message, self.bn_edges) if update_edges else edges

    def _residual(self, old: Tensor, update: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        if self.dropout == 0.0 or not self.training:
            return batch_norm_silu(update, norm, old)
        return old + nn.functional.dropout(batch_norm_silu(update, norm), self.dropout)


class ALIGNNConv(nn.Module):
    """One convolution over bonds, then one over the line graph that updates bonds from angles."""

    def __init__(self, features: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.node_update = EdgeGatedGraphConv(features, dropout=dropout)
        self.edge_update = EdgeGatedGraphConv(features, dropout=dropout)

    def forward(
        self, x: Tensor, y: Tensor, z: Tensor, graph: GraphBatch, *, update_angles: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Atoms `x` [N, C], bonds `y` [E, C], angles `z` [T, C]."""
        x, message = self.node_update(x, y, graph.source, graph.target)
        y, z = self.edge_update(message, z, graph.leader, graph.follower, update_edges=update_angles)
        return x, y, z


class ALIGNNEncoder(nn.Module):
    """Embeddings and both stacks: a batch of graphs to atom features."""

    def __init__(
        self,
        *,
        alignn_layers: int = 4,
        gcn_layers: int = 4,
        hidden_features: int = 256,
        embedding_features: int = 64,
        edge_bins: int = 80,
        angle_bins: int = 40,
        dropout: float = 0.0,
        learned_elements: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_features = hidden_features
        self.atom_table: Tensor
        self.register_buffer("atom_table", torch.from_numpy(atom_feature_table()), persistent=False)
        # 92 published bits cannot tell some elements apart (La and Ce); a learned row per element can
        self.element_embedding = nn.Embedding(len(self.atom_table), hidden_features) if learned_elements else None
        self.atom_embedding = MLPLayer(NUM_ATOM_FEATURES, hidden_features)
        self.edge_embedding = nn.Sequential(
            RadialBasis(0.0, 8.0, edge_bins),
            MLPLayer(edge_bins, embedding_features),
            MLPLayer(embedding_features, hidden_features),
        )
        self.angle_embedding = nn.Sequential(
            RadialBasis(-1.0, 1.0, angle_bins),
            MLPLayer(angle_bins, embedding_features),
            MLPLayer(embedding_features, hidden_features),
        )
        self.alignn_layers = nn.ModuleList(ALIGNNConv(hidden_features, dropout=dropout) for _ in range(alignn_layers))
        self.gcn_layers = nn.ModuleList(EdgeGatedGraphConv(hidden_features, dropout=dropout) for _ in range(gcn_layers))

    def encode(self, graph: GraphBatch, after_layer: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """Atom features [N, C]. `after_layer(index, atoms)` may replace the atoms after each ALIGNN layer."""
        x = self.atom_embedding(self.atom_table[graph.numbers - 1])
        if self.element_embedding is not None:
            x = x + self.element_embedding(graph.numbers - 1)
        y = self.edge_embedding(torch.linalg.vector_norm(graph.vectors, dim=-1))
        if len(self.alignn_layers):
            z = self.angle_embedding(bond_cosine(graph.vectors, graph.leader, graph.follower))
        for index, layer in enumerate(self.alignn_layers):
            x, y, z = layer(x, y, z, graph, update_angles=index + 1 < len(self.alignn_layers))
            if after_layer is not None:
                x = after_layer(index, x)
        for index, layer in enumerate(self.gcn_layers):
            x, y = layer(x, y, graph.source, graph.target, update_edges=index + 1 < len(self.gcn_layers))
        return x


class ALIGNN(ALIGNNEncoder):
    """Graph-only property prediction: mean over atoms, one linear layer."""

    def __init__(
        self,
        *,
        alignn_layers: int = 4,
        gcn_layers: int = 4,
        hidden_features: int = 256,
        embedding_features: int = 64,
        dropout: float = 0.0,
        learned_elements: bool = False,
    ) -> None:
        super().__init__(
            alignn_layers=alignn_layers,
            gcn_layers=gcn_layers,
            hidden_features=hidden_features,
            embedding_features=embedding_features,
            dropout=dropout,
            learned_elements=learned_elements,
        )
        self.fc = nn.Linear(hidden_features, 1)

    def forward(self, graph: GraphBatch) -> Tensor:
        """One value per crystal: [B]."""
        pooled = segment_mean(self.encode(graph), graph.owner, graph.num_crystals)  # [B, C]
        return self.fc(pooled).squeeze(-1)
