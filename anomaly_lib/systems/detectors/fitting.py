"""How a detector comes to know normal images: one pass to fill a memory, or epochs of training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from anomaly_lib.data.images import IMAGE_SUFFIXES, read_image
from anomaly_lib.data.synthesis import CutPaste, Damaged, perlin_damage, textures_of
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
from anomaly_lib.models.detectors import Draem, DraemSevNet, ReverseDistillation
from anomaly_lib.models.detectors.configs import MEMORIES
from anomaly_lib.systems.detectors.build import TrainedPart
from anomaly_lib.systems.detectors.data import image_transform
from anomaly_lib.systems.detectors.normal import ImagesOf

BEST = "best_model.pt"


def fit(
    run: Run,
    module: nn.Module,
    args: Any,
    device: torch.device,
    count: int,
    images_of: ImagesOf,
    validate: Callable[[], float] | None = None,
    kept: Sequence[str] = (),
) -> TrainState:
    """Fill a memory (PatchCore, PaDiM) or train (the others) on `count` normal images; `kept`: names of others."""
    state = TrainState(model=TrainedPart(module), extra={KEPT: list(kept)})
    if args.model not in MEMORIES:
        train_epochs(run, state, module, args, device, count, images_of, validate)
        return state
    run.restore(state)
    rows = progress(torch.arange(count).split(args.batch_size), "features")
    images = (images_of(index).to(device) for index in rows)
    only = {"chunk_rows": args.chunk_rows, "progress": progress_to("coreset")} if args.model == "patchcore" else {}
    module.eval().fit(images, **only)  # type: ignore[operator]
    state.history = [{"epoch": 0}]
    return state


def train_epochs(
    run: Run,
    state: TrainState,
    module: nn.Module,
    args: Any,
    device: torch.device,
    count: int,
    images_of: ImagesOf,
    validate: Callable[[], float] | None,
) -> None:
    """Train in epochs. With `validate`, the epoch of the best figure is kept in BEST and is what `module` ends with."""
    objective = wrap(LossStep(module, make_damage(args)), device)
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
        batches = epoch_batches(count, args.batch_size, seed=args.seed, epoch=epoch)
        for number, (index, weight) in enumerate(progress(batches, f"epoch {epoch + 1}/{args.epochs}")):
            generator = Generator().manual_seed(hash((args.seed, epoch, number, rank())) % 2**63)
            with autocast_for(device, args.precision):
                losses = objective(images_of(index).to(device), generator)
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
            better = stopping.improved(values["val_image_AUROC"], epoch)
            if better:
                state.best = {"epoch": epoch, "val_image_AUROC": values["val_image_AUROC"]}
        run.end_epoch(state, epoch, values, best=BEST if better else None)
    if validate is not None and (run.dir / BEST).is_file():
        state.model.load_state_dict(load_checkpoint(run.dir / BEST, system=run.system)["model"])
    module.eval()


def make_optimizer(module: nn.Module, args: Any) -> torch.optim.Optimizer:
    groups = param_groups(module, args.weight_decay)
    if args.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=args.learning_rate, momentum=0.9)
    # Reverse Distillation's published momenta; the others use Adam's own.
    betas = (0.5, 0.999) if args.model == "reverse_distillation" else (0.9, 0.999)
    kind = torch.optim.AdamW if args.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=args.learning_rate, betas=betas)


class LossStep(nn.Module):
    """Damage and loss of one batch as a module, so that torchrun's wrapper sees a forward pass."""

    def __init__(self, module: nn.Module, damage: Callable[[Tensor, Generator], Damaged] | None) -> None:
        super().__init__()
        self.module = module
        self.damage = damage

    def forward(self, images: Tensor, generator: Generator) -> dict[str, Tensor]:
        module = self.module
        if isinstance(module, ReverseDistillation):
            return module.losses(images)
        assert self.damage is not None
        damaged = self.damage(images, generator)
        if isinstance(module, DraemSevNet):
            return module.losses(damaged.images, images, damaged.mask, damaged.severity)
        assert isinstance(module, Draem)
        return module.losses(damaged.images, images, damaged.mask)


def make_damage(args: Any) -> Callable[[Tensor, Generator], Damaged] | None:
    """How a model's training images are damaged, None for Reverse Distillation."""
    if args.model == "draem_sevnet":
        cutpaste = CutPaste(
            width_range=(args.patch_width_range[0], args.patch_width_range[1]),
            ratio_range=(args.patch_ratio_range[0], args.patch_ratio_range[1]),
            count=args.patch_count,
            severity_max=args.severity_max,
            probability=args.anomaly_probability,
        )
        return lambda images, generator: cutpaste(images, generator=generator)
    if args.model == "draem":
        textures = None if args.textures is None else read_textures(args.textures, args)
        return lambda images, generator: perlin_damage(
            images, probability=args.anomaly_probability, textures=textures, generator=generator
        )
    return None


def read_textures(folder: str, args: Any) -> Tensor:
    """Every image below `folder` at the detector's size, decoded once."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"textures={folder}: no images below it")
    transform = image_transform(args)
    stack = textures_of([transform(read_image(path)) for path in paths], (args.image_size[0], args.image_size[1]))
    return stack.mean(1, keepdim=True) if args.channels == 1 else stack


@torch.no_grad()
def cost_lines(module: nn.Module, args: Any, device: torch.device, count: int) -> list[str]:
    """What fitting or training on `count` images is going to take, in words."""
    if args.model not in MEMORIES:
        steps = -(-count // args.batch_size)
        return [f"{args.epochs} epochs of {steps} steps of {args.batch_size} images"]
    height, width = args.image_size
    grid = module.embed(torch.zeros(1, 3, height, width, device=device))  # type: ignore[operator]
    patches, dim = grid.shape[2] * grid.shape[3], grid.shape[1]
    lines = [f"{count} images to encode with {args.backbone}, twice: to know them, and to judge each by the others"]
    if args.model == "padim":
        return [*lines, f"{patches} Gaussians of {dim} channels, {gigabytes(4 * patches * dim * dim)} of memory"]
    held = min(count * patches, args.chunk_rows or count * patches)
    return [*lines, f"{count * patches} patches of {dim} numbers, {gigabytes(4 * held * dim)} of memory at a time"]


def gigabytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
