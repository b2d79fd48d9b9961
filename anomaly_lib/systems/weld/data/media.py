"""Weld videos and photos: the frames and pictures a model needs, decoded once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomaly_lib.data.images import list_images, read_image
from anomaly_lib.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from anomaly_lib.errors import UserError
from anomaly_lib.files import check_file

WHOLE = 0.9  # share of the frames a container counts that must be there: some count by duration, none by a tenth wrong

REMEDY = "replace it, or give on_error=skip"


def frame_indices(total: int, wanted: int) -> list[int]:
    """``int(i (N - 1) / (T - 1))``: first and last frame included; T = 1 is the first; short videos repeat the last."""
    if total < wanted:
        return [*range(total), *[total - 1] * (wanted - total)]
    return [0] if wanted == 1 else [int(i * (total - 1) / (wanted - 1)) for i in range(wanted)]


def read_video(path: Path, frames: int) -> np.ndarray:
    """`frames` evenly spaced grey frames [T, H, W] uint8 of a video file, or of a folder of frame images."""
    if path.is_dir():
        files = list_images(path)
        if not files:
            raise UserError(f"{path}: no frame images in this folder")
        cache = {i: _grey(read_image(files[i])) for i in set(frame_indices(len(files), frames))}
        odd = next((files[i] for i, frame in cache.items() if frame.shape != cache[0].shape), None)
        if odd is not None:
            raise UserError(f"{odd}: its size differs from that of {files[0].name}; frames of a video have one size")
        return np.stack([cache[i] for i in frame_indices(len(files), frames)])
    check_file(path, "video file")
    import cv2

    capture = cv2.VideoCapture(str(path))
    try:
        total = _count_frames(capture, cv2)
        if total < 1:
            raise UserError(f"{path}: no frame of this video can be decoded; {REMEDY}")
        wanted = frame_indices(total, frames)
        found: dict[int, np.ndarray] = {}
        for i in range(wanted[-1] + 1):  # in order: seeking lands on key frames in several containers
            if not capture.grab():
                if i < WHOLE * total:
                    raise UserError(f"{path}: cut short, {i} of {total} frames can be decoded; {REMEDY}")
                break
            if i in wanted:
                ok, frame = capture.retrieve()
                if ok:
                    found[i] = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) if frame.ndim == 3 else frame
    finally:
        capture.release()
    if not found:
        raise UserError(f"{path}: no frame of this video can be decoded; {REMEDY}")
    readable = sorted(found)
    return np.stack([found[i] if i in found else found[_nearest(readable, i)] for i in wanted])


def _count_frames(capture, cv2) -> int:  # type: ignore[no-untyped-def]  # cv2 has no types
    """The container's count, or a pass over the file where it does not say."""
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if total > 0:
        return total
    total = 0
    while capture.grab():
        total += 1
    capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
    return total


def _nearest(known: Sequence[int], index: int) -> int:
    return min(known, key=lambda i: abs(i - index))


def _grey(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8:
        image = (image.clip(0, 1) * 255).astype(np.uint8)
    return np.asarray(image @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)


def video_tensor(frames: np.ndarray, size: int, norm: str = "half") -> Tensor:
    """[T, H, W] uint8 -> [T, 1, S, S] with ``(x - 0.5) / 0.5``, or [T, 3, S, S] with ImageNet statistics."""
    video = _resize(torch.from_numpy(np.array(frames)).unsqueeze(1), (size, size))  # [T, 1, S, S] in [0, 1]
    if norm == "half":
        return (video - 0.5) / 0.5
    if norm != "imagenet":
        raise UserError(f"video_norm={norm}: choose half or imagenet")
    return _imagenet(video.expand(-1, 3, -1, -1))


def photo_tensor(
    photos: Sequence[np.ndarray], views: int, size: tuple[int, int], *, normalise: bool = True
) -> tuple[Tensor, Tensor]:
    """The first `views` photos as [V, 3, H, W] and which are real [V]; the last one fills up the rest."""
    real = torch.tensor([i < len(photos) for i in range(views)])
    if not photos:
        return torch.zeros(views, 3, *size), real
    stack = [_resize(_channels_first(photo).unsqueeze(0), size)[0] for photo in photos[:views]]
    images = torch.stack(stack + [stack[-1]] * (views - len(stack)))
    return (_imagenet(images) if normalise else images), real


def photo_bytes(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A photo [H, W, 3] resized as for the encoder, still as bytes."""
    resized = _resize(_channels_first(photo).unsqueeze(0), size)[0]
    return np.asarray((resized.permute(1, 2, 0) * 255).round().byte())


def _channels_first(photo: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bilinear (area-like when shrinking) to H x W in [0, 1]."""
    values = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    if tuple(values.shape[-2:]) == size:
        return values
    return torch.nn.functional.interpolate(values, size, mode="bilinear", antialias=True, align_corners=False)


def _imagenet(images: Tensor) -> Tensor:
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return (images - mean) / std
