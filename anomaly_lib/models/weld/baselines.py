"""Weld baseline ladder: A audio and video auto-encoders, B one modality, C late and mid fusion (D: `supcon_quad`)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AudioConvAE(nn.Module):
    """1-D convolutional auto-encoder of spectrogram frames [B, bins, T] -> same shape (baseline A).

    Convolutions of width 3 keep the time axis: bins -> 1024 -> 1024 x 3 -> bottleneck, mirrored by transposed ones.
    """

    def __init__(
        self, *, bins: int, bottleneck: int = 48, width: int = 1024, affine: bool = True, slope: float = 0.2
    ) -> None:
        super().__init__()

        def stack(layer: type[nn.Conv1d] | type[nn.ConvTranspose1d], sizes: Sequence[int]) -> list[nn.Module]:
            parts: list[nn.Module] = []
            for before, after in pairwise(sizes):
                parts += [layer(before, after, 3, padding=1), nn.LeakyReLU(slope)]
            return parts

        down = [bins, width, width, width, width, bottleneck]
        self.encoder = nn.Sequential(nn.BatchNorm1d(bins, affine=affine), *stack(nn.Conv1d, down))
        self.decoder = nn.Sequential(*stack(nn.ConvTranspose1d, down[::-1])[:-1], nn.PReLU())

    def forward(self, frames: Tensor) -> Tensor:
        return self.decoder(self.encoder(frames))  # type: ignore[no-any-return]

    def frame_scores(self, frames: Tensor) -> Tensor:
        """Squared error per frame, mean over bins: [B, bins, T] -> [B, T]."""
        return (self(frames) - frames).square().mean(1)


class VideoFcAE(nn.Module):
    """Fully connected auto-encoder of one clip vector per frame [.., dim] (baseline A): 512-256-128-64 and back."""

    def __init__(self, *, dim: int = 2304, dropout: float = 0.5) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *_dense([dim, 512, 256]), nn.Dropout(dropout),
            *_dense([256, 128]), nn.Dropout(dropout),
            *_dense([128, 64]), nn.Dropout(dropout),
            *_dense([64, 64, 64, 128, 256, 512]), nn.Dropout(dropout),
            nn.Linear(512, dim),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features)  # type: ignore[no-any-return]

    def frame_scores(self, features: Tensor) -> Tensor:
        """Squared error per frame: [B, T, dim] -> [B, T]."""
        return (self(features) - features).square().mean(-1)


def _dense(sizes: Sequence[int]) -> list[nn.Module]:
    parts: list[nn.Module] = []
    for before, after in pairwise(sizes):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return parts


def windowed_max(scores: Tensor, window: int) -> Tensor:
    """Largest moving average over `window` frames of [B, T] -> [B]; a shorter clip is averaged as a whole."""
    if scores.shape[1] <= window:
        return scores.mean(1)
    return F.avg_pool1d(scores[:, None], window, stride=1).squeeze(1).amax(1)


class Standardise(nn.Module):
    """z-score vectors [B, D] by those of training; the identity until they are fitted."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.mean: Tensor
        self.std: Tensor

    def fit(self, vectors: Tensor) -> None:
        """By the vectors [N, D]; constant channels keep their unit."""
        self.mean.copy_(vectors.mean(0))
        std = vectors.std(0, unbiased=False)
        self.std.copy_(torch.where(std < 1e-6, torch.ones_like(std), std))

    def forward(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) / self.std


class OneClass(nn.Module):
    """Pooled frozen features [B, D] -> reconstruction error [B]: the small one-class head of baseline B."""

    def __init__(self, *, dim: int, hidden: int = 128, bottleneck: int = 32) -> None:
        super().__init__()
        self.scale = Standardise(dim)
        self.net = nn.Sequential(*_dense([dim, hidden, bottleneck, hidden]), nn.Linear(hidden, dim))

    def forward(self, features: Tensor) -> Tensor:
        x = self.scale(features)
        return (self.net(x) - x).square().mean(-1)  # type: ignore[no-any-return]


