"""What every image detector shares: inputs of every kind, and scores of the items of a data set."""

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomaly_lib.data.base import Item, load_pixels
from anomaly_lib.data.images import IMAGE_SUFFIXES, check_values, images_below, read_image, rgb_of, upright
from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.detect.contract import Detector
from anomaly_lib.detect.scores import Scores
from anomaly_lib.detect.shown import Shown
from anomaly_lib.errors import UserError
from anomaly_lib.ops.predictions import joined
from anomaly_lib.types import Prediction


class ImageDetector(Detector):
    """A detector of images. Derived classes supply `_items`, `_score` and `predict_batch`.

    Maps cover what `transform` shows of an image, so `transform.denormalise(transform(image))` lies under them.
    """

    reads_grey: ClassVar[bool] = False  # `predict_batch` takes [B, 1, H, W] as well
    together: int = 64  # images that are decoded and scored together
    takes_pixels: ClassVar[bool] = True  # pictures of 8 bits are what it is made for
    transductive: bool = False  # a score depends on the images that are scored together

    transform: ImageTransform
    device: torch.device

    @property
    def class_names(self) -> list[str]:
        """The classes it knows, as far as they have names."""
        name = getattr(self.args, "obj", None)
        return [] if name is None else [name]

    @abstractmethod
    def predict_batch(self, images: Tensor) -> Prediction:
        """Scores and maps of transformed images [B, 3, H, W]."""

    def predict(self, inputs: Any) -> Prediction:
        """Score one or many raw inputs, with the decision where the detector has one; a notebook shows the answer.

        `inputs`: one or many files, a folder, arrays [H, W, 3] or [H, W], PIL images, uint8 tensors [3, H, W], or a
        batch [B, 3, H, W] of floats that has been transformed.
        """
        transformed = isinstance(inputs, Tensor) and inputs.is_floating_point()
        given = self._batch(inputs) if transformed else single_inputs(inputs)
        found = super().predict(given)

        def seen(index: int) -> np.ndarray:
            image = given[index] if transformed else self.transform(_decoded(given[index], index))
            return self.transform.denormalise(image)

        limit = None if self.decision is None else self.decision.map_threshold
        return Shown.of(found, names=_names(given), seen=seen, limit=limit)

    def _predict(self, inputs: Any) -> Prediction:
        """Of a transformed batch, or of single inputs, of which no more than `together` are held decoded."""
        if isinstance(inputs, Tensor):
            return self.predict_batch(inputs)
        step = len(inputs) if self.transductive else self.together
        parts = []
        for start in range(0, len(inputs), step):
            pictures = [_decoded(one, start + place) for place, one in enumerate(inputs[start : start + step])]
            parts.append(self.predict_pictures(pictures))
        return parts[0] if len(parts) == 1 else joined(parts)

    def _batch(self, images: Tensor) -> Tensor:
        """A transformed image or batch as `predict_batch` takes it; one channel is shown to three."""
        height, width = self.transform.output_size(*images.shape[-2:]) if images.ndim > 2 and images.numel() else (0, 0)
        if images.ndim not in (3, 4) or images.shape[-3] not in (1, 3) or images.shape[-2:] != (height, width):
            size = f"{height}, {width}" if height else "H, W"
            raise UserError(
                f"a tensor of transformed images is [B, 3, {size}] (or [B, 1, ...]); got {list(images.shape)}"
            )
        batch = (images if images.ndim == 4 else images[None]).float()
        good = batch.isfinite().flatten(1).all(1).tolist()
        if not all(good):
            raise UserError(f"input {good.index(False)}: the image has non-finite values")
        return batch if self.reads_grey else batch.expand(-1, 3, -1, -1)

    def predict_pictures(self, pictures: Sequence[np.ndarray]) -> Prediction:
        """Scores and maps of decoded pictures [H, W, 3], uint8 or float32."""
        return self.predict_through(lambda transform: torch.stack([transform(picture) for picture in pictures]))

    def predict_through(self, seen: Callable[[ImageTransform], Tensor]) -> Prediction:
        """Scores and maps of images that `seen` answers as a transform shows them, [B, 3, H, W]."""
        return self.predict_batch(seen(self.transform))

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


