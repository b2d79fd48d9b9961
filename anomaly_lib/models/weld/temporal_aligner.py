"""Cross-modal temporal attention: tokens of one clock read those of another by their time stamps."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.fusion import CrossAttention

RATES = {"video": 30.0, "audio": 40.0, "sensors": 9.1}  # tokens a second: 30 frames/s, hop 25 ms, sensor rows


def time_code(seconds: Tensor, dim: int, *, shortest: float = 0.05, longest: float = 60.0) -> Tensor:
    """[..., dim]: sin and cos of the time at `dim / 2` geometric periods between `shortest` and `longest` seconds."""
    periods = torch.logspace(math.log10(shortest), math.log10(longest), dim // 2, device=seconds.device)
    angles = seconds[..., None] * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def estimate_shift(a: Tensor, b: Tensor, *, rate: float, largest: float) -> Tensor:
    """Seconds [B] by which `b` [B, T] lags `a` [B, T]: the peak of their normalised cross-correlation, sub-sample."""
    a, b = ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True).clamp_min(1e-6) for x in (a, b))
    length, reach = a.shape[1], round(largest * rate)
    size = 2 * length
    spectrum = torch.fft.rfft(a, size).conj() * torch.fft.rfft(b, size)
    circular = torch.fft.irfft(spectrum, size)  # lag k at index k mod size
    lags = torch.arange(-reach, reach + 1, device=a.device)
    overlap = (length - lags.abs()).clamp_min(1)
    correlation = circular[:, lags % size] / overlap  # [B, 2 reach + 1]
    best = correlation.argmax(1).clamp(1, 2 * reach - 1)
    left, centre, right = (correlation.gather(1, (best + step)[:, None]).squeeze(1) for step in (-1, 0, 1))
    bend = (left - 2 * centre + right).clamp_max(-1e-12)
    return (lags[best] + 0.5 * (left - right) / bend) / rate  # vertex of the parabola through three points


class TemporalAligner(nn.Module):
    """Brings `memory` tokens onto the clock of `query` tokens: attention by time code and content, learnable offset.

    The offset (seconds, one per module) starts at 0; a positive one means that the memory lags behind.
    """

    def __init__(
        self, *, query_dim: int, memory_dim: int, query_rate: float, memory_rate: float, heads: int = 4
    ) -> None:
        super().__init__()
        self.query_rate, self.memory_rate, self.dim = query_rate, memory_rate, query_dim
        self.bring = nn.Linear(memory_dim, query_dim)
        self.attention = CrossAttention(query_dim=query_dim, num_heads=heads)
        self.offset = nn.Parameter(torch.zeros(()))
        self.norm = nn.LayerNorm(query_dim)
        self.sharpness = nn.Parameter(torch.tensor(1.0))

    def forward(self, query: Tensor, memory: Tensor, *, memory_mask: Tensor | None = None) -> Tensor:
        """`query` [B, Q, D], `memory` [B, K, Dm] -> query plus what it reads at its own time [B, Q, D]."""
        query_time = torch.arange(query.shape[1], device=query.device) / self.query_rate
        memory_time = torch.arange(memory.shape[1], device=memory.device) / self.memory_rate - self.offset
        codes = [self.sharpness * time_code(time, self.dim) for time in (query_time, memory_time)]
        read, _ = self.attention(query + codes[0], self.bring(memory) + codes[1], memory_mask=memory_mask)
        return self.norm(query + read)


def resample_at(series: Tensor, times: Tensor, *, rate: float) -> Tensor:
    """Linear interpolation of `series` [B, K, C] (a row each 1/rate s) at `times` [T]; differentiable in the times."""
    position = (times * rate).clamp(0, series.shape[1] - 1)
    low = position.floor().long().clamp_max(series.shape[1] - 2)
    share = (position - low)[None, :, None]
    return torch.lerp(series[:, low], series[:, low + 1], share)


def fit_offset(query: Tensor, memory: Tensor, *, query_rate: float, memory_rate: float, steps: int = 200) -> float:
    """Seconds by which the `memory` trace [B, K] lags the `query` trace [B, Q], by gradient descent."""
    start = float(estimate_shift(_onto(query, query_rate), _onto(memory, memory_rate), rate=20.0, largest=5.0).median())
    offset = torch.tensor(start, requires_grad=True)
    times = torch.arange(query.shape[1]) / query_rate
    optimizer = torch.optim.Adam([offset], lr=0.01)
    target = F.layer_norm(query, query.shape[1:])
    for _ in range(steps):
        moved = resample_at(memory[..., None], times + offset, rate=memory_rate).squeeze(-1)
        inside = (times + offset.detach() >= 0) & (times + offset.detach() <= (memory.shape[1] - 1) / memory_rate)
        loss = (F.layer_norm(moved, moved.shape[1:]) - target)[:, inside].square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(offset.detach())


def _onto(trace: Tensor, rate: float, *, common: float = 20.0) -> Tensor:
    times = torch.arange(int(trace.shape[1] / rate * common)) / common
    return resample_at(trace[..., None], times, rate=rate).squeeze(-1)
