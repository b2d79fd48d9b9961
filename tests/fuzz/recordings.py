"""What a weld run is made of: sensor tables, sound, video, photos, and folders that hold some of them."""

import functools
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.data.media import read_video
from anomaly_lib.systems.weld.data.runs import load_raw, preprocess
from anomaly_lib.systems.weld.data.signal import read_audio, read_sensor_csv
from anomaly_lib.systems.weld.features import readable_runs
from anomaly_lib.systems.weld.options import WeldSettings
from anomaly_lib.systems.weld.runs_of import runs_of
from tests.fuzz.lists import ENCODINGS
from tests.fuzz.oracle import Case
from tests.fuzz.pictures import NO_FILES

SMALL = WeldSettings(video_frames=4, video_size=16, image_size=[16], views=2, audio_frames=16, sensor_steps=8)


def sensor_file(content: bytes | str, shape: tuple[int, ...] | None = None) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        (folder / "s.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        found = read_sensor_csv(folder / "s.csv")
        return shape is None or found.shape == shape

    return act


def sensors(rng: np.random.Generator) -> Iterator[Case]:
    for rows in (1, 2, 7):
        for columns in (1, 3, 6, 9):
            values = rng.normal(size=(rows, columns))
            head = ",".join(f"c{i}" for i in range(columns))
            body = [",".join(f"{x:.3f}" for x in row) for row in values]
            for newline in ("\n", "\r\n"):
                text = newline.join([head, *body, ""])
                yield Case(
                    "sensors", f"{rows}x{columns} lines {newline!r}", "accept", sensor_file(text, (rows, columns))
                )
            dated = "\n".join([f"Date,{head},Remarks ", *(f"1/1/2025,{row}" for row in body)])
            yield Case(
                "sensors", f"{rows}x{columns} dated, one field short", "accept", sensor_file(dated, (rows, columns))
            )
    for encoding in ENCODINGS:  # only numbers count, so a foreign letter in a title does no harm
        yield Case("sensors", f"in {encoding}", "accept", sensor_file("é,b\n1,2\n3,4\n".encode(encoding), (2, 2)))
    for gap in ("", "nan", "inf", "-inf", "x", "1e400", " ", "--"):
        yield Case("sensors", f"a gap of {gap!r}", "accept", sensor_file(f"a,b\n1,2\n{gap},4\n5,6\n", (3, 2)))
    for junk in (
        b"",
        b"\n",
        b"a,b\n",
        b"a,b\nx,y\n",
        b",\n,\n",
        rng.bytes(60),
        b"\xff\xfe",
        b"a\n1,2\n3,4,5,6\n",
        b'a\n"1',
    ):
        yield Case("sensors", f"is {junk[:9]!r} of {len(junk)}", "refuse", sensor_file(junk), r"s\.csv")
    for what, make in NO_FILES.items():
        yield Case("sensors", what, "refuse", no_file(make, "s.csv", read_sensor_csv), "sensor file|cannot be read")


def no_file(make: Callable[[Path], object], name: str, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        make(folder / name)
        return read(folder / name)

    return act


def sound(rng: np.random.Generator, rate: int, channels: int, count: int, suffix: str = "WAV", **more: Any) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, 0.1 * rng.standard_normal((count, channels)), rate, format=suffix, **more)
    return stream.getvalue()


def sound_file(content: bytes, name: str, length: int | None = None) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        (folder / name).write_bytes(content)
        found = read_audio(folder / name)
        return length is None or (found.ndim == 1 and len(found) == length)

    return act


def audio(rng: np.random.Generator) -> Iterator[Case]:
    for suffix in ("wav", "flac"):
        for rate in (1000, 8000, 16_000, 22_050, 44_100, 44_101, 48_000, 192_000):
            for channels in (1, 2, 5):
                count = int(rng.integers(1, 400))
                content = sound(rng, rate, channels, count, suffix)
                length = count if rate == 16_000 else -(-count * 16_000 // rate)
                where = f"{suffix} {rate} Hz {channels} channels {count} samples"
                yield Case("audio", where, "accept", sound_file(content, f"a.{suffix}", length))
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"):
        yield Case(
            "audio",
            f"wav {subtype}",
            "accept",
            sound_file(sound(rng, 16_000, 1, 99, "WAV", subtype=subtype), "a.wav", 99),
        )
    for suffix in ("wav", "flac"):
        whole = sound(rng, 16_000, 1, 4000, suffix)
        for share in (0.0, 0.001, 0.005, 0.05, 0.2, 0.4, 0.6, 0.8, 0.9):
            cut = whole[: int(share * len(whole))]
            yield Case("audio", f"{suffix} cut to {share}", "refuse", sound_file(cut, f"a.{suffix}"), rf"a\.{suffix}")
        for junk in (b"hello", b"\0" * 99, rng.bytes(99), whole[::-1], b"RIFF", b"fLaC", b"ID3\0\0"):
            yield Case("audio", f"{suffix} of {junk[:6]!r}", "refuse", sound_file(junk, f"a.{suffix}"), rf"a\.{suffix}")
    flac = sound(rng, 16_000, 1, 3000, "flac")
    for place in sorted(rng.choice(np.arange(100, len(flac)), 30, replace=False).tolist()):
        bent = bytearray(flac)
        bent[place] ^= 1 << int(rng.integers(8))
        yield Case("audio", f"flac bent at {place}", "refuse", sound_file(bytes(bent), "a.flac"), r"a\.flac")
    for rate in (0, 1, 999, 768_001, 2**31 - 1):
        bent = bytearray(sound(rng, 16_000, 1, 50))
        bent[24:28] = rate.to_bytes(4, "little")
        yield Case("audio", f"a rate of {rate}", "refuse", sound_file(bytes(bent), "a.wav"), r"a\.wav")
    for value in (np.nan, np.inf):
        wave = np.zeros(50, np.float32)
        wave[7] = value
        stream = io.BytesIO()
        soundfile.write(stream, wave, 16_000, format="WAV", subtype="FLOAT")
        yield Case("audio", f"holds {value}", "refuse", sound_file(stream.getvalue(), "a.wav"), "non-finite")
    yield Case("audio", "no samples", "refuse", sound_file(sound(rng, 16_000, 1, 0), "a.wav"), "empty")
    for what, make in NO_FILES.items():
        yield Case("audio", what, "refuse", no_file(make, "a.wav", read_audio), "sound file|cannot be read")


@functools.cache
def clip(frames: int, width: int = 32, height: int = 24, seed: int = 0) -> bytes:
    import cv2

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 8.0, (width, height))
        for frame in np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8):
            writer.write(frame)
        writer.release()
        return path.read_bytes()


