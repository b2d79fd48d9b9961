"""Cross-modal temporal attention: tokens of one clock read those of another by their times."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.fusion import CrossAttention
from anomaly_lib.models.weld.quad_config import MODALITIES


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
    """Tokens of one clock take in what those of another show at their own time: attention by time code and content.

    The times may be in any unit; `periods` are the shortest and the longest of the codes in it. The learnable offset
    starts at 0, a positive one means that the memory lags behind. What is read is added through a layer of zeros:
    untrained, the aligner changes nothing.
    """

    def __init__(
        self, *, query_dim: int, memory_dim: int, heads: int = 4, periods: tuple[float, float] = (0.05, 60.0)
    ) -> None:
        super().__init__()
        self.dim, self.periods = query_dim, periods
        self.bring = nn.Linear(memory_dim, query_dim)
        self.attention = CrossAttention(query_dim=query_dim, num_heads=heads)
        nn.init.zeros_(self.attention.output.weight)
        nn.init.zeros_(self.attention.output.bias)
        self.offset = nn.Parameter(torch.zeros(()))
        self.sharpness = nn.Parameter(torch.tensor(1.0))

    def forward(
        self, query: Tensor, memory: Tensor, *, query_times: Tensor, memory_times: Tensor,
        memory_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`query` [B, Q, D] at times [Q], `memory` [B, K, Dm] at times [K] -> what to add to the query [B, Q, D].

        `memory_mask` [B, K]: True counts; a query without any memory gets 0.
        """
        shortest, longest = self.periods
        times = (query_times, memory_times - self.offset)
        codes = [self.sharpness * time_code(time, self.dim, shortest=shortest, longest=longest) for time in times]
        read, _ = self.attention(query + codes[0], self.bring(memory) + codes[1], memory_mask=memory_mask)
        if memory_mask is not None:
            read = torch.where(memory_mask.any(1)[:, None, None], read, 0.0)  # the output layer has a bias
        return read


def token_times(length: int, *, steps: int | None = None, rows: int = 1, prefix: int = 0) -> Tensor:
    """When in a recording, 0 to 1, each of `length` tokens lies.

    `steps`: time after time, several tokens each (video patches); None = one token a time. `rows`: row after row, each
    with all times (a spectrum's frequencies). The first `prefix` tokens (class tokens) stand in the middle.
    """
    body = length - prefix
    columns = max(1, body // rows)
    index = torch.arange(body) % columns if steps is None else torch.arange(body) * steps // max(1, body)
    times = (index + 0.5) / (columns if steps is None else steps)
    return torch.cat([torch.full((prefix,), 0.5), times])


class TemporalAligners(nn.ModuleDict):
    """Sensor tokens take in what each of the other recordings of a run shows at their own time.

    `widths` and `clocks` by modality: the width of its tokens, and how `token_times` reads their times. All recordings
    are taken to begin and to end together; what differs is learnt as an offset.
    """

    def __init__(self, dim: int, widths: Mapping[str, int], clocks: Mapping[str, Mapping[str, int]], *, heads: int):
        super().__init__(
            {
                name: TemporalAligner(query_dim=dim, memory_dim=width, heads=heads, periods=(0.02, 2.0))
                for name, width in widths.items()
            }
        )
        self.clocks = clocks

    def forward(
        self, own: Tensor, tokens: Mapping[str, Tensor], *, masks: Mapping[str, Tensor] = MappingProxyType({}),
        present: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`own` [B, S, D] with what tokens [B, L, width] by modality show; one that is absent, as a whole or in a run
        (`present` [B, 4] in the order of `MODALITIES`), adds nothing. `masks` [B, L] by modality: True counts."""
        added = torch.zeros_like(own)
        for name, aligner in self.items():
            if name not in tokens:
                continue
            memory = torch.nan_to_num(tokens[name])
            mask = torch.ones(memory.shape[:2], dtype=torch.bool, device=own.device)
            if present is not None:
                mask = mask & present[:, MODALITIES.index(name), None].bool()
            added = added + aligner(
                own,
                memory,
                query_times=token_times(own.shape[1]).to(own.device),
                memory_times=token_times(memory.shape[1], **self.clocks[name]).to(own.device),
                memory_mask=mask & masks[name] if name in masks else mask,
            )
        return own + added


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
