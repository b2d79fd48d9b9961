"""Two modalities read each other. Parameter names are those of the published crystal + text model."""

from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.fusion.attention import multi_head_attention
from anomaly_lib.fusion.config import CrossModalConfig, FineGrainedConfig


class CrossModalAttention(nn.Module):
    """g' = LN(g + attention of g over the text), t' = LN(t + attention of t over the graph).

    As published each side is ONE vector: the softmax runs over a single key, is exactly 1, and the module is
    LN(g + W_o W_v t); query and key maps receive no gradient. Give `graph_memory` and `text_memory` (the atoms and the
    word pieces) and the same parameters do real attention.
    ``CrossModalAttention(config, graph_dim=64, text_dim=64)``, or options of `CrossModalConfig` instead of one.
    """

    def __init__(
        self, config: CrossModalConfig | None = None, *, graph_dim: int, text_dim: int, **options: Any
    ) -> None:
        super().__init__()
        c = self.config = configure(CrossModalConfig, config, options)
        hidden_dim = c.cross_modal_hidden_dim
        self.g2t_query = nn.Linear(graph_dim, hidden_dim)
        self.g2t_key = nn.Linear(text_dim, hidden_dim)
        self.g2t_value = nn.Linear(text_dim, hidden_dim)
        self.graph_output = nn.Linear(hidden_dim, graph_dim)
        self.layer_norm_graph = nn.LayerNorm(graph_dim)
        self.bidirectional = c.cross_modal_attention_type == "bidirectional"
        if self.bidirectional:
            self.t2g_query = nn.Linear(text_dim, hidden_dim)
            self.t2g_key = nn.Linear(graph_dim, hidden_dim)
            self.t2g_value = nn.Linear(graph_dim, hidden_dim)
            self.text_output = nn.Linear(hidden_dim, text_dim)
            self.layer_norm_text = nn.LayerNorm(text_dim)

    def __repr__(self) -> str:
        c, graph, text = self.config, self.g2t_query.in_features, self.g2t_key.in_features
        arrow = "<->" if self.bidirectional else "<-"
        return f"CrossModalAttention(graph {graph} {arrow} text {text}, {c.cross_modal_num_heads} heads)"

    def forward(
        self,
        graph: Tensor,
        text: Tensor,
        *,
        graph_memory: tuple[Tensor, Tensor] | None = None,
        text_memory: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`graph` [B, G], `text` [B, T]; a memory is (values [B, K, G or T], mask [B, K])."""
        heads, dropout = self.config.cross_modal_num_heads, self.config.cross_modal_dropout if self.training else 0.0
        memory, mask = text_memory or (text.unsqueeze(1), None)
        read, _ = multi_head_attention(
            self.g2t_query(graph).unsqueeze(1),
            self.g2t_key(memory),
            self.g2t_value(memory),
            num_heads=heads,
            memory_mask=mask,
            dropout=dropout,
        )
        new_graph = self.layer_norm_graph(graph + self.graph_output(read.squeeze(1)))
        if not self.bidirectional:
            return new_graph, text
        memory, mask = graph_memory or (graph.unsqueeze(1), None)
        read, _ = multi_head_attention(
            self.t2g_query(text).unsqueeze(1),
            self.t2g_key(memory),
            self.t2g_value(memory),
            num_heads=heads,
            memory_mask=mask,
            dropout=dropout,
        )
        return new_graph, self.layer_norm_text(text + self.text_output(read.squeeze(1)))


class FineGrainedAttention(nn.Module):
    """Every atom reads every word piece, and the other way round.

    Only the atoms are used by the published model, so the token side is computed on request only.
    ``FineGrainedAttention(config, node_dim=256, token_dim=768)``, or options of `FineGrainedConfig` instead of one.
    """

    def __init__(
        self, config: FineGrainedConfig | None = None, *, node_dim: int, token_dim: int, **options: Any
    ) -> None:
        super().__init__()
        c = self.config = configure(FineGrainedConfig, config, options)
        hidden_dim, use_projection = c.fine_grained_hidden_dim, c.fine_grained_use_projection
        self.node_proj_in = nn.Linear(node_dim, hidden_dim) if use_projection else nn.Identity()
        self.token_proj_in = nn.Linear(token_dim, hidden_dim) if use_projection else nn.Identity()
        atoms, words = (hidden_dim, hidden_dim) if use_projection else (node_dim, token_dim)
        self.a2t_query, self.t2a_query = nn.Linear(atoms, hidden_dim), nn.Linear(words, hidden_dim)
        self.a2t_key, self.t2a_key = nn.Linear(words, hidden_dim), nn.Linear(atoms, hidden_dim)
        self.a2t_value, self.t2a_value = nn.Linear(words, hidden_dim), nn.Linear(atoms, hidden_dim)
        self.node_output, self.token_output = nn.Linear(hidden_dim, node_dim), nn.Linear(hidden_dim, token_dim)
        self.layer_norm_node, self.layer_norm_token = nn.LayerNorm(node_dim), nn.LayerNorm(token_dim)

    def __repr__(self) -> str:
        nodes, tokens = self.node_output.out_features, self.token_output.out_features
        heads = self.config.fine_grained_num_heads
        return f"FineGrainedAttention(atoms [B, A, {nodes}] read words [B, L, {tokens}], {heads} heads)"

    def forward(
        self, nodes: Tensor, tokens: Tensor, *, token_mask: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """`nodes` [B, A, D], `tokens` [B, L, W], `token_mask` [B, L] -> (nodes [B, A, D], weights [B, heads, A, L])."""
        words = self.token_proj_in(tokens)
        read, weights = multi_head_attention(
            self.a2t_query(self.node_proj_in(nodes)),
            self.a2t_key(words),
            self.a2t_value(words),
            num_heads=self.config.fine_grained_num_heads,
            memory_mask=token_mask,
            dropout=self.config.fine_grained_dropout if self.training else 0.0,
            need_weights=need_weights,
        )
        return self.layer_norm_node(nodes + self.node_output(read)), weights

    def read_atoms(self, nodes: Tensor, tokens: Tensor, *, node_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The token side, for analysis: (tokens [B, L, W], weights [B, heads, L, A])."""
        atoms = self.node_proj_in(nodes)
        read, weights = multi_head_attention(
            self.t2a_query(self.token_proj_in(tokens)),
            self.t2a_key(atoms),
            self.t2a_value(atoms),
            num_heads=self.config.fine_grained_num_heads,
            memory_mask=node_mask,
            need_weights=True,
        )
        assert isinstance(weights, torch.Tensor)
        return self.layer_norm_token(tokens + self.token_output(read)), weights
