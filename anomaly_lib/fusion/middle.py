"""Gated middle fusion: a context vector (a text, a sensor summary) is added to features inside a network."""

import torch
from torch import Tensor, nn


class GatedMiddleFusion(nn.Module):
    """``LayerNorm(x + g * u)`` with ``u = scale * MLP(context)`` and ``g = sigmoid(W [x | u] + b)`` per channel.

    `use_gate_norm` normalises [x | u] before the gate: as published with one mean and variance over both halves, which
    cannot balance their scales; `norm_per_half` gives each half its own. `text_scale` is a parameter when
    `learnable_scale`, else the constant 1. Parameter names are those of the published crystal + text module.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        context_dim: int,
        hidden_dim: int,
        dropout: float = 0.1,
        use_gate_norm: bool = False,
        norm_per_half: bool = False,
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
        self.gate_norm: nn.Module | None = None
        if use_gate_norm:
            self.gate_norm = HalvesNorm(feature_dim) if norm_per_half else nn.LayerNorm(2 * feature_dim)
        self.gate = nn.Sequential(nn.Linear(2 * feature_dim, feature_dim), nn.Sigmoid())
        self.layer_norm = nn.LayerNorm(feature_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, context: Tensor, owner: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`features` [N, D] or [B, T, D], `context` [B, C] -> (fused features, gate) of the features' shape.

        `owner` [N] names the context row of each feature row; without it features are [B, T, D] (or [B, D]).
        """
        update = self.update(features, context, owner)
        gate = self.gate_values(features, update)
        return self.dropout(self.layer_norm(features + gate * update)), gate

    def update(self, features: Tensor, context: Tensor, owner: Tensor | None = None) -> Tensor:
        """The scaled context u, broadcast to the features' shape."""
        update = self.text_scale * self.text_transform(context)  # [B, D]
        if owner is not None:
            return update[owner]
        return update.unsqueeze(1).expand_as(features) if features.ndim == 3 else update

    def gate_input(self, features: Tensor, update: Tensor) -> Tensor:
        """What the gate sees: [x | u], normalised if asked."""
        both = torch.cat([features, update], dim=-1)
        return both if self.gate_norm is None else self.gate_norm(both)

    def gate_values(self, features: Tensor, update: Tensor) -> Tensor:
        """Sigmoid gate per channel: large = much context."""
        return self.gate(self.gate_input(features, update))


class HalvesNorm(nn.Module):
    """One LayerNorm for each half of the last dimension, so that neither half's scale drowns the other."""

    def __init__(self, half_dim: int) -> None:
        super().__init__()
        self.features = nn.LayerNorm(half_dim)
        self.context = nn.LayerNorm(half_dim)

    def forward(self, both: Tensor) -> Tensor:
        features, context = both.chunk(2, dim=-1)
        return torch.cat([self.features(features), self.context(context)], dim=-1)


class ImprovedMiddleFusion(GatedMiddleFusion):
    """``LayerNorm(s x + g (1 + m w) u)``: a learnable scale s on the features and a gate raised where they matter.

    w = sigmoid(MLP(x)) in [0, 1] is one importance per feature row, m a learnable strength.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        context_dim: int,
        hidden_dim: int,
        dropout: float = 0.1,
        use_gate_norm: bool = False,
        norm_per_half: bool = False,
        learnable_scale: bool = False,
        initial_scale: float = 1.0,
        residual_scaling: bool = True,
        initial_feature_scale: float = 1.0,
        dynamic_gating: bool = True,
    ) -> None:
        super().__init__(
            feature_dim=feature_dim,
            context_dim=context_dim,
            hidden_dim=hidden_dim,
            dropout=dropout,
            use_gate_norm=use_gate_norm,
            norm_per_half=norm_per_half,
            learnable_scale=learnable_scale,
            initial_scale=initial_scale,
        )
        self.node_scale: Tensor
        if residual_scaling:
            self.node_scale = nn.Parameter(torch.tensor(float(initial_feature_scale)))
        else:
            self.register_buffer("node_scale", torch.tensor(1.0))
        self.importance_net: nn.Sequential | None = None
        if dynamic_gating:
            half = feature_dim // 2
            self.importance_net = nn.Sequential(
                nn.Linear(feature_dim, half), nn.ReLU(), nn.Dropout(dropout), nn.Linear(half, 1), nn.Sigmoid()
            )
            self.importance_modulation = nn.Parameter(torch.tensor(1.0))

    def forward(self, features: Tensor, context: Tensor, owner: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As the plain module; the gate that is returned includes the importance."""
        update = self.update(features, context, owner)
        gate = self.gate_values(features, update)
        if self.importance_net is not None:
            gate = gate * (1 + self.importance_net(features) * self.importance_modulation)
        return self.dropout(self.layer_norm(self.node_scale * features + gate * update)), gate