class TokenClasses(nn.Module):
    """Tokens of one modality [B, L, D] -> logits [B, classes]: the head of baseline B, linear of the scaled mean.

    `encoder` makes the tokens where that is trained along, e.g. a `SensorEncoder` of series [B, S, channels].
    `scale.fit` takes mean tokens of the training runs, of which those of one encoder differ little between runs.
    """

    def __init__(self, dim: int, *, classes: int = 12, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.scale, self.head = Standardise(dim), nn.Linear(dim, classes)

    def features(self, tokens: Tensor) -> Tensor:
        """What the linear layer reads: [B, L, D] -> [B, D]."""
        tokens = tokens if self.encoder is None else self.encoder(tokens)
        return self.scale(tokens.mean(1))  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.features(tokens))  # type: ignore[no-any-return]


def pool_modalities(batch: Mapping[str, Tensor], names: Sequence[str], *, steps: int = 16) -> dict[str, Tensor]:
    """One vector by modality [B, D]: the mean token; of the sensor series, which has no encoder, `steps` mean levels
    of each channel, so that its course over time stays."""
    pooled = {}
    for name in names:
        tokens = batch[name]
        if name == "sensors":
            pooled[name] = F.adaptive_avg_pool1d(tokens.transpose(1, 2), steps).flatten(1)
        else:
            pooled[name] = tokens.mean(1)
    return pooled


class MidFusion(nn.Module):
    """Features by name [B, D_m] -> logits [B, classes] by concatenation and one MLP (baseline C).

    `dims`: D_m by name. `present` [B, M] in the order of `dims`; absent modalities are zero.
    """

    def __init__(self, dims: Mapping[str, int], *, hidden: int = 256, classes: int = 12, dropout: float = 0.1) -> None:
        super().__init__()
        self.names = tuple(dims)
        self.norm = nn.ModuleDict({name: nn.LayerNorm(dim) for name, dim in dims.items()})
        self.net = nn.Sequential(
            nn.Linear(sum(dims.values()), hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, classes)
        )

    def forward(self, pooled: Mapping[str, Tensor], present: Tensor | None = None) -> Tensor:
        parts = []
        for index, name in enumerate(self.names):
            x = self.norm[name](torch.nan_to_num(pooled[name]))
            parts.append(x if present is None else torch.where(present[:, index : index + 1].bool(), x, 0.0))
        return self.net(torch.cat(parts, dim=-1))  # type: ignore[no-any-return]


def best_weights(scores: Tensor, labels: Tensor, *, step: float = 0.01) -> tuple[Tensor, float]:
    """Convex weights of M score columns [N, M] with the highest AUROC on the given (validation) samples.

    Two columns: the full grid. More: coordinate ascent on the simplex from equal weights, each move a full grid.
    """
    count = scores.shape[1]
    grid = torch.linspace(0, 1, round(1 / step) + 1, dtype=scores.dtype)
    weights = torch.full((count,), 1 / count, dtype=scores.dtype)
    best = float(_auroc(scores @ weights[:, None], labels))
    for _ in range(1 if count == 2 else 5):
        before = best
        for column in range(count - 1 if count == 2 else count):
            rest = weights.clone()
            rest[column] = 0
            rest = (
                rest / rest.sum()
                if float(rest.sum()) > 0
                else torch.full_like(rest, 1 / (count - 1)).index_fill(0, torch.tensor(column), 0.0)
            )
            candidates = grid[:, None] * F.one_hot(torch.tensor(column), count) + (1 - grid)[:, None] * rest  # [G, M]
            values = _auroc(scores @ candidates.T.to(scores.dtype), labels)
            top = int(values.argmax())
            if float(values[top]) > best:
                best, weights = float(values[top]), candidates[top].to(scores.dtype)
        if best == before:
            break
    return weights, best


def _auroc(columns: Tensor, labels: Tensor) -> Tensor:
    """AUROC of each column of [N, G]; ties count half."""
    positive, negative = columns[labels.bool()].T, columns[~labels.bool()].T.contiguous()  # [G, P], [G, N]
    ordered = negative.sort(1).values
    positive = positive.contiguous()
    below = torch.searchsorted(ordered, positive) + torch.searchsorted(ordered, positive, right=True)
    return below.double().mean(1) / (2 * negative.shape[1])
