"""ALIGNN in plain PyTorch: atoms, bonds and bond angles pass gated messages (Choudhary and DeCost, 2021).

State-dict names are those of the published code, so its weights load. Two things differ in how, not in what, is
computed: the memory-bound steps are fused (`ops.gated_message`), and edge features that nothing reads
afterwards (after the last angle layer and the last bond layer) are not updated.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.models.crystal.config import ALIGNNConfig
from anomaly_lib.models.crystal.elements import NUM_ATOM_FEATURES, atom_feature_table
from anomaly_lib.models.crystal.graph_batch import GraphBatch, check_graph
from anomaly_lib.ops.gated_message import batch_norm_silu, gated_messages
from anomaly_lib.ops.graph import bond_cosine, radial_basis, segment_mean

# N atoms, E directed bonds, T angles (links between bonds), C hidden channels
EDGE_BINS, ANGLE_BINS = 80, 40


class RadialBasis(nn.Module):
    """Gaussians on an even grid; gamma is one over the spacing (not its square), as published."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        super().__init__()
        self.centers: Tensor
        self.register_buffer("centers", torch.linspace(low, high, bins))
        self.gamma = (bins - 1) / (high - low)

    def forward(self, values: Tensor) -> Tensor:
        return radial_basis(values, self.centers, self.gamma)  # [E] -> [E, bins]


NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def norm_silu(x: Tensor, norm: nn.Module, residual: Tensor | None = None) -> Tensor:
    """``residual + SiLU(norm(x))`` for the rows of ``x`` [E, C]; fused for batch norm."""
    if isinstance(norm, nn.BatchNorm1d):
        return batch_norm_silu(x, norm, residual)
    y = nn.functional.silu(norm(x))
    return y if residual is None else y + residual


class MLPLayer(nn.Module):
    """Linear, norm, SiLU."""

    def __init__(self, in_features: int, out_features: int, *, norm: str = "batch") -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(in_features, out_features), NORMS[norm](out_features), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return norm_silu(self.layer[0](x), self.layer[1])  # the activation is fused, and listed for the names only


class EdgeGatedGraphConv(nn.Module):
    """x'_v = x_v + SiLU(norm(B_src x_v + gated mean of B_dst x_u)); e'_uv = e_uv + SiLU(norm(m_uv)).

    The published names are kept: `dst_update` acts on the sender, `src_update` on the node itself, `bn_*` are norms.
    """

    def __init__(self, features: int, *, dropout: float = 0.0, norm: str = "batch") -> None:
        super().__init__()
        self.src_gate = nn.Linear(features, features)
        self.dst_gate = nn.Linear(features, features)
        self.edge_gate = nn.Linear(features, features)
        self.src_update = nn.Linear(features, features)
        self.dst_update = nn.Linear(features, features)
        self.bn_nodes = NORMS[norm](features)
        self.bn_edges = NORMS[norm](features)
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

    def _residual(self, old: Tensor, update: Tensor, norm: nn.Module) -> Tensor:
        if self.dropout == 0.0 or not self.training:
            return norm_silu(update, norm, old)
        return old + nn.functional.dropout(norm_silu(update, norm), self.dropout)


class ALIGNNConv(nn.Module):
    """One convolution over bonds, then one over the line graph that updates bonds from angles."""

    def __init__(self, features: int, *, dropout: float = 0.0, norm: str = "batch") -> None:
        super().__init__()
        self.node_update = EdgeGatedGraphConv(features, dropout=dropout, norm=norm)
        self.edge_update = EdgeGatedGraphConv(features, dropout=dropout, norm=norm)

    def forward(
        self, x: Tensor, y: Tensor, z: Tensor, graph: GraphBatch, *, update_angles: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Atoms `x` [N, C], bonds `y` [E, C], angles `z` [T, C]."""
        x, message = self.node_update(x, y, graph.source, graph.target)
        y, z = self.edge_update(message, z, graph.leader, graph.follower, update_edges=update_angles)
        return x, y, z


class ALIGNNEncoder(nn.Module):
    """Embeddings and both stacks: a `GraphBatch` to atom features [N, C] (`encode`).

    ``ALIGNNEncoder(config)`` or ``ALIGNNEncoder(hidden_features=64, ...)``, the options of `ALIGNNConfig`.
    """

    def __init__(self, config: ALIGNNConfig | None = None, **options: Any) -> None:
        super().__init__()
        c = self.config = configure(ALIGNNConfig, config, options)
        hidden, norm = c.hidden_features, c.graph_norm
        self.atom_table: Tensor
        self.register_buffer("atom_table", torch.from_numpy(atom_feature_table()), persistent=False)
        # 92 published bits cannot tell some elements apart (La and Ce); a learned row per element can
        self.element_embedding = nn.Embedding(len(self.atom_table), hidden) if c.learned_elements else None
        self.atom_embedding = MLPLayer(NUM_ATOM_FEATURES, hidden, norm=norm)
        self.edge_embedding = nn.Sequential(
            RadialBasis(0.0, 8.0, EDGE_BINS),
            MLPLayer(EDGE_BINS, c.embedding_features, norm=norm),
            MLPLayer(c.embedding_features, hidden, norm=norm),
        )
        self.angle_embedding = nn.Sequential(
            RadialBasis(-1.0, 1.0, ANGLE_BINS),
            MLPLayer(ANGLE_BINS, c.embedding_features, norm=norm),
            MLPLayer(c.embedding_features, hidden, norm=norm),
        )
        self.alignn_layers = nn.ModuleList(
            ALIGNNConv(hidden, dropout=c.graph_dropout, norm=norm) for _ in range(c.alignn_layers)
        )
        self.gcn_layers = nn.ModuleList(
            EdgeGatedGraphConv(hidden, dropout=c.graph_dropout, norm=norm) for _ in range(c.gcn_layers)
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._sizes()}, {sum(p.numel() for p in self.parameters()):,} parameters)"

    def _sizes(self) -> str:
        """What `__repr__` says of the configuration."""
        c = self.config
        return f"{c.alignn_layers} + {c.gcn_layers} layers, {c.hidden_features} channels"

    def encode(self, graph: GraphBatch, after_layer: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """Atom features [N, C]. `after_layer(index, atoms)` may replace the atoms after each ALIGNN layer."""
        check_graph(graph)
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
    """Graph-only property prediction: mean over atoms, one linear layer. A `GraphBatch` of B crystals -> [B].

    ``ALIGNN(config)`` or ``ALIGNN(hidden_features=64, ...)``, the options of `ALIGNNConfig`.
    """

    def __init__(self, config: ALIGNNConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.fc = nn.Linear(self.config.hidden_features, 1)

    def forward(self, graph: GraphBatch) -> Tensor:
        """One value per crystal: [B]."""
        pooled = segment_mean(self.encode(graph), graph.owner, graph.num_crystals)  # [B, C]
        return self.fc(pooled).squeeze(-1)
