"""Exponential moving average of weights, with a decay that warms up so that early averages are not stale."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """e <- d e + (1 - d) m over parameters and float buffers; integer buffers are copied.

    With `warmup`, d_t = 1 - (1 + t / gamma)^(-power), clamped to [0, decay]; t counts updates.
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.9999, *, warmup: bool = True, gamma: float = 1.0, power: float = 2 / 3
    ) -> None:
        self.decay, self.warmup, self.gamma, self.power = decay, warmup, gamma, power
        self.updates = 0
        self.shadow: dict[str, Tensor] = {name: t.detach().clone() for name, t in model.state_dict().items()}

    def current_decay(self) -> float:
        if not self.warmup:
            return self.decay
        return min(self.decay, max(0.0, 1 - (1 + self.updates / self.gamma) ** -self.power))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        weight = 1 - self.current_decay()
        new = model.state_dict()
        floats = [name for name, t in self.shadow.items() if t.is_floating_point()]
        torch._foreach_lerp_([self.shadow[n] for n in floats], [new[n].to(self.shadow[n]) for n in floats], weight)
        for name, tensor in self.shadow.items():
            if not tensor.is_floating_point():
                tensor.copy_(new[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """Inside the block `model` carries the averaged weights; afterwards its own again."""
        own = {name: t.detach().clone() for name, t in model.state_dict().items()}
        model.load_state_dict(self.shadow)
        try:
            yield model
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, tensor in self.shadow.items():
            tensor.copy_(state["shadow"][name])
