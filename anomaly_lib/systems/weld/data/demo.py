"""Synthetic welds whose process causes their result: sensors, arc sound, pool video, five photos, defect masks.

A latent heat and travel speed decide current, voltage, feed, the sound's pitch and loudness, the size of the glowing
pool, and the width, tint and ripple of the bead. Defects are of three kinds:

- process: the latent state leaves its normal range and the result follows (burnthrough, lack_of_fusion, ...);
- result: the process is normal and the photos show something else. In excessive_convexity, undercut and overlap the
  bead itself is a perfectly normal bead, but of another process (MISMATCH): no single modality can tell;
- drift: a slow trend over the whole run (warping).
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from anomaly_lib.systems.weld.data.manifest import CLASSES, MODALITIES, RawRun, WeldRun
from anomaly_lib.systems.weld.data.signal import SAMPLE_RATE

MISMATCH = ("excessive_convexity", "undercut", "overlap")
CODES = dict(zip(CLASSES, ("00", "08", "05", "07", "04", "03", "09", "02", "01", "11", "10", "06"), strict=True))
HEADER = (
    "Date", "Time", "Part No", "Pressure", "CO2 Weld Flow", "Feed", "Primary Weld Current", "Wire Consumed",
    "Secondary Weld Voltage", "Remarks ",
)  # fmt: skip
SENSOR_HZ, VIDEO_HZ = 9.1, 7.5


@dataclass(frozen=True)
class Weld:
    """The latent state of one run."""

    class_name: str
    seed: int
    heat: float  # 0..1 is the normal range
    speed: float
    result_heat: float  # what the bead shows; equals heat unless the result breaks with the process
    result_speed: float
    drift: float = 0.0
    gas: float = 1.0
    spatter: float = 0.0
    pits: int = 0
    crack: bool = False
    hole: bool = False


def draw_weld(class_name: str, seed: int) -> Weld:
    """A random weld of a class."""
    rng = np.random.default_rng(seed)
    heat, speed = rng.uniform(0, 1), rng.uniform(0, 1)
    if class_name == "excessive_convexity":
        heat = 0.5 * heat
        return Weld(class_name, seed, heat, speed, heat + 0.5, speed)
    if class_name == "undercut":
        heat = 0.5 + 0.5 * heat
        return Weld(class_name, seed, heat, speed, heat - 0.5, speed)
    if class_name == "overlap":
        other = speed + 0.5 if speed < 0.5 else speed - 0.5
        return Weld(class_name, seed, heat, speed, heat, other)
    shift = {
        "lack_of_fusion": -0.6,
        "burnthrough": 0.9,
        "excessive_penetration": 0.6,
        "porosity_w_excessive_penetration": 0.5,
    }.get(class_name, 0.0)
    heat = 0.5 + 0.3 * (heat - 0.5) + shift if shift else heat
    porous = class_name.startswith("porosity")
    return Weld(
        class_name,
        seed,
        heat,
        speed,
        heat,
        speed,
        drift=0.6 if class_name == "warping" else 0.0,
        gas=0.35 if porous else 1.0,
        spatter=1.0 if class_name == "spatter" else 0.0,
        pits=int(rng.integers(6, 14)) if porous else 0,
        crack=class_name == "crater_cracks",
        hole=class_name == "burnthrough",
    )


def render_weld(
    weld: Weld,
    parts: Sequence[str] = MODALITIES,
    *,
    seconds: float = 8.0,
    video_size: int = 64,
    photo_size: int = 96,
    views: int = 5,
) -> RawRun:
    """The wanted recordings of a weld; the same weld always gives the same bytes, whatever else is rendered."""
    own = {name: np.random.default_rng([weld.seed, i]) for i, name in enumerate(("state", *MODALITIES))}
    sensors, heat = _sensors(weld, own["state"], rows=round(seconds * SENSOR_HZ))
    shots = [_photo(weld, own["images"], photo_size, view) for view in range(views if "images" in parts else 0)]
    frames, samples = round(seconds * VIDEO_HZ), round(seconds * SAMPLE_RATE)
    return RawRun(
        video=_video(weld, own["video"], heat, frames, video_size) if "video" in parts else None,
        audio=_audio(weld, own["audio"], heat, samples) if "audio" in parts else None,
        sensors=sensors if "sensors" in parts else None,
        photos=tuple(photo for photo, _ in shots),
        masks=tuple(mask for _, mask in shots),
    )


def _sensors(weld: Weld, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The six channels [rows, 6] and the heat at each row (0 where the arc is off)."""
    t = np.linspace(0, 1, rows)
    on = (t > 0.12) & (t < 0.92)
    wander = 0.05 * np.sin(2 * np.pi * (t * rng.uniform(1, 3) + rng.uniform())) + 0.03 * rng.standard_normal(rows)
    heat = weld.heat + wander + weld.drift * (t - 0.5)
    current = np.where(on, 130 + 100 * heat + 4 * rng.standard_normal(rows), 0.0)
    voltage = np.where(on, 20 + 6 * heat + (0.3 + 1.5 * weld.spatter) * rng.standard_normal(rows), 0.0)
    feed = np.where(on, 6 + 6 * heat - 2 * weld.speed + 0.1 * rng.standard_normal(rows), 0.0)
    gas = np.where(t > 0.05, weld.gas * (18 + 0.4 * rng.standard_normal(rows)), 0.0)
    pressure = 4.8 + 0.3 * weld.speed + 0.02 * rng.standard_normal(rows)
    wire = rng.uniform(1, 4) + np.cumsum(feed) / SENSOR_HZ
    series = np.stack([pressure, gas, feed, current, wire, voltage], axis=1).astype(np.float32)
    return series, np.where(on, heat.clip(-0.9, 2.5), np.nan)