def video_file(content: bytes, wanted: int = 4, size: tuple[int, int] = (24, 32)) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        (folder / "v.avi").write_bytes(content)
        return read_video(folder / "v.avi", wanted).shape == (wanted, *size)

    return act


def video(rng: np.random.Generator) -> Iterator[Case]:
    for frames in (1, 2, 5, 16):
        for wanted in (1, 2, 4, 9):
            yield Case("video", f"{frames} frames, {wanted} wanted", "accept", video_file(clip(frames), wanted))
    for width, height in ((16, 16), (64, 8), (8, 64)):
        yield Case("video", f"of {width}x{height}", "accept", video_file(clip(3, width, height), 4, (height, width)))
    whole = clip(16)
    for share in (0.0, 0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        yield Case("video", f"cut to {share}", "refuse", video_file(whole[: int(share * len(whole))]), r"v\.avi")
    for junk in (b"hello", b"\0" * 99, rng.bytes(200), b"RIFF\0\0\0\0AVI ", b"[]", b"\xff\xd8\xff"):
        yield Case("video", f"of {junk[:7]!r}", "refuse", video_file(junk), r"v\.avi")
    for place in sorted(rng.choice(len(whole), 20, replace=False).tolist()):
        bent = bytearray(whole)
        bent[place] ^= 1 << int(rng.integers(8))
        yield Case("video", f"bent at {place}", "either", video_file(bytes(bent)))
    for what, make in NO_FILES.items():
        expect = r"video file|cannot be read|no frame images|no such"
        yield Case("video", what, "refuse", no_file(make, "v.avi", lambda path: read_video(path, 4)), expect)
    for count in (1, 2, 5):
        for odd in (False, True):

            def frames_of(folder: Path, count: int = count, odd: bool = odd) -> Any:
                for i in range(count):
                    Image.new("L", (8, 9 if odd and i == count - 1 else 8), i).save(folder / f"{i}.png")
                return read_video(folder, 5).shape == (5, 8, 8)

            fine = not odd or count == 1
            if not (odd and count == 1):
                yield Case(
                    "video", f"{count} frame files, odd {odd}", "accept" if fine else "refuse", frames_of, "its size"
                )


PARTS: dict[str, Callable[[Path, np.random.Generator], object]] = {
    "video": lambda folder, rng: (folder / "v.avi").write_bytes(clip(5)),
    "audio": lambda folder, rng: (folder / "a.wav").write_bytes(sound(rng, 16_000, 1, 5000)),
    "sensors": lambda folder, rng: (folder / "s.csv").write_text("a,b\n1,2\n3,4\n"),
    "photos": lambda folder, rng: (
        (folder / "images").mkdir(),
        Image.new("RGB", (20, 12)).save(folder / "images" / "0.jpg"),
    ),
}
FILES = {"video": "v.avi", "audio": "a.wav", "sensors": "s.csv", "photos": "images/0.jpg"}


def runs(rng: np.random.Generator) -> Iterator[Case]:
    """Run folders with every choice of recordings, whole or with one of them damaged."""
    for number in range(16):
        parts = [name for i, name in enumerate(PARTS) if number >> i & 1]

        def make(folder: Path, parts: list[str] = parts) -> WeldRun:
            generator = np.random.default_rng(0)
            for name in parts:
                PARTS[name](folder, generator)
            return WeldRun("r", "good", "train", folder)

        def act(folder: Path, make: Callable[[Path], WeldRun] = make, parts: list[str] = parts) -> bool:
            sample = preprocess(load_raw(make(folder), SMALL), SMALL)
            finite = all(bool(value.isfinite().all()) for value in sample.values())
            return finite and sample["present"].tolist() == [
                n in parts for n in ("video", "photos", "audio", "sensors")
            ]

        yield Case("run", f"with {parts}", "accept" if parts else "refuse", act, "holds no video")
        for broken in parts:
            for how in ("empty", "junk", "folder", "pipe"):

                def act_broken(
                    folder: Path, make: Callable[[Path], WeldRun] = make, broken: str = broken, how: str = how
                ) -> Any:
                    run = make(folder)
                    path = folder / FILES[broken]
                    path.unlink()
                    if how == "folder":
                        path.mkdir()
                    elif how == "pipe":
                        os.mkfifo(path)
                    else:
                        path.write_bytes(b"" if how == "empty" else b"junk " * 9)
                    return load_raw(run, SMALL)

                yield Case("run", f"with {parts}, {broken} {how}", "refuse", act_broken, FILES[broken].split("/")[-1])

    def skipped(folder: Path) -> bool:
        for i, name in enumerate(("whole", "broken", "none")):
            (folder / name).mkdir()
            if i < 2:
                PARTS["sensors"](folder / name, rng)
        (folder / "broken" / "s.csv").write_text("")
        every = [WeldRun(path.name, "good", "train", path) for path in sorted(folder.iterdir())]
        kept, left = readable_runs(every, lambda run: load_raw(run, SMALL))
        return [run.run_id for run in kept] == ["whole"] and len(left) == 2

    yield Case("run", "three, two of them skipped", "accept", skipped)
    wrong: tuple[Any, ...] = (
        None,
        3,
        b"",
        set(),
        {},
        [],
        [None],
        [3],
        "",
        "\0",
        "nowhere",
        np.zeros(3),
        iter([]),
        [b"x"],
        ["", ""],
    )
    for index, odd in enumerate(wrong):
        yield Case("run", f"handed #{index} {type(odd).__name__}", "refuse", lambda _, odd=odd: runs_of(odd))
    for name in ("a b", "é", "n" * 200):

        def act_name(folder: Path, name: str = name) -> bool:
            (folder / name).mkdir()
            PARTS["sensors"](folder / name, rng)
            return load_raw(runs_of(str(folder / name))[0], SMALL).sensors is not None

        yield Case("run", f"named {name[:5]}", "accept", act_name)
