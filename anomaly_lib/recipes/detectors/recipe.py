"""PatchCore, PaDiM, Reverse Distillation, DRAEM and DRAEM-SevNet on one class of any image data set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Generator, Tensor, nn

from anomaly_lib.config import arg
from anomaly_lib.data import ImageDataset, class_names, open_dataset, select
from anomaly_lib.data.base import load_pixels
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import TrainState, load_checkpoint
from anomaly_lib.engine.distributed import epoch_batches, mean_over_ranks, process_group, rank, wrap
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.log import progress
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.errors import UserError
from anomaly_lib.metrics import image_metrics, pixel_metrics
from anomaly_lib.recipes.detectors.build import (
    LossStep,
    TrainedPart,
    build,
    image_transform,
    make_damage,
    score_batches,
)
from anomaly_lib.recipes.detectors.options import TRAINED, DetectorArgs, on_demo_data, resolve
from anomaly_lib.recipes.evaluation.contract import EvaluateArgs, Evaluation
from anomaly_lib.types import Prediction, RunResult

SYSTEM = "detectors"
BEST = "best_model.pt"


@dataclass
class Args(DetectorArgs):
    """A classical detector on one class of a data set."""

    obj: Optional[str] = arg(None, "class; None = the only one, or the demo's first", type=str, aliases=["class-name"])


def tiny() -> Args:
    """Seconds on a CPU: PatchCore on a random ResNet-18."""
    return Args(backbone="resnet18", weights="random", image_size=[64, 64], coreset_size=60, figures=False)


# -- data -----------------------------------------------------------------------------------------------------------


def open_class(args: Any) -> tuple[str, ImageDataset, ImageDataset]:
    """Name, normal training images and test images of the class asked for."""
    classes = None if args.obj is None else [args.obj]
    if classes is None and args.dataset == "demo" and not args.data_path:
        from anomaly_lib.data.demo.items import CATEGORIES

        classes = [next(iter(CATEGORIES))]
    items = open_dataset(args.dataset, args.data_path, classes=classes)
    names = class_names(items)
    if len(names) > 1:
        raise UserError(f"--obj: choose one of the classes {', '.join(names)}")
    make = {"transform": image_transform(args), "on_error": args.on_error}
    return names[0], ImageDataset(select(items, split="train", label=0), **make), ImageDataset(
        select(items, split="test"), **make
    )  # fmt: skip


def stack_images(data: ImageDataset, index: Tensor | Sequence[int], channels: int = 3) -> Tensor:
    """[B, C, H, W] of some samples; one channel is their mean."""
    images = torch.stack([data[int(i)]["image"] for i in index])
    return images.mean(1, keepdim=True) if channels == 1 else images


# -- training -------------------------------------------------------------------------------------------------------


def train(args: Args) -> RunResult:
    """Fit one detector, score the test images once."""
    args = resolve(on_demo_data(args))
    if args.early_stopping_patience:
        raise UserError("--early-stopping-patience: there is no validation split here (the HDMAP experiments have one)")
    device = pick_device(args.device)
    name, normal, test = open_class(args)
    with process_group(device), Run.open(SYSTEM, args, name=f"{args.model}-{args.dataset}-{name}") as run:
        if run.finished:
            return replace(run.result(), already_done=True)
        if args.dataset == "demo" and not args.data_path:
            run.log.line("no --data-path: running on the built-in demo data")
        run.log.line(f"{args.model}: {name}, {len(normal)} normal images, {len(test)} test images")
        run.note(skipped=normal.skipped + test.skipped, class_name=name)
        channels = input_channels(args)
        detector = build(args, device)
        state = fit(run, detector, args, device, len(normal), lambda index: stack_images(normal, index, channels))
        metrics = test_metrics(detector, test, args, device)[1]
        note = " [random weights]" if args.weights == "random" else ""
        run.log.line(", ".join(f"{key} {value:.4f}" for key, value in metrics.items() if "threshold" not in key) + note)
        return run.finish(state, metrics)


def input_channels(args: Any) -> int:
    return args.channels if args.model.startswith("draem") else 3


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
        extra = {"chunk_rows": args.chunk_rows} if args.model == "patchcore" else {}
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
            run.stop.check()
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


# -- use ------------------------------------------------------------------------------------------------------------


def test_metrics(
    detector: nn.Module, test: ImageDataset, args: Any, device: torch.device
) -> tuple[Prediction, dict[str, float], Tensor, Tensor]:
    """Prediction, metrics, labels and masks of the test images."""
    channels, index = input_channels(args), torch.arange(len(test))
    batches = (stack_images(test, rows, channels) for rows in progress(index.split(args.batch_size), "test"))
    prediction = score_batches(detector, batches, device)
    labels = torch.tensor([item.label for item in test.items])
    masks = torch.stack([test[i]["mask"] for i in range(len(test))])
    metrics = {f"image_{key}": value for key, value in image_metrics(prediction.score, labels).items()}
    if all(item.has_truth for item in test.items) and bool(masks.any()):
        metrics |= {f"pixel_{key}": value for key, value in pixel_metrics(prediction.map, masks).items()}
    return prediction, metrics, labels, masks


class Detector:
    """A trained detector for single pictures."""

    def __init__(self, model: nn.Module, args: Any, device: torch.device, threshold: float | None = None) -> None:
        self.model, self.args, self.device = model.eval(), args, device
        self.transform = image_transform(args)
        self.threshold = threshold

    def predict(self, images: Any) -> Prediction:
        """Scores and maps of pictures [H, W, 3] (or [H, W]) of any sizes, or of a tensor [B, C, H, W] in 0..1."""
        if isinstance(images, Tensor):
            return score_batches(self.model, [images], self.device)
        single = isinstance(images, (np.ndarray, str, Path))
        from anomaly_lib.data.images import read_image

        pictures = [images] if single else list(images)
        arrays = [read_image(p) if isinstance(p, (str, Path)) else p for p in pictures]
        batch = torch.stack([self.transform(array) for array in arrays])
        if input_channels(self.args) == 1:
            batch = batch.mean(1, keepdim=True)
        return score_batches(self.model, [batch], self.device)


def predict(model: Detector, batch: Any) -> Prediction:
    """Scores and maps of a batch."""
    return model.predict(batch)


def load_detector(
    path: str | Path,
    *,
    device: str = "auto",
    weights: str | None = None,
    system: str = SYSTEM,
    options: type[DetectorArgs] = Args,
) -> Detector:
    """The detector of a checkpoint; `weights` says where the backbone's weights lie now, if they have moved."""
    saved = load_checkpoint(path, system=system)
    args = resolve(options(**saved["args"]))
    args = args if weights is None else replace(args, weights=weights)
    where = pick_device(device)
    model = build(args, where)
    TrainedPart(model).load_state_dict(saved["model"])
    return Detector(model.to(where), args, where, saved["extra"].get("threshold"))


