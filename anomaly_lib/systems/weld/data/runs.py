"""A weld run as model inputs: all preprocessing in one settings object, missing modalities marked, not invented."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anomaly_lib.data.images import list_images, read_image
from anomaly_lib.systems.weld.data.manifest import MODALITIES, RawRun, WeldRun
from anomaly_lib.systems.weld.data.media import VIDEO_SUFFIXES, frame_indices, photo_tensor, read_video, video_tensor
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
    standardise,
)
from anomaly_lib.types import Sample


@dataclass(frozen=True, kw_only=True)
class WeldSettings:
    """All preprocessing, stored in the checkpoint: evaluation can only do what training did."""

    video_frames: int = 16
    video_size: int = 224
    video_norm: str = "half"
    video_source: str = "video"  # "images" is the original's slip: the process branch sees the result
    views: int = 5
    image_size: int = 224
    image_norm: bool = True  # the original never normalised its photos
    mels: int = 128
    audio_frames: int = 1024
    audio_norm: str = "ast"  # Kaldi log energies as AST was trained on; "db" = librosa dB below the maximum
    frame_select: str = "uniform"
    swap_audio_axes: bool = False  # the original gave AST (mel, time)
    sensor_steps: int = 128
    sensor_channels: int = 6
    sensor_norm: str = "sample"
    sensor_mean: tuple[float, ...] = ()
    sensor_std: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "WeldSettings":
        changes: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**changes)


def load_raw(run: WeldRun, settings: WeldSettings, parts: Sequence[str] = MODALITIES) -> RawRun:
    """Read the wanted parts of a run; a modality that is not there is None, one that is damaged raises."""
    if run.render is not None:
        return run.render(parts)
    video = _first(run.folder, VIDEO_SUFFIXES) or _frame_folder(run.folder)
    audio, sensors = _first(run.folder, (".flac", ".wav", ".mp3")), _first(run.folder, (".csv",))
    folder = run.folder / "images"
    photos = list_images(folder)[: settings.views] if "images" in parts and folder.is_dir() else []
    return RawRun(
        video=read_video(video, settings.video_frames) if video and "video" in parts else None,
        audio=read_audio(audio) if audio and "audio" in parts else None,
        sensors=read_sensor_csv(sensors) if sensors and "sensors" in parts else None,
        photos=tuple(_as_bytes(read_image(path)) for path in photos),
    )


def _first(folder: Path, suffixes: tuple[str, ...]) -> Path | None:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != ".")
    return files[0] if files else None


def _frame_folder(folder: Path) -> Path | None:
    """Frames as images lie in `frames/` or `video/`; never in `images/`, which shows the finished weld."""
    return next((folder / name for name in ("frames", "video") if (folder / name).is_dir()), None)


def _as_bytes(photo: np.ndarray) -> np.ndarray:
    return photo if photo.dtype == np.uint8 else (photo.clip(0, 1) * 255).astype(np.uint8)


def sensor_series(raw: RawRun, settings: WeldSettings) -> Tensor:
    """[S, C] before normalisation."""
    if raw.sensors is None:
        return torch.zeros(settings.sensor_steps, settings.sensor_channels)
    return resample_series(raw.sensors, settings.sensor_steps, settings.sensor_channels)


def preprocess(raw: RawRun, settings: WeldSettings) -> Sample:
    """Model inputs: video [T, 1 or 3, S, S], images [V, 3, S, S], audio [1, mels, F], sensors [S, C], presence [4]."""
    video, has_video = process_video(raw, settings)
    images, views = photo_tensor(raw.photos, settings.views, settings.image_size, normalise=settings.image_norm)
    present = [has_video, bool(views.any()), raw.audio is not None, raw.sensors is not None]
    return {
        "video": video,
        "images": images,
        "views": views,
        "audio": audio_tensor(raw.audio, settings),
        "sensors": normalise_sensors(sensor_series(raw, settings), settings),
        "present": torch.tensor(present),
    }


def process_video(raw: RawRun, settings: WeldSettings) -> tuple[Tensor, bool]:
    """The process video and whether there is one."""
    frames = raw.video
    if settings.video_source == "images":
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
    elif settings.audio_norm == "ast":
        mel = (kaldi_log_mel(samples, mels=settings.mels) - AST_MEAN) / (2 * AST_STD)
    else:
        raise ValueError(f"audio_norm {settings.audio_norm!r}: choose ast or db")
    return fit_frames(mel, settings.audio_frames, settings.frame_select).unsqueeze(0)


def normalise_sensors(series: Tensor, settings: WeldSettings) -> Tensor:
    if settings.sensor_norm == "train":
        return standardise(series, torch.tensor(settings.sensor_mean), torch.tensor(settings.sensor_std))
    return standardise(series)


class WeldDataset(Dataset[Sample]):
    """Samples with the model inputs, `label` (0 good, 1 defect), `class_label` 0..11, `class_name` and `id`."""

    def __init__(self, runs: Sequence[WeldRun], settings: WeldSettings) -> None:
        self.runs, self.settings = list(runs), settings

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> Sample:
        run = self.runs[index]
        sample = preprocess(load_raw(run, self.settings), self.settings)
        return sample | describe_run(run)


def describe_run(run: WeldRun) -> Sample:
    return {
        "label": run.label,
        "class_label": run.class_label,
        "class_name": run.class_name,
        "id": run.run_id,
        "path": str(run.folder),
    }
