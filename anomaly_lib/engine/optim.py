"""What happens between a loss and new weights, once and in the right order."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.errors import TrainingFailure


def param_groups(
    module: nn.Module, weight_decay: float, *, no_decay: Iterable[str] = (), lr_of: dict[str, float] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters, split so that vectors (biases, norms) and names in `no_decay` are not decayed.

    `lr_of` gives parameters whose name contains a key a learning rate of their own, e.g. ``{"text_scale": 1e-2}``.
    """
    groups: dict[tuple[float, float | None], list[nn.Parameter]] = {}
    no_decay, lr_of = tuple(no_decay), lr_of or {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or any(key in name for key in no_decay)
        lr = next((value for key, value in lr_of.items() if key in name), None)
        groups.setdefault((0.0 if plain else weight_decay, lr), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay} | ({} if lr is None else {"lr": lr})
        for (decay, lr), params in groups.items()
    ]


@dataclass
class NonFiniteGuard:
    """Counts skipped steps; stops a run that has learned nothing for `limit` steps in a row."""

    limit: int = 20
    total: int = 0
    in_a_row: int = 0

    def skipped(self, what: str) -> None:
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise TrainingFailure(
                f"{what} was not finite {self.in_a_row} steps in a row: "
                "lower learning_rate=, set grad_clip=, or give precision=fp32"
            )

    def stepped(self) -> None:
        self.in_a_row = 0


@dataclass
class StepReport:
    """What one call of `step` did."""

    grad_norm: float = math.nan
    skipped: bool = False
    losses: dict[str, float] = field(default_factory=dict)


def step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    scaler: torch.amp.GradScaler | None = None,
    clip: float = 0.0,
    guard: NonFiniteGuard | None = None,
    update: bool = True,
) -> StepReport:
    """Backward, then (with `update`) unscale, clip, step once, clear. Non-finite gradients change no weight.

    For accumulation over n parts call it with ``loss / n`` and ``update=False`` for all but the last part.
    """
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    scaler.scale(loss).backward()
    if not update:
        return StepReport()
    scaler.unscale_(optimizer)  # before clipping: the threshold is in true gradient units
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = float(torch.nn.utils.clip_grad_norm_(params, clip if clip > 0 else math.inf))
    finite = math.isfinite(norm)
    if finite or scaler.is_enabled():
        scaler.step(optimizer)  # an enabled scaler skips non-finite gradients itself and then lowers its scale
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if guard is not None:
        if finite:
            guard.stepped()
        elif not scaler.is_enabled() or not bool(torch.isfinite(loss.detach()).all()):
            guard.skipped("the loss" if not bool(torch.isfinite(loss.detach()).all()) else "the gradient")
    return StepReport(grad_norm=norm, skipped=not finite)