def evaluate(checkpoint: Path, args: EvaluateArgs) -> Evaluation:
    """Score the test images of the checkpoint's class, or of other data."""
    detector = load_detector(checkpoint, device=args.device)
    if args.split != "test":
        raise UserError(f"--split {args.split}: these detectors are scored on the test split only")
    options = replace(
        detector.args,
        dataset=args.dataset or detector.args.dataset,
        data_path=args.data_path or detector.args.data_path,
        obj=args.obj or detector.args.obj,
        batch_size=args.batch_size,
        on_error=args.on_error,
    )
    name, _, test = open_class(options)
    prediction, metrics, labels, masks = test_metrics(detector.model, test, options, detector.device)
    return Evaluation(
        system=SYSTEM,
        name=f"{options.dataset} {name} {options.model}",
        metrics=metrics,
        scores=prediction.score.numpy(),
        labels=labels.numpy(),
        paths=[item.path.as_posix() for item in test.items],
        groups=[item.class_name for item in test.items],
        defects=[item.defect for item in test.items],
        maps=None if prediction.map is None else prediction.map.numpy(),
        masks=masks.numpy() if any(key.startswith("pixel_") for key in metrics) else None,
        image=lambda index: detector.transform.denormalise(detector.transform(load_pixels(test.items[index])[0])),
        notes=["random weights"] if options.weights == "random" else [],
        facts={"model": options.model, "seed": options.seed},
    )
