"""Crystal graph and text in one regressor: ALIGNN with middle, fine-grained, cross-modal and late fusion.

State-dict names are those of the published program (train_with_cross_modal_attention.py), so its checkpoints load.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from anomaly_lib.errors import UserError
from anomaly_lib.fusion import (
    CrossModalAttention,
    FineGrainedAttention,
    GatedMiddleFusion,
    ImprovedMiddleFusion,
    late_fusion_by_name,
)
from anomaly_lib.models.crystal.alignn import ALIGNNEncoder
from anomaly_lib.models.crystal.graph_batch import GraphBatch
from anomaly_lib.ops.graph import pad_segments, segment_mean

# B crystals, N atoms, L word pieces, C hidden channels, P projected width (64)
PROJECTED = 64


@dataclass(frozen=True)
class CrystalFusionConfig:
    """Every size and switch of the model; plain values, so it travels inside checkpoints."""

    alignn_layers: int = 4
    gcn_layers: int = 4
    hidden_features: int = 256
    embedding_features: int = 64
    graph_dropout: float = 0.0
    learned_elements: bool = False
    text_features: int = 768
    middle_layers: tuple[int, ...] = ()  # ALIGNN layers (from 0) after which text is injected; () = none
    middle_hidden_dim: int = 128
    middle_dropout: float = 0.1
    middle_gate_norm: bool = False
    middle_norm_per_half: bool = False
    middle_learnable_scale: bool = False
    middle_initial_scale: float = 1.0
    middle_improved: bool = False
    middle_residual_scaling: bool = True
    middle_dynamic_gating: bool = True
    middle_initial_node_scale: float = 1.0
    fine_grained: bool = False
    fine_grained_hidden_dim: int = 256
    fine_grained_num_heads: int = 8
    fine_grained_dropout: float = 0.1
    fine_grained_projection: bool = True
    cross_modal: bool = True
    cross_modal_hidden_dim: int = 256
    cross_modal_num_heads: int = 4
    cross_modal_dropout: float = 0.1
    cross_modal_tokens: bool = False
    cross_modal_bidirectional: bool = True
    late_fusion: str = "concat"
    late_rank: int = 16
    late_output_dim: int = 64

    def __post_init__(self) -> None:
        for layer in self.middle_layers:
            if not 0 <= layer < self.alignn_layers:
                raise UserError(
                    f"--middle_fusion_layers names layer {layer}, but --alignn_layers {self.alignn_layers} has layers "
                    f"0 to {self.alignn_layers - 1}"
                )


@dataclass
class CrystalOutput:
    """What a forward pass answers."""

    prediction: Tensor  # [B]
    graph: Tensor | None = None  # [B, P] the vectors a contrastive loss should compare
    text: Tensor | None = None  # [B, P]
    gates: dict[str, Tensor] = field(default_factory=dict)  # fusion module -> gate [N, C]; large = much text
    atom_to_text: Tensor | None = None  # [B, heads, A, L]


class ProjectionHead(nn.Module):
    """LN(Dropout(W2 GELU(p) + b2) + p) with p = W1 x + b1."""

    def __init__(self, in_features: int, out_features: int = PROJECTED, dropout: float = 0.1) -> None:
        super().__init__()
        self.projection = nn.Linear(in_features, out_features)
        self.fc = nn.Linear(out_features, out_features)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(out_features)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.projection(x)
        return self.layer_norm(self.dropout(self.fc(nn.functional.gelu(projected))) + projected)


class CrystalFusionModel(ALIGNNEncoder):
    """Text is injected after chosen ALIGNN layers, read atom by atom, exchanged as vectors, and fused at the end."""

    def __init__(self, config: CrystalFusionConfig) -> None:
        super().__init__(
            alignn_layers=config.alignn_layers,
            gcn_layers=config.gcn_layers,
            hidden_features=config.hidden_features,
            embedding_features=config.embedding_features,
            dropout=config.graph_dropout,
            learned_elements=config.learned_elements,
        )
        self.config = config
        self.graph_projection = ProjectionHead(config.hidden_features)
        self.text_projection = ProjectionHead(config.text_features)
        self.middle_fusion_modules = nn.ModuleDict({f"layer_{i}": _middle_module(config) for i in config.middle_layers})
        if config.fine_grained:
            self.fine_grained_attention = FineGrainedAttention(
                node_dim=config.hidden_features,
                token_dim=config.text_features,
                hidden_dim=config.fine_grained_hidden_dim,
                num_heads=config.fine_grained_num_heads,
                dropout=config.fine_grained_dropout,
                use_projection=config.fine_grained_projection,
            )
        if config.cross_modal:
            self.cross_modal_attention = CrossModalAttention(
                graph_dim=PROJECTED,
                text_dim=PROJECTED,
                hidden_dim=config.cross_modal_hidden_dim,
                num_heads=config.cross_modal_num_heads,
                dropout=config.cross_modal_dropout,
                bidirectional=config.cross_modal_bidirectional,
            )
        if config.late_fusion == "concat":
            self.fc1 = nn.Linear(2 * PROJECTED, PROJECTED)
            self.fc = nn.Linear(PROJECTED, 1)
        else:
            self.fusion_module = late_fusion_by_name(
                config.late_fusion,
                dim=PROJECTED,
                output_dim=config.late_output_dim,
                rank=config.late_rank,
                dropout=config.cross_modal_dropout,
            )
            self.fc = nn.Linear(config.late_output_dim, 1)

    def forward(
        self, graph: GraphBatch, text: Tensor, text_mask: Tensor | None = None, *, need_weights: bool = False
    ) -> CrystalOutput:
        """`text` [B, W] (one vector a crystal) or [B, L, W] (word pieces, the first is CLS) with `text_mask` [B, L]."""
        tokens = text if text.ndim == 3 else text.unsqueeze(1)
        if text_mask is None:
            text_mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        projected_text = self.text_projection(tokens[:, 0])  # [B, P]
        gates: dict[str, Tensor] = {}

        def inject(layer: int, atoms: Tensor) -> Tensor:
            name = f"layer_{layer}"
            if name in self.middle_fusion_modules:
                atoms, gates[name] = self.middle_fusion_modules[name](atoms, projected_text, graph.owner)
            return atoms

        atoms = self.encode(graph, after_layer=inject)  # [N, C]
        weights = None
        if self.config.fine_grained:
            padded, real = pad_segments(atoms, graph.owner, graph.num_crystals)
            padded, weights = self.fine_grained_attention(
                padded, tokens, token_mask=text_mask, need_weights=need_weights
            )
            atoms = padded[real]
        projected_graph = self.graph_projection(segment_mean(atoms, graph.owner, graph.num_crystals))  # [B, P]
        if self.config.cross_modal:
            projected_graph, projected_text = self._exchange(
                graph, atoms, projected_graph, tokens, text_mask, projected_text
            )
        if self.config.late_fusion == "concat":
            hidden = torch.relu(self.fc1(torch.cat([projected_graph, projected_text], dim=-1)))
        else:
            hidden = self.fusion_module(projected_graph, projected_text)
        prediction = self.fc(hidden).squeeze(-1)
        return CrystalOutput(prediction, projected_graph, projected_text, gates, weights)

    def _exchange(
        self, graph: GraphBatch, atoms: Tensor, graph_vector: Tensor, tokens: Tensor, mask: Tensor, text_vector: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not self.config.cross_modal_tokens:
            return self.cross_modal_attention(graph_vector, text_vector)
        return self.cross_modal_attention(
            graph_vector,
            text_vector,
            graph_memory=pad_segments(self.graph_projection(atoms), graph.owner, graph.num_crystals),
            text_memory=(self.text_projection(tokens), mask),
        )


def _middle_module(config: CrystalFusionConfig) -> GatedMiddleFusion:
    kind: Callable[..., GatedMiddleFusion] = GatedMiddleFusion
    if config.middle_improved:
        kind = partial(
            ImprovedMiddleFusion,
            residual_scaling=config.middle_residual_scaling,
            initial_feature_scale=config.middle_initial_node_scale,
            dynamic_gating=config.middle_dynamic_gating,
        )
    return kind(
        feature_dim=config.hidden_features,
        context_dim=PROJECTED,
        hidden_dim=config.middle_hidden_dim,
        dropout=config.middle_dropout,
        use_gate_norm=config.middle_gate_norm,
        norm_per_half=config.middle_norm_per_half,
        learnable_scale=config.middle_learnable_scale,
        initial_scale=config.middle_initial_scale,
    )


class TextRegressor(nn.Module):
    """The text branch alone, as a baseline: projection of the CLS vector, hidden layer, one value."""

    def __init__(self, *, text_features: int) -> None:
        super().__init__()
        self.text_projection = ProjectionHead(text_features)
        self.fc1 = nn.Linear(PROJECTED, PROJECTED)
        self.fc = nn.Linear(PROJECTED, 1)

    def forward(self, text: Tensor) -> Tensor:
        """`text` [B, W] or [B, L, W] -> [B]."""
        vector = self.text_projection(text if text.ndim == 2 else text[:, 0])
        return self.fc(torch.relu(self.fc1(vector))).squeeze(-1)
