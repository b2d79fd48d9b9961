"""How a detector comes to know normal images: one pass to fill a memory, or epochs of training."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from anomaly_lib.detect.calibration import KEPT
from anomaly_lib.engine.amp import autocast_for, make_scaler
from anomaly_lib.engine.checkpoint import TrainState, load_checkpoint
from anomaly_lib.engine.distributed import epoch_batches, mean_over_ranks, rank, wrap
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.log import progress, progress_to
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.errors import UserError
from anomaly_lib.models.detectors.contract import FeatureDetector
from anomaly_lib.models.detectors.registry import entry_of
from anomaly_lib.systems.detectors.build import TrainedPart
from anomaly_lib.systems.detectors.inputs import Batch, Inputs

BEST = "best_model.pt"


def fit(
    run: Run, learnt: Inputs, args: Any, validate: Callable[[], float] | None = None, kept: Sequence[str] = ()
) -> TrainState:
    """Fill a memory or train on normal images, by what the module reads of them; `kept`: names of others."""
    module = learnt.module
    state = TrainState(model=TrainedPart(module), extra={KEPT: list(kept)})
    if entry_of(args.model).trained:
        train_epochs(run, state, learnt, args, validate)
        return state
    run.restore(state)
    module.eval()
    batches = learnt.whole(range(learnt.count), "normal images")
    try:
        if isinstance(module, FeatureDetector):
            module.progress = progress_to("fit")
            module.fit_features(batches)  # type: ignore[arg-type]
        else:
            module.fit(batches)  # type: ignore[operator]
    except ValueError as error:  # the module's own word on images that it cannot learn
        raise UserError(str(error)) from error
    state.history = [{"epoch": 0}]
    return state


def train_epochs(run: Run, state: TrainState, learnt: Inputs, args: Any, validate: Callable[[], float] | None) -> None:
    """Train in epochs. With `validate`, the epoch of the best figure is kept in BEST and is what `module` ends with."""
    module, device = learnt.module, learnt.device
    objective = wrap(LossStep(module), device)
    optimizer = make_optimizer(module, args)
    scheduler = make_schedule(
        optimizer,
        args.schedule,
        args.epochs,
        warmup=args.warmup_epochs,
        step_size=args.step_size,
        gamma=args.gamma,
        milestones=args.milestones,
    )
    scaler, guard = make_scaler(device, args.precision), NonFiniteGuard()
    stopping = EarlyStopping(patience=args.early_stopping_patience)
    state.optimizer, state.scheduler, state.scaler, state.early_stop = optimizer, scheduler, scaler, stopping

    for epoch in range(run.restore(state), args.epochs):
        if stopping.should_stop:
            break
        module.train()
        sums: dict[str, float] = {}
        batches = epoch_batches(len(learnt), args.batch_size, seed=args.seed, epoch=epoch)
        for number, (index, weight) in enumerate(progress(batches, f"epoch {epoch + 1}/{args.epochs}")):
            generator = Generator().manual_seed(hash((args.seed, epoch, number, rank())) % 2**63)
            with autocast_for(device, args.precision):
                losses = objective(learnt.batch(index.tolist()), generator)
                total = torch.stack(list(losses.values())).sum()
            step(total * weight, optimizer, scaler=scaler, clip=args.grad_clip, guard=guard)
            for key, value in {**losses, "loss": total}.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach())
        values = {key: mean_over_ranks(value / len(batches)) for key, value in sums.items()}
        values["lr"] = optimizer.param_groups[0]["lr"]
        scheduler.step()  # type: ignore[call-arg]
        better = False
        if validate is not None:
            values["val_image_AUROC"] = validate()
            warm = epoch >= min(args.warmup_epochs, args.epochs // 2)  # an untrained model is no candidate
            better = warm and stopping.improved(values["val_image_AUROC"], epoch)
            if better:
                state.best = {"epoch": epoch, "val_image_AUROC": values["val_image_AUROC"]}
        run.end_epoch(state, epoch, values, best=BEST if better else None)
    if validate is not None and (run.dir / BEST).is_file():
        state.model.load_state_dict(load_checkpoint(run.dir / BEST, system=run.system)["model"])
    module.eval()


def make_optimizer(module: nn.Module, args: Any) -> torch.optim.Optimizer:
    groups = param_groups(module, args.weight_decay)
    if args.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=args.learning_rate, momentum=args.momentum)
    kind = torch.optim.AdamW if args.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=args.learning_rate, betas=(args.momentum, 0.999))


class LossStep(nn.Module):
    """The losses of one batch as a module, so that torchrun's wrapper sees a forward pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.module.training_losses(batch, generator)  # type: ignore[operator]
        return losses


@torch.no_grad()
def cost_lines(learnt: Inputs) -> list[str]:
    """What learning these images is going to take, in words."""
    module, args, lines = learnt.module, learnt.args, []
    if entry_of(args.model).trained:
        steps = -(-len(learnt) // args.batch_size)
        lines.append(f"{args.epochs} epochs of {steps} steps of {args.batch_size} images")
    if not isinstance(module, FeatureDetector):
        return lines or [f"{len(learnt)} images to look at"]
    memory = module.memory_in_words(learnt.blank(), len(learnt))
    return [*lines, learnt.cost(), *([] if memory is None else [memory])]
