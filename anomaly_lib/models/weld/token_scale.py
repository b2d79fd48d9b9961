"""Frozen tokens to a common scale: what differs between runs, not between the places of one recording."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.errors import UserError


class TokenScale(nn.Module):
    """z-score tokens [B, L, D] by the training runs, for each place and channel; the identity until it is fitted.

    Tokens of a frozen encoder vary far more over places than over runs (6 to 1 for the built-in video encoder), which
    hides the runs from a query that averages over places.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("std", torch.empty(0))
        self.mean: Tensor
        self.std: Tensor

    def fit(self, parts: Iterable[Tensor]) -> None:
        """Statistics of the runs that have this modality, given as parts [N, L, D]; nothing happens without runs."""
        moments = TokenMoments()
        for tokens in parts:
            moments.add(tokens)
        self.take(moments)

    def take(self, moments: "TokenMoments") -> None:
        """The statistics that were gathered."""
        if moments.count:
            self.mean = moments.mean.float()
            self.std = (moments.squares / moments.count).sqrt().float().clamp_min(1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.mean.numel():
            return tokens
        if tokens.shape[1:] != self.mean.shape:
            raise UserError(
                f"tokens {list(tokens.shape[1:])} where training had {list(self.mean.shape)}: same encoder?"
            )
        return (tokens - self.mean) / self.std

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("mean", "std"):  # their size is known only to the checkpoint
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, saved.detach().clone().to(getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class TokenMoments:
    """Mean and spread of tokens at each place and channel, gathered part by part: no part is kept."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.empty(0)  # [L, D] float64; sum of squared distances from the mean

    @torch.no_grad()
    def add(self, tokens: Tensor) -> None:
        """Take in runs [N, L, D]."""
        if not len(tokens):
            return
        fresh = tokens.double()
        mean, count = fresh.mean(0), self.count + len(tokens)
        squares = (fresh - mean).square().sum(0)
        if self.count:
            away = mean - self.mean
            squares = self.squares + squares + away.square() * (self.count * len(tokens) / count)
            mean = self.mean + away * (len(tokens) / count)
        self.count, self.mean, self.squares = count, mean, squares
