"""Gated middle fusion: a context vector (a text, a sensor summary) is added to features inside a network."""

from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.fusion.config import MiddleFusionConfig


class GatedMiddleFusion(nn.Module):
    """``LayerNorm(x + g * u)`` with ``u = scale * MLP(context)`` and ``g = sigmoid(W [x | u] + b)`` per channel.

    ``GatedMiddleFusion(config, feature_dim=256, context_dim=64)``, or options of `MiddleFusionConfig` instead of one.
    The gate norm has one mean and variance over both halves of [x | u], as published, and so cannot balance their
    scales; with `middle_fusion_norm_per_half` each half has its own. `text_scale` is a parameter when it is learnable,
    else the constant 1. Parameter names are those of the published crystal + text module.
    """

    def __init__(
        self, config: MiddleFusionConfig | None = None, *, feature_dim: int, context_dim: int, **options: Any
    ) -> None:
        super().__init__()
        c = self.config = configure(MiddleFusionConfig, config, options)
        self.feature_dim, self.context_dim = feature_dim, context_dim
        self.text_transform = nn.Sequential(
            nn.Linear(context_dim, c.middle_fusion_hidden_dim),
            nn.ReLU(),
            nn.Dropout(c.middle_fusion_dropout),
            nn.Linear(c.middle_fusion_hidden_dim, feature_dim),
        )
        self.text_scale: Tensor
        if c.middle_fusion_use_learnable_scale:
            self.text_scale = nn.Parameter(torch.tensor(c.middle_fusion_initial_scale))
        else:
            self.register_buffer("text_scale", torch.tensor(1.0))
        self.gate_norm: nn.Module | None = None
        if c.middle_fusion_use_gate_norm:
            self.gate_norm = HalvesNorm(feature_dim) if c.middle_fusion_norm_per_half else nn.LayerNorm(2 * feature_dim)
        self.gate = nn.Sequential(nn.Linear(2 * feature_dim, feature_dim), nn.Sigmoid())
        self.layer_norm = nn.LayerNorm(feature_dim)
        self.dropout = nn.Dropout(c.middle_fusion_dropout)

    def __repr__(self) -> str:
        norm = "" if self.gate_norm is None else f", {type(self.gate_norm).__name__} before the gate"
        sizes = f"[N, {self.feature_dim}] + context {self.context_dim}"
        return f"{type(self).__name__}({sizes}, text_scale {float(self.text_scale):.4g}{norm})"

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

    w = sigmoid(MLP(x)) in [0, 1] is one importance per feature row, m a learnable strength. Made as its base is.
    """

    def __init__(
        self, config: MiddleFusionConfig | None = None, *, feature_dim: int, context_dim: int, **options: Any
    ) -> None:
        super().__init__(config, feature_dim=feature_dim, context_dim=context_dim, **options)
        c = self.config
        self.node_scale: Tensor
        if c.middle_fusion_use_residual_scaling:
            self.node_scale = nn.Parameter(torch.tensor(c.middle_fusion_initial_node_scale))
        else:
            self.register_buffer("node_scale", torch.tensor(1.0))
        self.importance_net: nn.Sequential | None = None
        if c.middle_fusion_use_dynamic_gating:
            half = feature_dim // 2
            self.importance_net = nn.Sequential(
                nn.Linear(feature_dim, half),
                nn.ReLU(),
                nn.Dropout(c.middle_fusion_dropout),
                nn.Linear(half, 1),
                nn.Sigmoid(),
            )
            self.importance_modulation = nn.Parameter(torch.tensor(1.0))

    def forward(self, features: Tensor, context: Tensor, owner: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As the plain module; the gate that is returned includes the importance."""
        update = self.update(features, context, owner)
        gate = self.gate_values(features, update)
        if self.importance_net is not None:
            gate = gate * (1 + self.importance_net(features) * self.importance_modulation)
        return self.dropout(self.layer_norm(self.node_scale * features + gate * update)), gate
