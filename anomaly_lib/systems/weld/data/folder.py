"""Which file of a run folder is which recording."""

from dataclasses import dataclass
from pathlib import Path

from anomaly_lib.data.images import list_images
from anomaly_lib.errors import UserError

VIDEO_SUFFIXES = (".avi", ".mp4", ".mov", ".mkv")
AUDIO_SUFFIXES = (".flac", ".wav", ".mp3")


@dataclass(frozen=True)
class Recordings:
    """The files of a run; None or empty where there is none. A video may be a folder of frames."""

    video: Path | None
    audio: Path | None
    sensors: Path | None
    photos: tuple[Path, ...]


def find_recordings(folder: Path) -> Recordings:
    """The recordings in `folder`; one that holds none is no run."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    files = sorted(path for path in folder.iterdir() if path.name[0] != ".")

    def first(suffixes: tuple[str, ...]) -> Path | None:
        return next((path for path in files if path.suffix.lower() in suffixes), None)

    images = folder / "images"
    found = Recordings(
        video=first(VIDEO_SUFFIXES) or _frame_folder(folder),
        audio=first(AUDIO_SUFFIXES),
        sensors=first((".csv",)),
        photos=tuple(list_images(images)) if images.is_dir() else (),
    )
    if not (found.video or found.audio or found.sensors or found.photos):
        raise UserError(f"{folder}: holds no video, sound, sensor table or photo")
    return found


def holds_recordings(folder: Path) -> bool:
    """Is this the folder of a run?"""
    try:
        find_recordings(folder)
    except UserError:
        return False
    return True


def _frame_folder(folder: Path) -> Path | None:
    """Frames as images lie in `frames/` or `video/`; never in `images/`, which shows the finished weld."""
    return next((folder / name for name in ("frames", "video") if (folder / name).is_dir()), None)
