"""Gated middle fusion: a context vector (a text, a sensor summary) is added to features inside a network."""

import torch
from torch import Tensor, nn


class GatedMiddleFusion(nn.Module):
    """``LayerNorm(x + g * u)`` with ``u = scale * MLP(context)`` and ``g = sigmoid(W [x | u] + b)`` per channel.

    `use_gate_norm` normalises [x | u] before the gate. `text_scale` is a parameter when `learnable_scale`, else the
    constant 1. Parameter names are those of the published crystal + text middle fusion module.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        context_dim: int,
        hidden_dim: int,
        dropout: float = 0.1,
        use_gate_norm: bool = False,
        learnable_scale: bool = False,
        initial_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.text_transform = nn.Sequential(
            nn.Linear(context_dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden_dim, feature_dim)
        )
        self.text_scale: Tensor
        if learnable_scale:
            self.text_scale = nn.Parameter(torch.tensor(float(initial_scale)))
        else:
            self.register_buffer("text_scale", torch.tensor(1.0))
        self.gate_norm = nn.LayerNorm(2 * feature_dim) if use_gate_norm else None
        self.gate = nn.Sequential(nn.Linear(2 * feature_dim, feature_dim), nn.Sigmoid())
        self.layer_norm = nn.LayerNorm(feature_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, context: Tensor, owner: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`features` [N, D] or [B, T, D], `context` [B, C] -> (fused features, gate) of the features' shape.

        `owner` [N] names the context row of each feature row; without it features are [B, T, D] (or [B, D]).
        """
        update = self.text_scale * self.text_transform(context)  # [B, D]
        if owner is not None:
            update = update[owner]
        elif features.ndim == 3:
            update = update.unsqueeze(1).expand_as(features)
        both = torch.cat([features, update], dim=-1)
        gate = self.gate(both if self.gate_norm is None else self.gate_norm(both))
        return self.dropout(self.layer_norm(features + gate * update)), gate
