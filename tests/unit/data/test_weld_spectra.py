"""Spectra of weld sound equal those of the libraries whose networks read them; sensor files as they are published."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor

from anomaly_lib.errors import UserError
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.data.signal import AST_MEAN, AST_STD, kaldi_log_mel, mel_db, read_sensor_csv
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.options import WeldSettings


@pytest.fixture
def wave() -> torch.Tensor:
    time = torch.arange(20_000) / 16_000
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    return 0.3 * torch.sin(2 * torch.pi * 440 * time * (1 + time)) + 0.05 * noise


def test_decibels_are_librosas(wave: torch.Tensor) -> None:
    power = librosa.feature.melspectrogram(y=wave.numpy(), sr=16_000, n_fft=2048, hop_length=400, n_mels=128)
    wanted = librosa.power_to_db(power, ref=np.max)
    np.testing.assert_allclose(mel_db(wave).numpy(), wanted, atol=2e-3)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_filter_bank_energies_are_those_of_ast(wave: torch.Tensor) -> None:
    wanted = ASTFeatureExtractor(max_length=123)(wave.numpy(), sampling_rate=16_000, return_tensors="np")
    ours = (kaldi_log_mel(wave) - AST_MEAN) / (2 * AST_STD)
    assert ours.shape == (128, 123)
    np.testing.assert_allclose(ours.T.numpy(), wanted["input_values"][0], atol=2e-3)


def test_rows_shorter_than_the_header_and_odd_cells(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(
        "Date,Part No, Pressure,Flow ,Feed,Mixed,Remarks \n"
        "12/21/2022,a-1, 3.45,-0.01,,1\n"
        "12/21/2022,a-1,3.5e0 ,inf,2,x\n"
        "\n"
        "12/21/2022,a-1,nan,0.25,,y\n"
    )
    found = read_sensor_csv(path)  # Pressure, Flow and Feed; of Mixed less than half is numbers
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.float32([[3.45, -0.01, np.nan], [3.5, np.nan, 2], [np.nan, 0.25, np.nan]]))


@pytest.mark.parametrize("content", [b"", b'a,b\n"1,2\n', b"a,b\n1,2\n1,2,3,4\n"])
def test_unreadable_sensor_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"s\.csv: (unreadable|no numeric)") as caught:
        read_sensor_csv(path)
    assert "\n" not in str(caught.value)


def test_sensor_columns_come_by_name_and_else_by_position_which_is_said(tmp_path: Path) -> None:
    named, bare = tmp_path / "named", tmp_path / "bare"
    for folder in (named, bare):
        folder.mkdir()
    # Pressure is empty, the order is another, one column is not known: none of this shifts the others.
    (named / "s.csv").write_text(
        "Feed,Rotation,CO2_Weld_Flow,Pressure,secondary weld voltage,Primary Weld Current\n3,9,2,,6,4\n3,9,2,,6,5\n"
    )
    (bare / "s.csv").write_text("a,b\n1,2\n3,4\n")
    found = read_sensor_csv(named / "s.csv")
    np.testing.assert_array_equal(found, np.float32([[np.nan, 2, 3, 4, np.nan, 6], [np.nan, 2, 3, 5, np.nan, 6]]))
    features = WeldFeatures.__new__(WeldFeatures)
    features.settings, features._sensors, features.by_position = WeldSettings(sensor_steps=2), {}, set()
    runs = [WeldRun(folder.name, "good", "train", folder) for folder in (named, bare)]
    said: list[str] = []
    features.read_sensors(runs, said.append)
    assert features.sensors(runs[0])[0].tolist() == [[0, 2, 3, 4, 0, 6], [0, 2, 3, 5, 0, 6]]
    assert features.sensors(runs[1])[0].tolist() == [[1, 2, 0, 0, 0, 0], [3, 4, 0, 0, 0, 0]]
    assert len(said) == 1
    assert said[0].startswith("sensor columns of 1 runs are taken by position, their headers do not name them (bare)")
