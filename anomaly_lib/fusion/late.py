"""Late fusion of two vectors [B, D] into one: gated, bilinear, adaptive, Tucker. Parameter names as published."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from anomaly_lib.errors import UserError


class GatedLateFusion(nn.Module):
    """Two scalar gates, normalised to sum 1, weigh the two transformed vectors."""

    def __init__(self, *, dim: int, output_dim: int, dropout: float) -> None:
        super().__init__()

        def scalar_gate() -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(dim, dim // 2), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim // 2, 1), nn.Sigmoid()
            )

        self.gate_graph, self.gate_text = scalar_gate(), scalar_gate()
        self.graph_transform, self.text_transform = nn.Linear(dim, output_dim), nn.Linear(dim, output_dim)
        self.fusion_transform = nn.Sequential(
            nn.Linear(output_dim, output_dim), nn.LayerNorm(output_dim), nn.ReLU(), nn.Dropout(dropout)
        )

    def forward(self, graph: Tensor, text: Tensor) -> Tensor:
        gate_graph, gate_text = self.gate_graph(graph), self.gate_text(text)  # [B, 1]
        total = gate_graph + gate_text + 1e-8
        mixed = gate_graph / total * self.graph_transform(graph) + gate_text / total * self.text_transform(text)
        return self.fusion_transform(mixed)


class _Normalised(nn.Module):
    """What the other three end with."""

    def __init__(self, output_dim: int, dropout: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(output_dim)
        self.dropout = nn.Dropout(dropout)

    def finish(self, fused: Tensor) -> Tensor:
        return self.dropout(self.layer_norm(fused))


class BilinearLateFusion(_Normalised):
    """Low-rank bilinear product: sum over the rank of (U g) * (V t)."""

    def __init__(self, *, dim: int, output_dim: int, rank: int, dropout: float) -> None:
        super().__init__(output_dim, dropout)
        self.rank = rank
        self.graph_proj = nn.Linear(dim, rank * output_dim, bias=False)
        self.text_proj = nn.Linear(dim, rank * output_dim, bias=False)

    def forward(self, graph: Tensor, text: Tensor) -> Tensor:
        product = self.graph_proj(graph) * self.text_proj(text)  # [B, rank * D]
        return self.finish(product.unflatten(1, (self.rank, -1)).sum(1))


class AdaptiveLateFusion(_Normalised):
    """A softmax per sample chooses between adding, multiplying and gating."""

    def __init__(self, *, dim: int, output_dim: int, dropout: float) -> None:
        super().__init__(output_dim, dropout)
        self.graph_align, self.text_align = nn.Linear(dim, output_dim), nn.Linear(dim, output_dim)
        self.fusion_selector = nn.Sequential(
            nn.Linear(2 * output_dim, output_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(output_dim, 3),
            nn.Softmax(dim=-1),
        )
        self.gate_net = nn.Sequential(nn.Linear(2 * output_dim, output_dim), nn.Sigmoid())

    def forward(self, graph: Tensor, text: Tensor) -> Tensor:
        a, b = self.graph_align(graph), self.text_align(text)
        both = torch.cat([a, b], dim=-1)
        gate = self.gate_net(both)
        choices = torch.stack([a + b, a * b, gate * a + (1 - gate) * b], dim=1)  # [B, 3, D]
        return self.finish((self.fusion_selector(both).unsqueeze(-1) * choices).sum(1))


class TuckerLateFusion(_Normalised):
    """Outer product of two rank-r codes, mapped back by a dense core."""

    def __init__(self, *, dim: int, output_dim: int, rank: int, dropout: float) -> None:
        super().__init__(output_dim, dropout)
        self.graph_factor, self.text_factor = nn.Linear(dim, rank, bias=False), nn.Linear(dim, rank, bias=False)
        self.core_factor = nn.Linear(rank * rank, output_dim)

    def forward(self, graph: Tensor, text: Tensor) -> Tensor:
        outer = self.graph_factor(graph).unsqueeze(2) * self.text_factor(text).unsqueeze(1)  # [B, r, r]
        return self.finish(self.core_factor(outer.flatten(1)))


LATE_FUSIONS: dict[str, Callable[[int, int, int, float], nn.Module]] = {
    "gated": lambda dim, out, rank, dropout: GatedLateFusion(dim=dim, output_dim=out, dropout=dropout),  # noqa: ARG005
    "bilinear": lambda dim, out, rank, drop: BilinearLateFusion(dim=dim, output_dim=out, rank=rank, dropout=drop),
    "adaptive": lambda dim, out, rank, dropout: AdaptiveLateFusion(dim=dim, output_dim=out, dropout=dropout),  # noqa: ARG005
    "tucker": lambda dim, out, rank, drop: TuckerLateFusion(dim=dim, output_dim=out, rank=rank, dropout=drop),
}


def late_fusion_by_name(name: str, *, dim: int, output_dim: int, rank: int, dropout: float) -> nn.Module:
    """A late fusion module, called with (graph, text)."""
    if name not in LATE_FUSIONS:
        raise UserError(f"unknown late fusion {name!r} (known: concat, {', '.join(LATE_FUSIONS)})")
    return LATE_FUSIONS[name](dim, output_dim, rank, dropout)
