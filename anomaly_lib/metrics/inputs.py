"""What the metrics accept (lists, NumPy arrays, tensors on any device) brought to one form, and refused when it is
wrong.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly_lib.errors import UserError

FloatArray = NDArray[np.floating[Any]]
Array = NDArray[Any]


def to_numpy(values: Any) -> Array:
    """A NumPy view where possible: CPU tensors are not copied, CUDA tensors are brought to the host, bfloat16 becomes
    float32.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach()
        if values.dtype in (torch.bfloat16, torch.float16):
            values = values.float()
        return values.cpu().numpy()
    return np.asarray(values)


def to_float(values: Any) -> FloatArray:
    """Floating array of at least float32, so that comparing two scores never loses what the input held."""
    array = to_numpy(values)
    if array.dtype.kind not in "fiub":
        raise UserError(f"scores must be numbers, not {array.dtype}")
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def first_non_finite(rows: Iterable[FloatArray]) -> int | None:
    """Index of the first row that holds NaN or infinity."""
    return next((index for index, row in enumerate(rows) if not np.isfinite(row).all()), None)


def scores_and_labels(scores: Any, labels: Any) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Check and flatten one score and one label (0 normal, 1 anomalous) a sample."""
    score, label = to_float(scores).reshape(-1), to_numpy(labels).reshape(-1)
    if score.size == 0:
        raise UserError("metrics need at least one score; the list of scores is empty")
    if score.size != label.size:
        raise UserError(f"{score.size} scores but {label.size} labels: one label per score is needed")
    if not np.isin(label, (0, 1)).all():
        raise UserError(f"labels must be 0 (normal) or 1 (anomalous); found {np.setdiff1d(label, (0, 1))[:3].tolist()}")
    if not np.isfinite(score).all():
        index = first_non_finite(score[:, None])
        raise UserError(
            f"score of sample {index} is not finite ({score[index]}); mend the detector's output before scoring"
        )
    return score, label.astype(bool)


def maps_and_masks(maps: Any, masks: Any) -> tuple[list[FloatArray], list[Array | None]]:
    """Lists of [H, W] score maps and masks (non-zero = anomalous, None = nothing marked); sizes may differ between
    images.
    """
    map_list = [_plane(to_float(one), "anomaly map", i) for i, one in enumerate(_images(maps))]
    if not map_list:
        raise UserError("pixel metrics need at least one anomaly map; the list of maps is empty")
    mask_images = _images(masks)
    if len(mask_images) != len(map_list):
        raise UserError(
            f"{len(map_list)} anomaly maps but {len(mask_images)} masks: one mask (or None) per map is needed"
        )
    mask_list = [None if one is None else _plane(to_numpy(one), "mask", i) for i, one in enumerate(mask_images)]
    for index, (plane, mask) in enumerate(zip(map_list, mask_list, strict=True)):
        if mask is not None and plane.shape != mask.shape:
            raise UserError(
                f"sample {index}: the map is {plane.shape} but the mask is {mask.shape}; resize the map to the mask"
            )
    return map_list, mask_list


def _images(stack: Any) -> Sequence[Any]:
    if isinstance(stack, (np.ndarray, torch.Tensor)):
        return list(stack[None] if stack.ndim == 2 else stack)  # one [H, W] image or [N, H, W] or [N, 1, H, W]
    return list(stack)


def _plane(image: Array, what: str, index: int) -> Array:
    if image.ndim == 3 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 2 or image.size == 0:
        raise UserError(f"{what} of sample {index} must be [H, W] or [1, H, W] and not empty; got {image.shape}")
    return image
