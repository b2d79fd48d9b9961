"""A weld run as model inputs: all preprocessing by `WeldSettings`, missing modalities marked, not invented."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anomaly_lib.data.images import read_image
from anomaly_lib.models.weld.config import SENSOR_CHANNELS
from anomaly_lib.models.weld.quad_config import ALIASES
from anomaly_lib.systems.weld.data.folder import find_recordings
from anomaly_lib.systems.weld.data.manifest import MODALITIES, RawRun, WeldRun
from anomaly_lib.systems.weld.data.media import frame_indices, photo_tensor, read_video, video_tensor
from anomaly_lib.systems.weld.data.signal import (
    AST_MEAN,
    AST_STD,
    DB_FLOOR,
    fit_frames,
    kaldi_log_mel,
    mel_db,
    read_audio,
    read_sensor_csv,
    resample_series,
    sensors_by_name,
    standardise,
)
from anomaly_lib.systems.weld.options import WeldSettings
from anomaly_lib.types import Sample

Statistics = tuple[Tensor, Tensor] | None


def load_raw(run: WeldRun, settings: WeldSettings, parts: Sequence[str] = MODALITIES) -> RawRun:
    """Read the wanted parts of a run; a modality that is not there is None, one that is damaged raises."""
    if run.render is not None:
        return run.render(parts)
    found = find_recordings(run.folder)
    photos = found.photos[: settings.views] if "images" in parts else ()
    sensors = found.sensors if "sensors" in parts else None
    return RawRun(
        video=read_video(found.video, settings.video_frames) if found.video and "video" in parts else None,
        audio=read_audio(found.audio) if found.audio and "audio" in parts else None,
        sensors=None if sensors is None else read_sensor_csv(sensors),
        sensors_by_name=sensors is None or sensors_by_name(sensors),
        photos=tuple(_as_bytes(read_image(path)) for path in photos),
    )


def _as_bytes(photo: np.ndarray) -> np.ndarray:
    return photo if photo.dtype == np.uint8 else (photo.clip(0, 1) * 255).astype(np.uint8)


def sensor_series(raw: RawRun, settings: WeldSettings) -> Tensor:
    """[S, C] before normalisation."""
    if raw.sensors is None:
        return torch.zeros(settings.sensor_steps, SENSOR_CHANNELS)
    return resample_series(raw.sensors, settings.sensor_steps, SENSOR_CHANNELS)


def preprocess(raw: RawRun, settings: WeldSettings, statistics: Statistics = None) -> Sample:
    """Model inputs: video [T, 1 or 3, S, S], images [V, 3, H, W], audio [1, mels, F], sensors [S, C], presence [4].

    `statistics`: mean and std [C] of the training runs' sensors; None = each run's own.
    """
    video, has_video = process_video(raw, settings)
    images, views = photo_tensor(
        raw.photos, settings.views, settings.photo_size, normalise=not settings.legacy_image_norm
    )
    present = [has_video, bool(views.any()), raw.audio is not None, raw.sensors is not None]
    return {
        "video": video,
        "images": images,
        "views": views,
        "audio": audio_tensor(raw.audio, settings),
        "sensors": normalise_sensors(sensor_series(raw, settings), statistics),
        "present": torch.tensor(present),
    }


def process_video(raw: RawRun, settings: WeldSettings) -> tuple[Tensor, bool]:
    """The process video and whether there is one."""
    frames = raw.video
    if settings.legacy_video:
        frames = np.stack([photo.mean(2).astype(np.uint8) for photo in raw.photos]) if raw.photos else None
    if frames is None:
        channels = 1 if settings.video_norm == "half" else 3
        return torch.zeros(settings.video_frames, channels, settings.video_size, settings.video_size), False
    picked = frames[frame_indices(len(frames), settings.video_frames)]
    return video_tensor(picked, settings.video_size, settings.video_norm), True


def audio_tensor(wave: np.ndarray | None, settings: WeldSettings) -> Tensor:
    """[1, mels, F]; silence is the floor, never 0 dB (the loudest value)."""
    if wave is None:
        floor = (
            DB_FLOOR if settings.audio_norm == "db" else (np.log(np.finfo(np.float32).eps) - AST_MEAN) / (2 * AST_STD)
        )
        return torch.full((1, settings.mels, settings.audio_frames), float(floor))
    samples = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
    if settings.audio_norm == "db":
        mel = mel_db(samples, mels=settings.mels)
    else:
        mel = (kaldi_log_mel(samples, mels=settings.mels) - AST_MEAN) / (2 * AST_STD)
    return fit_frames(mel, settings.audio_frames, settings.frame_select).unsqueeze(0)


def normalise_sensors(series: Tensor, statistics: Statistics) -> Tensor:
    """[S, C] with z-scores by the given mean and std [C], or by the run's own."""
    return standardise(series) if statistics is None else standardise(series, *statistics)


class WeldSample(dict[str, Any]):
    """A sample, or a batch of them, that also knows the document's keys, e.g. ``sample["post_weld_images"]``."""

    def __missing__(self, key: str) -> Any:
        if key not in ALIASES:
            raise KeyError(key)
        return self[ALIASES[key]]


class WeldDataset(Dataset[Sample]):
    """Samples with the model inputs, `label` (0 good, 1 defect), `class_label` 0..11, `class_name` and `id`."""

    def __init__(self, runs: Sequence[WeldRun], settings: WeldSettings) -> None:
        self.runs, self.settings = list(runs), settings

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> Sample:
        run = self.runs[index]
        sample = preprocess(load_raw(run, self.settings), self.settings)
        return WeldSample(sample | describe_run(run))


def describe_run(run: WeldRun) -> Sample:
    return {
        "label": run.label,
        "class_label": run.class_label,
        "class_name": run.class_name,
        "id": run.run_id,
        "path": str(run.folder),
    }
