"""How a detector comes to know normal images: one pass to fill a memory, or epochs of training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from anomaly_lib.data.images import IMAGE_SUFFIXES, read_image
from anomaly_lib.data.synthesis import CutPaste, Damaged, perlin_damage, textures_of
from anomaly_lib.engine.amp import autocast_for, make_scaler
from anomaly_lib.engine.checkpoint import TrainState, load_checkpoint
from anomaly_lib.engine.distributed import epoch_batches, mean_over_ranks, rank, wrap
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.log import progress, progress_to
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.errors import UserError
from anomaly_lib.models.detectors.draem import Draem
from anomaly_lib.models.detectors.draem_sevnet import DraemSevNet
from anomaly_lib.models.detectors.reverse_distillation import ReverseDistillation
from anomaly_lib.systems.detectors.build import TrainedPart, image_transform
from anomaly_lib.systems.detectors.options import TRAINED

BEST = "best_model.pt"


def fit(
    run: Run,
    detector: nn.Module,
    args: Any,
    device: torch.device,
    count: int,
    images_of: Callable[[Tensor], Tensor],
    validate: Callable[[], float] | None = None,
) -> TrainState:
    """Fill a memory (PatchCore, PaDiM) or train (the others). With `validate`, the best epoch is kept in BEST."""
    state = TrainState(model=TrainedPart(detector), extra={"model": args.model})
    if args.model not in TRAINED:
        run.restore(state)
        rows = progress(torch.arange(count).split(args.batch_size), "features")
        images = (images_of(index).to(device) for index in rows)
        patchcore = args.model == "patchcore"
        extra = {"chunk_rows": args.chunk_rows, "progress": progress_to("coreset")} if patchcore else {}
        detector.eval().fit(images, **extra)  # type: ignore[operator]
        state.history = [{"epoch": 0}]
        return state

    objective = wrap(LossStep(detector, make_damage(args)), device)
    optimizer = make_optimizer(detector, args)
    scheduler = make_schedule(
        optimizer, args.schedule, args.epochs, warmup=args.warmup_epochs, step_size=args.step_size, gamma=args.gamma
    )
    scaler, guard = make_scaler(device, args.precision), NonFiniteGuard()
    stopping = EarlyStopping(patience=args.early_stopping_patience)
    state.optimizer, state.scheduler, state.scaler, state.early_stop = optimizer, scheduler, scaler, stopping

    for epoch in range(run.restore(state), args.epochs):
        if stopping.should_stop:
            break
        detector.train()
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
        if validate is not None:
            values["val_image_AUROC"] = validate()
            if stopping.improved(values["val_image_AUROC"], epoch):
                state.best = {"epoch": epoch, "val_image_AUROC": values["val_image_AUROC"]}
                run.save(state, epoch + 1, BEST)
        run.end_epoch(state, epoch, values)
        run.log.line(f"epoch {epoch + 1}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    if validate is not None and (run.dir / BEST).is_file():
        state.model.load_state_dict(load_checkpoint(run.dir / BEST, system=run.system)["model"])
    detector.eval()
    return state


def make_optimizer(detector: nn.Module, args: Any) -> torch.optim.Optimizer:
    groups = param_groups(detector, args.weight_decay)
    if args.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=args.learning_rate, momentum=0.9)
    # Reverse Distillation's published momenta; the others use Adam's own.
    betas = (0.5, 0.999) if args.model == "reverse_distillation" else (0.9, 0.999)
    kind = torch.optim.AdamW if args.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=args.learning_rate, betas=betas)


class LossStep(nn.Module):
    """Damage and loss of one batch as a module, so that torchrun's wrapper sees a forward pass."""

    def __init__(self, detector: nn.Module, damage: Callable[[Tensor, Generator], Damaged] | None) -> None:
        super().__init__()
        self.detector = detector
        self.damage = damage

    def forward(self, images: Tensor, generator: Generator) -> dict[str, Tensor]:
        detector = self.detector
        if isinstance(detector, ReverseDistillation):
            return detector.losses(images)
        assert self.damage is not None
        damaged = self.damage(images, generator)
        if isinstance(detector, DraemSevNet):
            return detector.losses(damaged.images, images, damaged.mask, damaged.severity)
        assert isinstance(detector, Draem)
        return detector.losses(damaged.images, images, damaged.mask)


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
        raise UserError(f"--textures {folder}: no images below it")
    transform = image_transform(args)
    stack = textures_of([transform(read_image(path)) for path in paths], (args.image_size[0], args.image_size[1]))
    return stack.mean(1, keepdim=True) if args.channels == 1 else stack
