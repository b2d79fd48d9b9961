"""PatchCore, PaDiM, Reverse Distillation, DRAEM and DRAEM-SevNet on one class of any image data set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_lib.backbones.identity import weight_remarks, weights_of
from anomaly_lib.config import arg
from anomaly_lib.data import ImageDataset, class_names, open_dataset, select
from anomaly_lib.data.base import load_pixels
from anomaly_lib.detect.contract import EvaluateArgs, Evaluation
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import check_weights, load_checkpoint
from anomaly_lib.engine.distributed import process_group
from anomaly_lib.engine.log import progress
from anomaly_lib.engine.run import Run
from anomaly_lib.errors import UserError
from anomaly_lib.metrics import image_metrics, pixel_metrics
from anomaly_lib.systems.detectors.build import TrainedPart, build, image_transform, score_batches
from anomaly_lib.systems.detectors.options import DetectorArgs, on_demo_data, resolve
from anomaly_lib.systems.detectors.training import fit
from anomaly_lib.types import Prediction, RunResult

SYSTEM = "detectors"


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
        run.note(weights=weights_of(detector))
        state = fit(run, detector, args, device, len(normal), lambda index: stack_images(normal, index, channels))
        metrics = test_metrics(detector, test, args, device)[1]
        shown = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items() if "threshold" not in key)
        run.log.line(shown + "".join(f" [{note}]" for note in weight_remarks(run.record["weights"])))
        return run.finish(state, metrics)


def input_channels(args: Any) -> int:
    return args.channels if args.model.startswith("draem") else 3


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
    check_weights(path, saved["extra"], weights_of(model))
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
        notes=weight_remarks(weights_of(detector.model)),
        facts={"model": options.model, "seed": options.seed},
    )