def _at(heat_over_time: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heat and arc-on flag at positions in [0, 1]."""
    index = np.round(positions * (len(heat_over_time) - 1)).astype(int)
    heat = heat_over_time[index]
    return np.nan_to_num(heat), np.isfinite(heat)


def _video(weld: Weld, rng: np.random.Generator, heat_over_time: np.ndarray, frames: int, size: int) -> np.ndarray:
    heat, on = _at(heat_over_time, np.linspace(0, 1, frames))
    y, x = np.mgrid[:size, :size] / size - 0.5
    flicker = 1 + 0.06 * rng.standard_normal(frames)
    tail = 0.04 + 0.16 * weld.speed  # a fast torch draws the pool out
    centre = 0.03 * rng.standard_normal((frames, 2))
    width = 0.07 + 0.07 * (heat.clip(-0.5, 2) + 0.5)
    dx = (x[None] - centre[:, :1, None]) / (width[:, None, None] + tail * (x[None] < 0))
    dy = (y[None] - centre[:, 1:, None]) / width[:, None, None]
    glow = np.exp(-0.5 * (dx**2 + dy**2)) * ((110 + 60 * heat) * flicker * on)[:, None, None]
    picture = 12 + glow + 3 * rng.standard_normal((frames, size, size))
    drops = rng.random((frames, size, size)) < (0.0005 + 0.01 * weld.spatter)
    picture[drops & on[:, None, None]] += 110
    return picture.clip(0, 255).astype(np.uint8)


def _audio(weld: Weld, rng: np.random.Generator, heat_over_time: np.ndarray, samples: int) -> np.ndarray:
    heat, on = _at(heat_over_time, np.linspace(0, 1, samples))
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    pitch = 900 + 2200 * (weld.heat + 0.5)
    hiss = np.fft.irfft(spectrum * np.exp(-0.5 * ((frequency - pitch) / 500) ** 2), samples)
    hiss /= hiss.std()
    ticks = np.zeros(samples)
    count = int(20 + 240 * weld.speed + 300 * weld.spatter)
    ticks[rng.integers(0, samples, count)] = rng.uniform(0.3, 1, count)
    ticks = np.convolve(ticks, np.exp(-np.arange(160) / 40) * np.sin(np.arange(160) * 1.3), mode="same")
    leak = 0.02 * (1 - weld.gas) * rng.standard_normal(samples)
    wave = on * ((0.03 + 0.06 * (heat + 1)) * hiss + 0.5 * ticks) + leak + 0.002 * rng.standard_normal(samples)
    return wave.clip(-1, 1).astype(np.float32)


def _photo(weld: Weld, rng: np.random.Generator, size: int, view: int) -> tuple[np.ndarray, np.ndarray]:
    """One photograph [S, S, 3] and its defect mask [S, S]; views differ in light, offset and tilt."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    tilt, offset = 0.08 * rng.standard_normal(), 0.03 * rng.standard_normal()
    across = y - tilt * x - offset + weld.drift * 0.5 * x**2  # warping bends the seam
    heat, speed = weld.result_heat, weld.result_speed
    width = max(0.03, 0.09 + 0.13 * heat - 0.03 * speed)
    profile = np.clip(1 - (across / width) ** 2, 0, None)
    ripple = 0.5 + 0.5 * np.cos(2 * np.pi * (x / (0.05 + 0.07 * speed) - 3 * across**2 / width))
    light = 1 + 0.25 * np.sin(view * 1.3 + 4 * x + 2 * y) + 0.05 * rng.standard_normal()
    steel = np.array([112, 114, 120])[None, None] + 6 * rng.standard_normal((size, size, 1))
    tint = np.array([150 + 50 * heat, 140, 150 - 60 * heat])[None, None]
    bead = (profile > 0)[..., None]
    colour = np.where(bead, tint * (0.55 + 0.35 * np.sqrt(profile) + 0.15 * ripple)[..., None], steel)
    reach = 0.02 + 0.16 * (1 - speed)  # a slow torch heats the plate farther out
    zone = np.exp(-(((np.abs(across) - width).clip(0) / reach) ** 2))[..., None]
    colour = np.where(bead, colour, colour * (1 - 0.45 * zone))
    picture = colour * light[..., None] + 3 * rng.standard_normal((size, size, 3))
    picture, mask = _surface_defects(weld, rng, picture, x, across, width, view)
    if weld.class_name in MISMATCH:
        mask = profile > 0
    return picture.clip(0, 255).astype(np.uint8), mask


def _surface_defects(
    weld: Weld,
    rng: np.random.Generator,
    picture: np.ndarray,
    x: np.ndarray,
    across: np.ndarray,
    width: float,
    view: int,
) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros(x.shape, dtype=bool)
    if weld.crack and view == weld.seed % 5:  # visible from one side only
        start, slope = rng.uniform(-0.2, 0.1), rng.uniform(-0.3, 0.3)
        mask |= (np.abs(across - slope * (x - start) - 0.02 * np.sin(40 * x)) < 0.012) & (x > start) & (x < start + 0.3)
    for _ in range(weld.pits):
        px, py, r = rng.uniform(-0.45, 0.45), rng.uniform(-0.7, 0.7) * width, rng.uniform(0.012, 0.025)
        mask |= (x - px) ** 2 + (across - py) ** 2 < r**2
    if weld.class_name == "lack_of_fusion":
        mask |= np.abs(across - width) < 0.012  # an open gap along one toe of the bead
    if weld.hole:
        px = rng.uniform(-0.25, 0.25)
        mask |= ((x - px) / 1.5) ** 2 + across**2 < (0.6 * width) ** 2
    picture = np.where(mask[..., None], picture * 0.25, picture)
    if weld.spatter:
        drops = rng.random(x.shape) < 0.012
        picture = np.where(drops[..., None], 225.0, picture)
        mask |= drops
    return picture, mask


# -- data sets ----------------------------------------------------------------------------------------------------


@cache
def drawing_version() -> str:
    """Hash of this file: cached features of drawn welds are not those of another way of drawing."""
    return sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def weld_demo_runs(
    *, seed: int = 0, train: int = 96, good: int = 24, per_defect: int = 6, supervised: bool = False
) -> list[WeldRun]:
    """In-memory runs: `train` good welds (with `supervised` also `per_defect` of every class), and in VAL and TEST
    each `good` good ones and `per_defect` of each defect."""
    plan = [("train", "good", train)]
    if supervised:
        plan += [("train", name, per_defect) for name in CLASSES[1:]]
    for split in ("val", "test"):
        plan += [(split, "good", good), *[(split, name, per_defect) for name in CLASSES[1:]]]
    runs, number = [], 0
    for split, name, count in plan:
        for _ in range(count):
            number += 1
            weld_seed = seed * 1_000_003 + number
            run_id = f"01-01-25-{number:04d}-{CODES[name]}"
            weld = draw_weld(name, weld_seed)
            render: Callable[[Sequence[str]], RawRun] = partial(render_weld, weld)
            facts = {"seed": str(weld_seed), "drawing": drawing_version()}
            runs.append(WeldRun(run_id, name, split, Path("demo") / run_id, f"{name}_{split}", facts, render))
    return runs


def write_weld_demo(
    directory: Path | str,
    *,
    seed: int = 0,
    train: int = 96,
    good: int = 24,
    per_defect: int = 6,
    supervised: bool = False,
) -> Path:
    """Write the demo runs as real .avi, .flac, .csv and .jpg files in the data set's own layout; returns the folder."""
    import cv2
    import soundfile
    from PIL import Image

    root = Path(directory)
    runs = weld_demo_runs(seed=seed, train=train, good=good, per_defect=per_defect, supervised=supervised)
    for run in runs:
        assert run.render is not None
        raw = run.render(MODALITIES)
        video, audio, sensors = (_recorded(part) for part in (raw.video, raw.audio, raw.sensors))
        folder = root / run.group / run.run_id
        (folder / "images").mkdir(parents=True, exist_ok=True)
        height, width = video.shape[1:]
        writer = cv2.VideoWriter(
            str(folder / f"{run.run_id}.avi"), cv2.VideoWriter.fourcc(*"MJPG"), VIDEO_HZ, (width, height)
        )
        for frame in video:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
        writer.release()
        soundfile.write(folder / f"{run.run_id}.flac", audio, SAMPLE_RATE, subtype="PCM_16")
        _write_sensors(folder / f"{run.run_id}.csv", run.run_id, sensors)
        for i, (photo, mask) in enumerate(zip(raw.photos, raw.masks, strict=True)):
            Image.fromarray(photo).save(folder / "images" / f"20250101_000000_{i:03d}.jpg", quality=95)
            if mask.any():
                (folder / "masks").mkdir(exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{i:03d}.png")
    with (root / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer_csv = csv.writer(stream)
        writer_csv.writerow(("CATEGORY", "DIRECTORY", "SUBDIRS", "SPLIT"))
        for run in runs:
            writer_csv.writerow((run.class_name, run.group, f"{run.group}/{run.run_id}", run.split.upper()))
    return root


def _recorded(part: np.ndarray | None) -> np.ndarray:
    assert part is not None  # demo welds lack nothing
    return part


def _write_sensors(path: Path, run_id: str, series: np.ndarray) -> None:
    """Rows end before the empty `Remarks ` column, as in the real files."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER)
        for i, row in enumerate(series):
            seconds = i / SENSOR_HZ
            clock = f"08:{int(seconds // 60):02d}:{seconds % 60:06.3f}"
            writer.writerow(["1/1/2025", clock, run_id, *[f"{value:.2f}" for value in row]])