EXPECTED = "give a file, an array [H, W, 3] or [H, W], a PIL image, a tensor, or a list of these"
BRIGHTEST = 16.0  # of an array of floats: more is no image of 0..1, but one of 0..255 that was never divided


def pictures_of(inputs: Any) -> list[np.ndarray]:
    """One or many files, arrays, PIL images or uint8 tensors as decoded pictures [H, W, 3], uint8 or float32."""
    return [_decoded(picture, index) for index, picture in enumerate(single_inputs(inputs))]


def single_inputs(inputs: Any) -> list[Any]:
    """Each file (of a folder all below it), array, PIL image or tensor, not decoded yet."""
    if isinstance(inputs, (np.ndarray, Tensor)) and inputs.ndim == 4:
        inputs = list(inputs)
    single = isinstance(inputs, (str, Path, np.ndarray, Image.Image, Tensor))
    if (not single and not isinstance(inputs, Sequence)) or isinstance(inputs, (bytes, bytearray, memoryview)):
        raise UserError(f"cannot score {type(inputs).__name__}: {EXPECTED}")
    pictures = [inputs] if single else list(inputs)
    if not pictures:
        raise UserError(f"predict() got no images: {EXPECTED}")
    if isinstance(inputs, (str, Path)) and os.path.isdir(inputs):
        pictures = list(images_below(Path(inputs)))
        if not pictures:
            raise UserError(f"{inputs}: no image below it (known suffixes: {' '.join(sorted(IMAGE_SUFFIXES))})")
    return pictures


def _names(given: Iterable[Any]) -> list[str]:
    """How inputs are called where predictions are shown: as their files, with the folder where two share a name."""
    paths = [Path(one) if isinstance(one, (str, Path)) else None for one in given]
    files = {path for path in paths if path is not None}
    alike = len({path.name for path in files}) < len(files)
    return [
        f"input {index}" if path is None else f"{path.parent.name}/{path.name}" if alike else path.name
        for index, path in enumerate(paths)
    ]


def _decoded(picture: Any, index: int) -> np.ndarray:
    if isinstance(picture, (str, Path)):
        return read_image(picture)
    try:
        if isinstance(picture, Image.Image):
            return rgb_of(upright(picture))
        if isinstance(picture, Tensor):
            return _pixels(_channels_last(picture))
        if isinstance(picture, np.ndarray):
            return _pixels(picture)
    except UserError as error:
        raise UserError(f"input {index}: {error}") from None
    raise UserError(f"input {index}: cannot score {type(picture).__name__}: {EXPECTED}")


def _channels_last(picture: Tensor) -> np.ndarray:
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] not in (1, 3):
        kind = str(picture.dtype).removeprefix("torch.")
        raise UserError(f"a tensor of one image is [3, H, W] uint8, got {kind} {list(picture.shape)}")
    array: np.ndarray = picture.detach().cpu().permute(1, 2, 0).numpy()
    return array


def _pixels(array: np.ndarray) -> np.ndarray:
    """[H, W, 3], uint8 or float32 as files give it, of an array with no, one, three or four (with opacity) channels."""
    kind, shape = array.dtype, list(array.shape)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise UserError(f"an image is an array [H, W, 3] or [H, W], got {kind} {shape}")
    if kind == np.uint16:
        array = array.astype(np.float32) / 65535
    elif kind == np.bool_:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(kind, np.floating):
        check_values(array)
        array = array.astype(np.float32)
        if array.max() > BRIGHTEST:
            raise UserError(f"an image of floats holds 0..1, this one {array.max():.3g}; divide it, or give uint8")
    elif kind != np.uint8:
        raise UserError(f"an image is uint8, uint16 or float 0..1, got {kind} {shape}; convert it")
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]
