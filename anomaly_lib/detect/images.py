"""What every image detector shares: inputs of every kind, and scores of the items of a data set."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomaly_lib.data.base import Item, load_pixels
from anomaly_lib.data.images import read_image
from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.detect.contract import Detector
from anomaly_lib.detect.scores import Scores
from anomaly_lib.errors import UserError
from anomaly_lib.types import Prediction


class ImageDetector(Detector):
    """A detector of images. Derived classes supply `_items`, `_score` and `predict_batch`.

    Maps cover what `transform` shows of an image, so `transform.denormalise(transform(image))` lies under them.
    """

    transform: ImageTransform
    device: torch.device

    @abstractmethod
    def predict_batch(self, images: Tensor) -> Prediction:
        """Scores and maps of transformed images [B, 3, H, W]."""

    def _predict(self, inputs: Any) -> Prediction:
        """`inputs`: one or many files, arrays [H, W, 3] or [H, W], PIL images, or a transformed batch [B, 3, H, W]."""
        if isinstance(inputs, Tensor):
            if inputs.ndim not in (3, 4) or not inputs.numel():
                raise UserError(f"a tensor of images is [B, 3, H, W], transformed; got {list(inputs.shape)}")
            return self.predict_batch(inputs if inputs.ndim == 4 else inputs[None])
        return self.predict_batch(torch.stack([self.transform(picture) for picture in pictures_of(inputs)]))

    def scores_of(
        self, name: str, items: Sequence[Item], prediction: Prediction, masks: Tensor | None, **more: Any
    ) -> Scores:
        """Scores of the items of a data set; `masks` [N, H, W] or None where pixel truth is not known for all."""
        return Scores(
            system=self.system,
            name=name,
            scores=prediction.score.detach().float().cpu().numpy(),
            labels=np.array([item.label for item in items]),
            paths=[item.path.as_posix() for item in items],
            groups=[item.class_name for item in items],
            defects=[item.defect for item in items],
            maps=None if prediction.map is None else prediction.map.detach().float().cpu().numpy(),
            cell=prediction.cell,
            masks=None if masks is None else masks.cpu().numpy(),
            image=lambda index: self.transform.denormalise(self.transform(load_pixels(items[index])[0])),
            **more,
        )


def pictures_of(inputs: Any) -> list[Any]:
    """One or many files, arrays or PIL images as a list of decoded pictures."""
    single = isinstance(inputs, (str, Path, np.ndarray, Image.Image))
    if not single and not isinstance(inputs, Sequence):
        raise UserError(f"cannot score {type(inputs).__name__}: give a path, an array, a PIL image, a tensor or a list")
    pictures = [inputs] if single else list(inputs)
    if not pictures:
        raise UserError("predict() got no images")
    return [_decoded(picture) for picture in pictures]


def _decoded(picture: Any) -> Any:
    if isinstance(picture, (str, Path)):
        return read_image(picture)
    if not isinstance(picture, (np.ndarray, Image.Image)):
        raise UserError(f"cannot score {type(picture).__name__}: give a path, an array, a PIL image or a tensor")
    if isinstance(picture, np.ndarray) and not picture.size:
        raise UserError(f"cannot score an empty picture of shape {picture.shape}")
    return picture
