"""A trained detector of the registry."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.data.base import ImageDataset, Item, select
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Facts, Selection
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.detect.scores import Scores
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import Checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.models.detectors.registry import entry_of
from anomaly_lib.ops.predictions import stacked
from anomaly_lib.systems.detectors.build import TrainedPart, build
from anomaly_lib.systems.detectors.data import image_transform, input_channels, open_class, tiles_of, with_channels
from anomaly_lib.systems.detectors.inputs import Inputs, images_of, score_all, score_images
from anomaly_lib.systems.detectors.options import Args, DetectorArgs
from anomaly_lib.types import Prediction


class ClassicalDetector(ImageDetector):
    """One of the registry on images of one class. `model` is its module, e.g. a PatchCore whose `bank` can be grown."""

    system = "detectors"
    honours = frozenset({"dataset", "obj", "on_error"})
    reads_grey = True

    def __init__(
        self, model: nn.Module, args: DetectorArgs, device: torch.device, decision: Decision | None = None
    ) -> None:
        self.model, self.args, self.device, self.decision = model.eval(), args, device, decision
        self.transform = image_transform(args)
        self.together = max(1, ClassicalDetector.together // len(tiles_of(args)))
        self.transductive = getattr(model, "transductive", False)
        notes = []
        if self.transductive:
            notes = ["transductive: images are scored by one another"]
            self.undecided = "its scores depend on the images that are scored together"
        self.facts = Facts(weights=weights_of(model), notes=notes, shown={"model": args.model, "seed": args.seed})

    def _items(self, choice: Choice) -> Selection:
        """The test images of the class of the training run, or of other data."""
        dataset, data_path = choice.dataset or self.args.dataset, choice.data_path or self.args.data_path
        name, items = open_class(dataset, data_path, choice.obj or self.args.obj)
        return self.selection_of(f"{dataset} {name} {self.args.model}", items, choice)

    def trained_on(self) -> Sequence[Any]:
        _, items = open_class(self.args.dataset, self.args.data_path, self.args.obj)
        return select(items, split="train", label=0)

    def selection_of(self, name: str, items: list[Item], choice: Choice) -> Selection:
        """The test images among `items`."""
        test = ImageDataset(
            select(items, split="test"), transform=self.transform, mask_size=tiles_of(self.args).map_size,
            on_error=choice.on_error,
        )  # fmt: skip
        return Selection(name, test.items, choice, beside=test)

    def _score(self, selection: Selection) -> Scores:
        test: ImageDataset = selection.beside
        images = images_of(test, self.args, input_channels(self.args))
        inputs = Inputs(self.model, images, self.args, self.device, learnt=False)
        found = score_all(inputs, "test", selection.choice.batch_size)
        known = all(item.has_truth for item in test.items)
        masks = stacked((self._mask(test, i)[None] for i in range(len(test))), len(test)) if known else None
        parts = {name: part.numpy() for name, part in found.parts.items()}
        return self.scores_of(selection.name, test.items, found, masks, parts=parts)

    def _mask(self, test: ImageDataset, index: int) -> Tensor:
        """Truth [H, W] of a test image; a good one need not be decoded again for it."""
        empty = torch.zeros(tiles_of(self.args).map_size, dtype=torch.bool)
        return empty if test.items[index].label == 0 else test[index]["mask"]

    def predict_batch(self, images: Tensor) -> Prediction:
        """Scores and maps of images [B, 3, H, W] (or [B, 1, H, W]) with values 0..1."""
        try:
            return score_images(self.model, with_channels(images, input_channels(self.args)), self.args, self.device)
        except ValueError as error:  # the module's own word on images that it cannot take
            raise UserError(str(error)) from error


def restored(
    checkpoint: Checkpoint, options: type[DetectorArgs], *, device: str, weights: str | None, which: str
) -> tuple[nn.Module, Any, torch.device, Decision | None]:
    """Module, options, device and decision of a checkpoint."""
    if which == "ema":
        raise UserError(f"{checkpoint.path}: this detector keeps no averaged (ema) parameters")
    args = options.from_saved(checkpoint.args)
    if weights is not None and not entry_of(args.model).frozen:
        raise UserError(f"weights={weights}: {args.model} reads no frozen network")
    args = args if weights is None else replace(args, weights=weights)
    where = pick_device(device)
    module = build(args, where)
    checkpoint.check_weights(weights_of(module))
    TrainedPart(module).load_state_dict(checkpoint["model"])
    return module.to(where), args, where, Decision.from_plain(checkpoint.extra.get("decision"))


def load(
    checkpoint: Checkpoint, *, device: str = "auto", weights: str | None = None, which: str = "auto"
) -> ClassicalDetector:
    """The detector of a checkpoint; `weights` says where the backbone's weights lie now, if they have moved."""
    return ClassicalDetector(*restored(checkpoint, Args, device=device, weights=weights, which=which))
