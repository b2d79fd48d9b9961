"""Frozen tokens to a common scale: what differs between runs, not between the places of one recording."""

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

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """Statistics of the runs [N, L, D] that have this modality; nothing happens without runs."""
        if len(tokens):
            self.mean = tokens.mean(0)
            self.std = tokens.std(0, unbiased=False).clamp_min(1e-6)

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
