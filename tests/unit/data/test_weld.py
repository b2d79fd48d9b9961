"""Weld data: every preprocessing step against the library or formula it stands for, real files, missing parts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_lib.errors import UserError
from anomaly_lib.systems.weld.data.demo import MISMATCH, draw_weld, render_weld, weld_demo_runs, write_weld_demo
from anomaly_lib.systems.weld.data.manifest import CLASSES, RawRun, assign_splits, class_of, read_manifest, select_runs
from anomaly_lib.systems.weld.data.media import frame_indices, photo_tensor, read_video, video_tensor
from anomaly_lib.systems.weld.data.runs import WeldDataset, load_raw, preprocess
from anomaly_lib.systems.weld.data.signal import (
    fit_frames,
    kaldi_log_mel,
    magnitude_frames,
    mel_db,
    read_sensor_csv,
    resample_series,
    standardise,
)
from anomaly_lib.systems.weld.options import WeldSettings

SMALL = WeldSettings(video_frames=4, video_size=32, image_size=[32], audio_frames=64, sensor_steps=32)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weld_demo(tmp_path_factory.mktemp("weld"), train=3, good=1, per_defect=1)


def wave(seconds: float = 1.3) -> torch.Tensor:
    t = torch.arange(int(16000 * seconds)) / 16000
    return 0.3 * torch.sin(2 * torch.pi * (300 + 900 * t) * t) + 0.05 * torch.randn(len(t))


@pytest.mark.parity
def test_mel_in_db_equals_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    y = wave()
    power = librosa.feature.melspectrogram(y=y.numpy(), sr=16000, n_mels=128, hop_length=400)
    expected = torch.from_numpy(librosa.power_to_db(power, ref=np.max))
    torch.testing.assert_close(mel_db(y), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parity
def test_log_mel_equals_the_ast_feature_extractor() -> None:
    transformers = pytest.importorskip("transformers")
    y = wave(2.0)
    extractor = transformers.ASTFeatureExtractor(do_normalize=False, max_length=100)
    expected = torch.as_tensor(np.asarray(extractor(y.numpy(), sampling_rate=16000)["input_values"][0])).T
    ours = kaldi_log_mel(y)[:, :100]
    # Its numpy path works in float64 and counts the Hann window a little differently: a few 1e-3 of a nat.
    assert (ours - expected).abs().mean() < 0.02
    assert torch.corrcoef(torch.stack([ours.flatten(), expected.flatten()]))[0, 1] > 0.9999


def test_frames_of_a_spectrum() -> None:
    mel = torch.arange(10.0).repeat(2, 1)
    assert fit_frames(mel, 4)[0].tolist() == [0, 3, 6, 9]
    assert fit_frames(mel, 4, "truncate")[0].tolist() == [0, 1, 2, 3]
    loud = torch.zeros(2, 10)
    loud[:, 5:8] = 1
    assert fit_frames(loud, 3, "active").sum() == 6
    padded = fit_frames(mel - 80, 12)
    assert padded[0, -2:].tolist() == [-80, -80]  # silence, not 0 dB


def test_video_frame_indices_and_normalisation(tmp_path: Path) -> None:
    assert frame_indices(100, 8) == [0, 14, 28, 42, 56, 70, 84, 99]
    assert frame_indices(3, 5) == [0, 1, 2, 2, 2]
    assert frame_indices(9, 1) == [0]
    frames = np.full((2, 8, 8), 255, np.uint8)
    assert torch.equal(video_tensor(frames, 4), torch.ones(2, 1, 4, 4))
    colour = video_tensor(frames, 4, "imagenet")
    assert colour[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    from PIL import Image

    for i in range(5):
        Image.fromarray(np.full((6, 6, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    assert read_video(tmp_path, 3)[:, 0, 0].tolist() == [0, 100, 200]


def test_a_video_that_cannot_be_decoded_names_the_option_that_skips_it(tmp_path: Path) -> None:
    (tmp_path / "broken.avi").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"broken\.avi: no frame .* replace it, or give on_error=skip"):
        read_video(tmp_path / "broken.avi", 4)


def test_photos_repeat_the_last_and_mark_it() -> None:
    photos = [np.full((10, 12, 3), value, np.uint8) for value in (0, 255)]
    images, real = photo_tensor(photos, 4, (8, 8))
    assert real.tolist() == [True, True, False, False]
    assert torch.equal(images[1], images[3])
    assert images[1, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229)
    raw, _ = photo_tensor(photos, 2, (8, 8), normalise=False)
    assert raw[:, 0, 0, 0].tolist() == pytest.approx([0, 1])


def test_sensor_file_drops_text_and_empty_columns_and_fills_gaps(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("Date,A,Part No,B,Remarks \n1/1/2025,1.0,x-1,5\n1/1/2025,,x-1,7\n1/1/2025,3.0,x-1,9\n")
    series = read_sensor_csv(path)
    assert series.shape == (3, 2)
    assert np.isnan(series[1, 0])
    resampled = resample_series(series, 5, channels=3)
    assert resampled[:, 0].tolist() == pytest.approx([1, 1.5, 2, 2.5, 3])
    assert resampled[:, 1].tolist() == [5, 6, 7, 8, 9]
    assert resampled[:, 2].abs().sum() == 0
    z = standardise(resampled)
    assert z[:, 0].mean().item() == pytest.approx(0, abs=1e-6)
    assert z[:, 0].std(unbiased=False).item() == pytest.approx(1)
    assert z[:, 2].abs().sum() == 0
    (tmp_path / "t.csv").write_text("Date,Remarks\nx,y\n")
    with pytest.raises(UserError, match="no numeric column"):
        read_sensor_csv(tmp_path / "t.csv")


def test_files_hold_what_memory_holds(demo: Path) -> None:
    runs = read_manifest(demo)
    assert len(runs) == 3 + 2 * 12
    in_memory = {run.run_id: run for run in weld_demo_runs(train=3, good=1, per_defect=1)}
    run = next(r for r in runs if r.class_name == "spatter")
    a, b = WeldDataset([run], SMALL)[0], WeldDataset([in_memory[run.run_id]], SMALL)[0]
    for key in ("video", "images", "audio", "sensors"):
        spread = b[key].std()
        assert (a[key] - b[key]).abs().mean() < 0.15 * spread, key
    assert a["label"] == b["label"] == 1
    assert a["class_label"] == CLASSES.index("spatter")
    assert a["present"].all()
    assert a["video"].shape == (4, 1, 32, 32)
    assert WeldDataset([run], WeldSettings(audio_frames=64))[0]["video"].shape[-2:] == (224, 224)  # never 64 px mosaics


def test_missing_modalities_are_marked_not_invented() -> None:
    sample = preprocess(RawRun(), SMALL)
    assert sample["present"].tolist() == [False] * 4
    assert not sample["views"].any()
    assert sample["audio"].max() < -1.2  # the floor of the normalised log mel, far below any recorded value
    assert preprocess(RawRun(), replace(SMALL, audio_norm="db"))["audio"].unique().tolist() == [-80.0]


def test_the_video_never_reads_the_result_photos_unless_asked(demo: Path, tmp_path: Path) -> None:
    import shutil

    run = read_manifest(demo)[0]
    folder = tmp_path / run.run_id
    shutil.copytree(run.folder, folder)
    next(folder.glob("*.avi")).unlink()
    lonely = replace(run, folder=folder)
    raw = load_raw(lonely, SMALL)
    assert raw.video is None
    assert not preprocess(raw, SMALL)["present"][0]
    legacy = preprocess(raw, replace(SMALL, legacy_video=True))
    assert legacy["present"][0]
    assert legacy["video"].std() > 0.1


def test_demo_is_deterministic_and_mismatches_look_normal_alone() -> None:
    weld = draw_weld("good", 3)
    a, b = render_weld(weld), render_weld(weld)
    assert all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("video", "audio", "sensors"))
    assert all(map(np.array_equal, a.photos, b.photos))
    for name in MISMATCH:
        for seed in range(20):
            odd = draw_weld(name, seed)
            assert 0 <= odd.heat <= 1
            assert 0 <= odd.result_heat <= 1
            assert abs(odd.heat - odd.result_heat) + abs(odd.speed - odd.result_speed) == pytest.approx(0.5)
    # The process causes the result: hotter welds draw more current, shine more and leave a wider bead.
    cold, hot = (render_weld(replace(weld, heat=h, result_heat=h)) for h in (0.1, 0.9))
    assert hot.sensors[:, 3].max() > cold.sensors[:, 3].max() + 50
    assert hot.video.mean() > cold.video.mean()
    crack = render_weld(draw_weld("crater_cracks", 8))
    assert [mask.any() for mask in crack.masks].count(True) == 1  # visible in one view


def test_manifest_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.csv"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.csv").write_text("CATEGORY,SUBDIRS,SPLIT\nGood,a/1,TRAIN\n")
    with pytest.raises(UserError, match="none of its 1 run folders"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.csv").write_text("CATEGORY,SUBDIRS,SPLIT\nGodo,a/1,TRAIN\n")
    with pytest.raises(UserError, match=r"manifest\.csv:2: unknown category 'godo'"):
        read_manifest(tmp_path)
    assert class_of("Porosity_w-Excessive_Penetration") == "porosity_w_excessive_penetration"
    with pytest.raises(UserError, match="no normal runs in the train split"):
        select_runs(
            [r for r in weld_demo_runs(train=1, good=1, per_defect=1) if r.split != "train"], "train", normal_only=True
        )


@pytest.mark.parametrize("supervised", [False, True])
def test_new_splits_keep_configurations_together_and_classes_everywhere(supervised: bool) -> None:
    runs = [
        replace(run, group=f"{run.class_name}{i // 2}")
        for i, run in enumerate(weld_demo_runs(train=12, good=12, per_defect=8))
    ]
    split = assign_splits(runs, train_ratio=0.6, supervised=supervised)
    assert sorted(r.run_id for r in split) == sorted(r.run_id for r in runs)
    group_splits: dict[str, set[str]] = {}
    for run in split:
        group_splits.setdefault(run.group, set()).add(run.split)
    assert all(len(s) == 1 for s in group_splits.values())
    train_classes = {r.class_name for r in split if r.split == "train"}
    assert train_classes == (set(CLASSES) if supervised else {"good"})
    assert {r.class_name for r in split if r.split == "test"} == set(CLASSES)


@pytest.mark.data
def test_real_runs_load(real_data: Path) -> None:
    runs = read_manifest(real_data / "weld_multimodal")
    assert len(runs) == 34
    assert sum(run.label == 0 for run in runs) == 22
    sample = WeldDataset([run for run in runs if run.class_name == "overlap"], WeldSettings())[0]
    assert sample["present"].all()
    assert sample["video"].std() > 0.05
    silent = WeldDataset([run for run in runs if run.class_name == "good"], WeldSettings())[0]
    assert silent["present"].tolist() == [False, True, True, True]
    assert silent["sensors"].std(0, unbiased=False).tolist() == pytest.approx([1.0] * 6, abs=1e-4)
    current = silent["sensors"][:, 3]
    assert current[64] > current[0] + 1  # the arc is off at the start and on in the middle


def test_magnitude_frames_peak_at_the_tone_and_span_the_whole_recording():
    rate, n_fft = 16_000, 256
    time = torch.arange(rate) / rate
    wave = torch.where(time < 0.5, (2 * torch.pi * 1000 * time).sin(), (2 * torch.pi * 4000 * time).sin())
    frames = magnitude_frames(wave, n_fft=n_fft, frames=10)
    assert frames.shape == (n_fft // 2 + 1, 10)
    peaks = frames.argmax(0) * rate / n_fft
    assert peaks[:4].tolist() == [1000.0] * 4
    assert peaks[6:].tolist() == [4000.0] * 4
