"""Learning-rate schedules by name. One unit of time is whatever the loop calls `.step()` on: an epoch or a step."""

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer, lr_scheduler

from anomaly_lib.errors import UserError
from anomaly_lib.options import SCHEDULES


def make_schedule(
    optimizer: Optimizer,
    name: str,
    total: int,
    *,
    warmup: int = 0,
    warmup_start_lr: float = 0.0,
    min_lr: float = 0.0,
    step_size: int = 10,
    gamma: float = 0.1,
    milestones: Sequence[int] = (),
    patience: int = 5,
) -> lr_scheduler.LRScheduler | lr_scheduler.ReduceLROnPlateau:
    """Linear warm-up from `warmup_start_lr` over `warmup` units, then the named curve down to `min_lr`.

    cosine: min_lr + (base - min_lr) (1 + cos(pi t / T)) / 2 with T = total - warmup.
    """
    if name == "plateau":
        return lr_scheduler.ReduceLROnPlateau(optimizer, factor=gamma, patience=patience, min_lr=min_lr)
    if name == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        # Share of the run in which the rate rises; in less than two steps it cannot.
        rise = min(0.3, max(2, warmup) / max(1, total)) if warmup else 0.3
        return lr_scheduler.OneCycleLR(optimizer, max_lr=peaks, total_steps=max(1, total), pct_start=rise)
    if name not in SCHEDULES:
        raise UserError(f"unknown schedule {name!r}; there are {', '.join(SCHEDULES)}")

    def curve(base: float, t: int) -> float:
        if t < warmup:
            return warmup_start_lr + (base - warmup_start_lr) * t / warmup
        span = max(1, total - warmup)
        progress = min(1.0, (t - warmup) / span)
        if name == "cosine":
            return min_lr + (base - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
        if name == "linear":
            return base + (min_lr - base) * progress
        if name == "step":
            return max(min_lr, base * gamma ** ((t - warmup) // step_size))
        if name == "multistep":
            return max(min_lr, base * gamma ** sum(t >= milestone for milestone in milestones))
        return base

    def factor_of(base: float) -> Callable[[int], float]:
        return lambda t: curve(base, t) / base if base else 0.0

    bases = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    return lr_scheduler.LambdaLR(optimizer, [factor_of(base) for base in bases])
