"""Side tasks of the quad-modal model: masked sensor steps (pre-training) and reconstruction from the fused vector."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from anomaly_lib.models.weld.quad_config import MODALITIES
from anomaly_lib.models.weld.supcon_quad import QuadModal, SensorEncoder


class MaskedSensors(nn.Module):
    """Hide random time steps of the series and predict them from the encoder's tokens (stride 1)."""

    def __init__(self, encoder: SensorEncoder, *, ratio: float = 0.4) -> None:
        super().__init__()
        self.encoder, self.ratio = encoder, ratio
        self.decode = nn.Linear(encoder.config.sensor_dim, encoder.embed.in_features)

    def forward(self, series: Tensor) -> Tensor:
        """Mean squared error [] over the hidden steps of [B, S, C]."""
        hidden = torch.rand(series.shape[:2], device=series.device) < self.ratio  # [B, S]
        hidden[:, 0] |= ~hidden.any(1)
        predicted = self.decode(self.encoder(torch.where(hidden[..., None], 0.0, series)))
        return (predicted - series)[hidden].square().mean()


class Reconstruction(nn.Module):
    """Rebuild the mean token of each present modality from the fused vector: keeps what the classes do not need."""

    def __init__(self, model: QuadModal) -> None:
        super().__init__()
        width = model.config.hidden_dim
        self.decode = nn.ModuleDict({name: nn.Linear(width, dim) for name, dim in model.widths.items()})

    def forward(self, embedding: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean [] over modalities of 1 - cosine between rebuilt and real mean tokens, absent ones left out.

        `embedding` [B, D]; `batch` as `QuadModal` takes it.
        """
        terms, weights = [], []
        for index, name in enumerate(MODALITIES):
            if name not in batch:
                continue
            target = torch.nan_to_num(batch[name]).mean(1)
            error = 1 - torch.nn.functional.cosine_similarity(self.decode[name](embedding), target, dim=-1)
            here = batch["present"][:, index].float() if "present" in batch else torch.ones_like(error)
            terms.append((error * here).sum())
            weights.append(here.sum())
        return torch.stack(terms).sum() / torch.stack(weights).sum().clamp_min(1)


def two_views(batch: Mapping[str, Tensor], *, noise: float = 0.1, drop: float = 0.2) -> list[dict[str, Tensor]]:
    """Two random views of token batches [B, L, D] for SimCLR: scaled Gaussian noise, masked tokens; the rest stays."""
    views = []
    for _ in range(2):
        view = dict(batch)
        for name in MODALITIES:
            if name in batch:
                tokens = torch.nan_to_num(batch[name])
                kept = (torch.rand(tokens.shape[:2], device=tokens.device) >= drop)[..., None]
                view[name] = kept * (tokens + noise * tokens.std() * torch.randn_like(tokens))
        views.append(view)
    return views
