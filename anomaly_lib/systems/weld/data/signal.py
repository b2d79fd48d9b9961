"""Weld signals to tensors: sensor CSV files and microphone recordings.

Mel spectra are computed with torch on librosa's filters (`db`) or the Kaldi filters of AST's extractor (`ast`).
"""

import csv
import functools
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomaly_lib.errors import UserError, reason_of
from anomaly_lib.files import check_file, encoding_of

SAMPLE_RATE = 16_000
UNKNOWN_LENGTH = 0x7FFF0000  # of a WAV file's sound, in bytes: written by recorders that cannot go back to say it
RATES = (1_000, 768_000)  # samples a second of a recording
AST_MEAN, AST_STD = -4.2677393, 4.5689974
DB_FLOOR = -80.0
SENSOR_COLUMNS = (
    "pressure", "co2 weld flow", "feed", "primary weld current", "wire consumed", "secondary weld voltage",
)  # fmt: skip
ENOUGH_NAMES = 4  # of them in a header: its columns are taken by name


# -- sensors ------------------------------------------------------------------------------------------------------


def read_sensor_csv(path: Path) -> np.ndarray:
    """The sensor columns [T, C] float32 with NaN for gaps.

    Where the header names them (`ENOUGH_NAMES` of `SENSOR_COLUMNS`) they come by name in that order, and one that is
    missing or empty is all NaN. Elsewhere they come by position: all-empty and non-numeric columns (dates, ids) are
    dropped. Rows of the public files are one field shorter than their header (`Remarks ` stays empty).
    """
    import pandas as pd

    encoding = encoding_of(path, "sensor file")
    try:
        cells = pd.read_csv(
            path, dtype=str, index_col=False, keep_default_na=False, na_values=[""], skipinitialspace=True,
            encoding=encoding, encoding_errors="replace",
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: unreadable sensor file ({reason_of(error)}); replace it or give on_error=skip"
        ) from None
    values = cells.apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    named = _places(list(cells.columns))
    if named is not None and values.iloc[:, list(named.values())].notna().any(axis=None):
        series = np.full((len(values), len(SENSOR_COLUMNS)), np.nan, np.float32)
        for place, column in named.items():
            series[:, place] = values.iloc[:, column]
        return series
    numeric = values.notna().sum() >= (cells.notna().sum() / 2).clip(lower=1)
    if not numeric.any():
        raise UserError(f"{path}: no numeric column in this sensor file")
    return values.loc[:, numeric].to_numpy(np.float32)


def sensors_by_name(path: Path) -> bool:
    """Does the header of a sensor table name its columns?"""
    with path.open(encoding=encoding_of(path, "sensor file"), errors="replace", newline="") as stream:
        try:
            header = next(csv.reader(stream, skipinitialspace=True), [])
        except csv.Error:  # pandas reads some tables that the csv module does not
            return False
    return _places(header) is not None


def _places(header: Sequence[str]) -> dict[int, int] | None:
    """Place in `SENSOR_COLUMNS` -> place in the header; None where too few of them are there."""
    titles = [" ".join(re.split(r"[\W_]+", title.lower())).strip() for title in header]
    found = {i: titles.index(name) for i, name in enumerate(SENSOR_COLUMNS) if name in titles}
    return found if len(found) >= ENOUGH_NAMES else None


def resample_series(series: np.ndarray, steps: int, channels: int = 6) -> Tensor:
    """[T, C] -> [steps, channels]: gaps and new time points by linear interpolation, missing channels are zero."""
    out = np.zeros((steps, channels), dtype=np.float32)
    old = np.linspace(0.0, 1.0, len(series))
    new = np.linspace(0.0, 1.0, steps)
    for c in range(min(channels, series.shape[1])):
        known = np.isfinite(series[:, c])
        if known.any():
            out[:, c] = np.interp(new, old[known], series[known, c])
    return torch.from_numpy(out)


