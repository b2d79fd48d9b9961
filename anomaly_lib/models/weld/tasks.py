"""Side tasks of the quad-modal model, none of which needs labels.

Before the training: masked auto-encoding, of the sensors' own steps and of the tokens that the frozen encoders make of
video, photos and sound (never of pixels or samples: those encoders do not learn). During it: reconstruction of mean
tokens from the fused vector, and the next sensor step.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from anomaly_lib.models.weld.quad_config import MODALITIES
from anomaly_lib.models.weld.supcon_quad import QuadModal, SensorEncoder, sinusoidal_positions


class MaskedSensors(nn.Module):
    """Hide random time steps of the series and predict them from the encoder's tokens (stride 1)."""

    def __init__(self, encoder: SensorEncoder, *, ratio: float = 0.4) -> None:
        super().__init__()
        self.encoder, self.ratio = encoder, ratio
        self.decode = nn.Linear(encoder.config.sensor_dim, encoder.embed.in_features)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error [] over the hidden steps of the runs that have sensors [B, S, C]."""
        series = batch["sensors"]
        if "present" in batch:
            series = series[batch["present"][:, MODALITIES.index("sensors")].bool()]
        hidden = torch.rand(series.shape[:2], device=series.device) < self.ratio  # [B, S]
        hidden[:, 0] |= ~hidden.any(1)
        predicted = self.decode(self.encoder(torch.where(hidden[..., None], 0.0, series)))
        return (predicted - series)[hidden].square().mean() if len(series) else predicted.sum()


class MaskedTokens(nn.Module):
    """Hide random tokens of `names` and rebuild them from the fused vector of what is left, and from their places.

    The target is the token after the model's own scaling, so that 1 is the error of saying nothing. Projections,
    queries and mixer of the fusion learn, and the decoders, which are thrown away.
    """

    def __init__(self, model: QuadModal, names: Sequence[str], *, ratio: float = 0.6) -> None:
        super().__init__()
        self.model, self.names, self.ratio = model, tuple(names), ratio
        width = model.config.hidden_dim
        self.decode = nn.ModuleDict(
            {n: nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, model.widths[n])) for n in names}
        )

    def hide(self, there: Tensor) -> Tensor:
        """Which of the tokens `there` [B, L] to hide: at random, at least one of a run, and never all of several."""
        order = torch.where(there, torch.rand(there.shape, device=there.device), 2.0).argsort(1).argsort(1)
        known = there.sum(1, keepdim=True)
        count = (known * self.ratio).round().clamp_min(1).minimum((known - 1).clamp_min(1))
        return (order < count) & there

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean [] over `names` of the mean squared error over the hidden tokens of runs that have the modality."""
        seen, hidden = dict(batch), {}
        for name in self.names:
            tokens = batch[name]
            there = batch.get(f"{name}_mask", tokens.new_ones(tokens.shape[:2], dtype=torch.bool)).bool()
            if "present" in batch:
                there = there & batch["present"][:, MODALITIES.index(name), None].bool()
            hidden[name] = self.hide(there)
            seen[f"{name}_mask"] = there & ~hidden[name]
        fused = self.model(seen)["embedding"]
        terms = [self._error(name, fused, batch[name], hidden[name]) for name in self.names]
        return torch.stack(terms).mean()

    def _error(self, name: str, fused: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        width = fused.shape[1]
        places = sinusoidal_positions(tokens.shape[1], width).to(fused.device)  # [L, D]
        rebuilt = self.decode[name](width**0.5 * fused[:, None] + places)
        error = (rebuilt - self.model.scale[name](torch.nan_to_num(tokens))).square().mean(-1)  # [B, L]
        return (error * hidden).sum() / hidden.sum().clamp_min(1)


class NextStep(nn.Module):
    """Predict every step of the sensor series from the ones before it, with the model's sensor encoder (stride 1)."""

    def __init__(self, encoder: SensorEncoder) -> None:
        super().__init__()
        self.decode = nn.Linear(encoder.config.sensor_dim, encoder.embed.in_features)

    def forward(self, encoder: SensorEncoder, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error [] over the steps 2.. of the runs that have sensors."""
        series = torch.nan_to_num(batch["sensors"])  # [B, S, C]
        predicted = self.decode(encoder(series[:, :-1], causal=True))
        error = (predicted - series[:, 1:]).square().mean((1, 2))
        here = (
            batch["present"][:, MODALITIES.index("sensors")].float() if "present" in batch else torch.ones_like(error)
        )
        return (error * here).sum() / here.sum().clamp_min(1)


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


def two_views(
    batch: Mapping[str, Tensor], names: Sequence[str] = MODALITIES, *, noise: float = 0.1, drop: float = 0.2
) -> list[dict[str, Tensor]]:
    """Two random views of the token batches [B, L, D] `names` for SimCLR: scaled Gaussian noise, masked tokens; the
    rest stays, other modalities are left out.
    """
    views = []
    for _ in range(2):
        view = {key: value for key, value in batch.items() if key not in MODALITIES or key in names}
        for name in names:
            if name in batch:
                tokens = torch.nan_to_num(batch[name])
                kept = (torch.rand(tokens.shape[:2], device=tokens.device) >= drop)[..., None]
                view[name] = kept * (tokens + noise * tokens.std() * torch.randn_like(tokens))
        views.append(view)
    return views
