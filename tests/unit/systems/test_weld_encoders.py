"""Spectra reach the audio encoder the right way up: resized in time, never turned without a word."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.backbones import create_backbone
from anomaly_lib.errors import UserError
from anomaly_lib.systems.weld.encoders import WeldEncoders
from anomaly_lib.systems.weld.options import WeldSettings


@pytest.fixture(scope="module")
def encoders() -> WeldEncoders:
    audio = create_backbone("tiny-ast", weights="random", layers=["tokens"])  # reads 64 steps of 32 mel bins
    return WeldEncoders(audio, audio, audio, WeldSettings(branches="1.mean"))


def tokens(encoders: WeldEncoders, spectrum: Tensor) -> Tensor:
    return encoders.encode_audio({"audio": spectrum, "has_audio": torch.ones(len(spectrum), dtype=torch.bool)})["audio"]


def test_128_mel_bins_of_any_length_are_resized_to_what_the_encoder_reads(encoders: WeldEncoders) -> None:
    spectrum = torch.randn(2, 1, 128, 100)
    small = F.interpolate(spectrum, (32, 64), mode="bilinear", align_corners=False)
    audio: Any = encoders.audio
    torch.testing.assert_close(tokens(encoders, spectrum), audio.encode(small.squeeze(1).mT)["tokens"])


@pytest.mark.parametrize("frames", [64, 100, 1024])
def test_time_before_frequency_is_refused(encoders: WeldEncoders, frames: int) -> None:
    spectrum = torch.randn(1, 1, 128, frames)
    tokens(encoders, spectrum)
    with pytest.raises(UserError, match=rf"\(1, 1, {frames}, 128\).*128 mel bins.*frequency comes before time"):
        tokens(encoders, spectrum.mT)


def test_the_originals_64_mel_bins_are_no_turned_spectrum(encoders: WeldEncoders) -> None:
    old = replace(encoders, settings=replace(encoders.settings, legacy_mel_64=True))
    tokens(old, torch.randn(1, 1, 64, 128))  # 64 bins, 128 frames: the shape of 128 bins and 64 frames turned
    with pytest.raises(UserError, match="64 mel bins"):
        tokens(old, torch.randn(1, 1, 128, 64))
