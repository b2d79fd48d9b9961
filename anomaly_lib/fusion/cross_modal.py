"""Two modalities read each other. Parameter names are those of the published crystal + text model."""

import torch
from torch import Tensor, nn

from anomaly_lib.fusion.attention import multi_head_attention


class CrossModalAttention(nn.Module):
    """g' = LN(g + attention of g over the text), t' = LN(t + attention of t over the graph).

    As published each side is ONE vector: the softmax runs over a single key, is exactly 1, and the module is
    LN(g + W_o W_v t); query and key maps receive no gradient. Give `graph_memory` and `text_memory` (the atoms and the
    word pieces) and the same parameters do real attention.
    """

    def __init__(
        self,
        *,
        graph_dim: int,
        text_dim: int,
        hidden_dim: int = 256,
        num_heads: int = 4,
        dropout: float = 0.1,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim {hidden_dim} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.dropout = num_heads, dropout
        self.g2t_query = nn.Linear(graph_dim, hidden_dim)
        self.g2t_key = nn.Linear(text_dim, hidden_dim)
        self.g2t_value = nn.Linear(text_dim, hidden_dim)
        self.graph_output = nn.Linear(hidden_dim, graph_dim)
        self.layer_norm_graph = nn.LayerNorm(graph_dim)
        self.bidirectional = bidirectional
        if bidirectional:
            self.t2g_query = nn.Linear(text_dim, hidden_dim)
            self.t2g_key = nn.Linear(graph_dim, hidden_dim)
            self.t2g_value = nn.Linear(graph_dim, hidden_dim)
            self.text_output = nn.Linear(hidden_dim, text_dim)
            self.layer_norm_text = nn.LayerNorm(text_dim)

    def forward(
        self,
        graph: Tensor,
        text: Tensor,
        *,
        graph_memory: tuple[Tensor, Tensor] | None = None,
        text_memory: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`graph` [B, G], `text` [B, T]; a memory is (values [B, K, G or T], mask [B, K])."""
        dropout = self.dropout if self.training else 0.0
        memory, mask = text_memory or (text.unsqueeze(1), None)
        read, _ = multi_head_attention(
            self.g2t_query(graph).unsqueeze(1),
            self.g2t_key(memory),
            self.g2t_value(memory),
            num_heads=self.num_heads,
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
            num_heads=self.num_heads,
            memory_mask=mask,
            dropout=dropout,
        )
        return new_graph, self.layer_norm_text(text + self.text_output(read.squeeze(1)))


class FineGrainedAttention(nn.Module):
    """Every atom reads every word piece, and the other way round.

    Only the atoms are used by the published model, so the token side is computed on request only.
    """

    def __init__(
        self,
        *,
        node_dim: int,
        token_dim: int,
        hidden_dim: int = 256,
        num_heads: int = 8,
        dropout: float = 0.1,
        use_projection: bool = True,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim {hidden_dim} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.dropout = num_heads, dropout
        self.node_proj_in = nn.Linear(node_dim, hidden_dim) if use_projection else nn.Identity()
        self.token_proj_in = nn.Linear(token_dim, hidden_dim) if use_projection else nn.Identity()
        atoms, words = (hidden_dim, hidden_dim) if use_projection else (node_dim, token_dim)
        self.a2t_query, self.t2a_query = nn.Linear(atoms, hidden_dim), nn.Linear(words, hidden_dim)
        self.a2t_key, self.t2a_key = nn.Linear(words, hidden_dim), nn.Linear(atoms, hidden_dim)
        self.a2t_value, self.t2a_value = nn.Linear(words, hidden_dim), nn.Linear(atoms, hidden_dim)
        self.node_output, self.token_output = nn.Linear(hidden_dim, node_dim), nn.Linear(hidden_dim, token_dim)
        self.layer_norm_node, self.layer_norm_token = nn.LayerNorm(node_dim), nn.LayerNorm(token_dim)

    def forward(
        self, nodes: Tensor, tokens: Tensor, *, token_mask: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """`nodes` [B, A, D], `tokens` [B, L, W], `token_mask` [B, L] -> (nodes [B, A, D], weights [B, heads, A, L])."""
        words = self.token_proj_in(tokens)
        read, weights = multi_head_attention(
            self.a2t_query(self.node_proj_in(nodes)),
            self.a2t_key(words),
            self.a2t_value(words),
            num_heads=self.num_heads,
            memory_mask=token_mask,
            dropout=self.dropout if self.training else 0.0,
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
            num_heads=self.num_heads,
            memory_mask=node_mask,
            need_weights=True,
        )
        assert isinstance(weights, torch.Tensor)
        return self.layer_norm_token(tokens + self.token_output(read)), weights