def standardise(series: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
    """z-score per channel with the given statistics, or with the sample's own; a constant channel becomes zero."""
    if mean is None or std is None:
        mean, std = series.mean(0), series.std(0, unbiased=False)
    return (series - mean) / torch.where(std < 1e-6, torch.ones_like(std), std)


# -- audio --------------------------------------------------------------------------------------------------------


def read_audio(path: Path, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Mono float32 in [-1, 1] at `rate`."""
    import soundfile

    check_file(path, "sound file")
    try:
        with soundfile.SoundFile(str(path)) as recording:
            found, said = recording.samplerate, re.search(r"data : (\d+) \(should be (\d+)\)", recording.extra_info)
            wave = recording.read(dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: unreadable audio ({reason_of(error)}); replace it or give on_error=skip") from None
    if said and int(said[2]) < int(said[1]) < UNKNOWN_LENGTH:
        raise UserError(f"{path}: cut short, {said[2]} of {said[1]} bytes of sound; replace it or give on_error=skip")
    if not RATES[0] <= found <= RATES[1]:
        raise UserError(f"{path}: a rate of {found} samples a second, which no microphone has")
    if not len(wave) or not np.isfinite(wave).all():
        raise UserError(f"{path}: the recording is empty or has non-finite samples")
    mono = wave.mean(1)
    if found != rate:
        from scipy.signal import resample_poly

        common = math.gcd(found, rate)
        mono = resample_poly(mono, rate // common, found // common).astype(np.float32)
    return mono


@functools.lru_cache(maxsize=8)
def slaney_bank(bins: int, mels: int, rate: int) -> Tensor:
    """Triangular filters [mels, bins] on Slaney's mel scale (linear below 1 kHz), normalised to equal area."""
    from librosa.filters import mel

    return torch.from_numpy(mel(sr=rate, n_fft=2 * (bins - 1), n_mels=mels))


@functools.lru_cache(maxsize=8)
def kaldi_bank(bins: int, mels: int, rate: int, low: float = 20.0) -> Tensor:
    """Kaldi's filters [mels, bins]: triangles in mel = 1127 ln(1 + f / 700), height 1."""
    from transformers.audio_utils import mel_filter_bank

    with warnings.catch_warnings():  # that the lowest of AST's 128 filters hold no bin is so in its own extractor too
        warnings.simplefilter("ignore", UserWarning)
        bank = mel_filter_bank(bins, mels, low, rate / 2, rate, mel_scale="kaldi", triangularize_in_mel_space=True)
    return torch.from_numpy(bank.T).float()


def mel_db(wave: Tensor, *, mels: int = 128, hop: int = 400, n_fft: int = 2048, rate: int = SAMPLE_RATE) -> Tensor:
    """Slaney mel power in dB below the loudest value, floor -80: [mels, frames], as librosa computes it."""
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(wave, n_fft, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    power = slaney_bank(n_fft // 2 + 1, mels, rate) @ spectrum.abs().square()
    decibel = 10 * power.clamp_min(1e-10).log10()
    return (decibel - 10 * power.max().clamp_min(1e-10).log10()).clamp_min(DB_FLOOR)


def kaldi_log_mel(wave: Tensor, *, mels: int = 128, rate: int = SAMPLE_RATE) -> Tensor:
    """Log filter-bank energies [mels, frames]: 25 ms Hann frames every 10 ms, no mean, pre-emphasis 0.97."""
    size, hop = rate * 25 // 1000, rate * 10 // 1000
    if len(wave) < size:
        wave = torch.nn.functional.pad(wave, (0, size - len(wave)))
    frames = wave.unfold(0, size, hop)
    frames = frames - frames.mean(1, keepdim=True)
    previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    frames = (frames - 0.97 * previous) * torch.hann_window(size, periodic=False)
    n_fft = 1 << (size - 1).bit_length()
    power = torch.fft.rfft(frames, n=n_fft).abs().square()  # [frames, bins]
    bank = kaldi_bank(n_fft // 2 + 1, mels, rate)
    return (power @ bank.T).clamp_min(torch.finfo(torch.float32).eps).log().T


def magnitude_frames(wave: Tensor, *, n_fft: int, frames: int) -> Tensor:
    """STFT magnitudes [n_fft / 2 + 1, frames] at half overlap, frames evenly spaced over the whole recording."""
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(wave, n_fft, n_fft // 2, window=window, pad_mode="constant", return_complex=True)
    return fit_frames(spectrum.abs(), frames)


def fit_frames(mel: Tensor, frames: int, select: str = "uniform") -> Tensor:
    """Bring [mels, T] to [mels, frames]; shorter recordings are padded with the spectrogram's minimum (silence).

    uniform: evenly spaced frames of the whole recording; truncate: the first ones (the original: 0.8 s in which the
    arc is not yet lit); active: the window with the most energy.
    """
    total = mel.shape[1]
    if total < frames:
        return torch.nn.functional.pad(mel, (0, frames - total), value=float(mel.min()))
    if select == "uniform":
        return mel[:, torch.linspace(0, total - 1, frames).round().long()]
    if select == "truncate":
        return mel[:, :frames]
    if select == "active":
        energy = torch.cat([torch.zeros(1), (mel - mel.min()).sum(0).cumsum(0)])
        start = int((energy[frames:] - energy[:-frames]).argmax())
        return mel[:, start : start + frames]
    raise ValueError(f"frame selection {select!r}: choose uniform, truncate or active")
