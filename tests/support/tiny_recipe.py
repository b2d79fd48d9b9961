"""A recipe of the smallest size that uses all of the engine: dropout, momentum, schedule, EMA, early-stop counters.

Run it as a script (also under torchrun) or call `train(args)`; the engine's resume, kill and DDP tests do both.
"""

import sys
import time
from dataclasses import dataclass

import torch
from torch import nn

from anomaly_lib.command_line import command
from anomaly_lib.config import arg, override
from anomaly_lib.data.fingerprint import DataFingerprint
from anomaly_lib.engine import distributed
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import TrainState
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.ema import Ema
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.engine.resume import resumed
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.options import OptimArgs, RunArgs, TrackArgs
from anomaly_lib.types import RunResult


@dataclass
class Args(RunArgs, TrackArgs, OptimArgs):
    """Tiny recipe."""

    epochs: int = override(OptimArgs, "epochs", 12)
    batch_size: int = override(OptimArgs, "batch_size", 10)
    weight_decay: float = override(OptimArgs, "weight_decay", 0.01)
    grad_clip: float = override(OptimArgs, "grad_clip", 1.0)
    dropout: float = arg(0.2, "dropout; 0 makes ranks comparable")
    nap: float = arg(0.0, "seconds to sleep in each batch, so that a kill has something to hit")


def build(args: Args, device: torch.device) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(args.dropout), nn.Linear(16, 1)).to(device)


def train(args: Args) -> RunResult:
    args, device = resumed("tiny", args), pick_device(args.device)
    data = DataFingerprint.of(["drawn with seed 1"])
    with distributed.process_group(device), Run.open("tiny", args, name="tiny", data=data) as run:
        if run.finished:
            run.log.line(f"already done: {run.dir}")
            return run.result()
        x = torch.randn(45, 6, generator=torch.Generator().manual_seed(1)).to(device)
        y = x.sum(1, keepdim=True).sin()
        model = build(args, device)
        optimizer = torch.optim.AdamW(param_groups(model, args.weight_decay), lr=args.learning_rate)
        schedule = make_schedule(optimizer, "cosine", args.epochs, warmup=2)
        scaler, ema, early, guard = (
            make_scaler(device, args.precision),
            Ema(model),
            EarlyStopping(0, False),
            NonFiniteGuard(),
        )
        state = TrainState(model, optimizer, schedule, scaler, ema, early)
        first = run.restore(state)
        ddp = distributed.wrap(model, device)
        for epoch in range(first, args.epochs):
            total = 0.0
            for indices, weight in distributed.epoch_batches(len(x), args.batch_size, seed=args.seed, epoch=epoch):
                time.sleep(args.nap)
                with autocast_for(device, args.precision):
                    loss = (ddp(x[indices]) - y[indices]).square().mean() * weight
                step(loss, optimizer, scaler=scaler, clip=args.grad_clip, guard=guard)
                ema.update(model)
                total += distributed.mean_over_ranks(loss.detach())
            schedule.step()
            early.improved(total, epoch)
            run.end_epoch(state, epoch, {"loss": total})
        return run.finish(state, {"loss": state.history[-1]["loss"]})


def main(argv: list[str] | None = None) -> int:
    return command(Args, lambda args: train(args) and None, argv, prog="tiny_recipe.py", description="engine test")


if __name__ == "__main__":
    sys.exit(main())
