"""Crystal graph and text in one regressor: ALIGNN with middle, fine-grained, cross-modal and late fusion.

State-dict names are those of the published program (train_with_cross_modal_attention.py), so its checkpoints load.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.fusion.cross_modal import CrossModalAttention, FineGrainedAttention
from anomaly_lib.fusion.late import late_fusion_by_name
from anomaly_lib.fusion.middle import GatedMiddleFusion, ImprovedMiddleFusion
from anomaly_lib.models.crystal.alignn import ALIGNNEncoder
from anomaly_lib.models.crystal.config import CrystalFusionConfig
from anomaly_lib.models.crystal.graph_batch import GraphBatch, check_graph
from anomaly_lib.ops.graph import pad_segments, segment_mean

# B crystals, N atoms, L word pieces, C hidden channels, P projected width (64), W width of the text vectors
PROJECTED = 64


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
    """Text is injected after chosen ALIGNN layers, read atom by atom, exchanged as vectors, and fused at the end.

    ``CrystalFusionModel(config)`` or ``CrystalFusionModel(use_middle_fusion=True, ...)``, the options of
    `CrystalFusionConfig`; `text_features` is W, the width of the text encoder's vectors (768 for BERT). Called with a
    `GraphBatch` of B crystals and text [B, W] or [B, L, W] it answers a `CrystalOutput` with ``prediction`` [B].
    """

    config: CrystalFusionConfig

    def __init__(self, config: CrystalFusionConfig | None = None, *, text_features: int = 768, **options: Any) -> None:
        c = configure(CrystalFusionConfig, config, options)
        super().__init__(c)
        self.text_features = text_features
        self.graph_projection = ProjectionHead(c.hidden_features)
        self.text_projection = ProjectionHead(text_features)
        middle = ImprovedMiddleFusion if c.use_improved_middle_fusion else GatedMiddleFusion
        layers = c.middle_fusion_layers if c.use_middle_fusion else []
        self.middle_fusion_modules = nn.ModuleDict(
            {f"layer_{i}": middle(c, feature_dim=c.hidden_features, context_dim=PROJECTED) for i in layers}
        )
        if c.use_fine_grained_attention:
            self.fine_grained_attention = FineGrainedAttention(c, node_dim=c.hidden_features, token_dim=text_features)
        if c.use_cross_modal:
            self.cross_modal_attention = CrossModalAttention(c, graph_dim=PROJECTED, text_dim=PROJECTED)
        if c.late_fusion_type == "concat":
            self.fc1 = nn.Linear(2 * PROJECTED, PROJECTED)
            self.fc = nn.Linear(PROJECTED, 1)
        else:
            self.fusion_module = late_fusion_by_name(
                c.late_fusion_type,
                dim=PROJECTED,
                output_dim=c.late_fusion_output_dim,
                rank=c.late_fusion_rank,
                dropout=c.cross_modal_dropout,
            )
            self.fc = nn.Linear(c.late_fusion_output_dim, 1)

    def _sizes(self) -> str:
        c, layers = self.config, ", ".join(self.middle_fusion_modules)
        parts = {
            f"middle fusion at {layers}": bool(layers),
            "fine-grained attention": c.use_fine_grained_attention,
            "cross-modal attention" + (" over tokens" if c.cross_modal_tokens else ""): c.use_cross_modal,
            f"late fusion {c.late_fusion_type}": True,
        }
        return ", ".join([super()._sizes(), f"text {self.text_features}", *(name for name, on in parts.items() if on)])

    def forward(
        self, graph: GraphBatch, text: Tensor, text_mask: Tensor | None = None, *, need_weights: bool = False
    ) -> CrystalOutput:
        """`text` [B, W] (one vector a crystal) or [B, L, W] (word pieces, the first is CLS) with `text_mask` [B, L]."""
        self._check(graph, text)
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
        if self.config.use_fine_grained_attention:
            padded, real = pad_segments(atoms, graph.owner, graph.num_crystals)
            padded, weights = self.fine_grained_attention(
                padded, tokens, token_mask=text_mask, need_weights=need_weights
            )
            atoms = padded[real]
        projected_graph = self.graph_projection(segment_mean(atoms, graph.owner, graph.num_crystals))  # [B, P]
        if self.config.use_cross_modal:
            projected_graph, projected_text = self._exchange(
                graph, atoms, projected_graph, tokens, text_mask, projected_text
            )
        if self.config.late_fusion_type == "concat":
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

    def _check(self, graph: GraphBatch, text: Tensor) -> None:
        check_graph(graph)
        if text.ndim not in (2, 3) or text.shape[-1] != self.text_features or len(text) != graph.num_crystals:
            width, count = self.text_features, graph.num_crystals
            raise UserError(f"text: expected [{count}, {width}] or [{count}, L, {width}], got {list(text.shape)}")


class TextRegressor(nn.Module):
    """The text branch alone, as a baseline: projection of the CLS vector, hidden layer, one value. [B, W] -> [B]."""

    def __init__(self, *, text_features: int) -> None:
        super().__init__()
        self.text_features = text_features
        self.text_projection = ProjectionHead(text_features)
        self.fc1 = nn.Linear(PROJECTED, PROJECTED)
        self.fc = nn.Linear(PROJECTED, 1)

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        return f"TextRegressor(text {self.text_features}, {count:,} parameters)"

    def forward(self, text: Tensor) -> Tensor:
        """`text` [B, W] or [B, L, W] -> [B]."""
        vector = self.text_projection(text if text.ndim == 2 else text[:, 0])
        return self.fc(torch.relu(self.fc1(vector))).squeeze(-1)
