"""What the options of weld systems become: frozen features of the asked shape, loaded by the asked threads."""

import threading

import pytest
import torch

from anomaly_lib.errors import UserError
from anomaly_lib.models.weld.temporal_aligner import token_times
from anomaly_lib.systems.weld.causal_film.options import Args, tiny
from anomaly_lib.systems.weld.causal_film.task import build
from anomaly_lib.systems.weld.costs import encoding_costs, in_bytes
from anomaly_lib.systems.weld.inputs import build_features, moved_weights, open_runs, usable

CPU = torch.device("cpu")


@pytest.mark.parametrize("cache", ["ram", "off"])
def test_num_workers_load_ahead_and_change_nothing(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = open_runs(tiny())[:6]
    batches, readers = [], []
    for workers in (0, 2):
        features = build_features(tiny(cache=cache, num_workers=workers), CPU)
        seen: set[str] = set()
        original = features.load_part

        def load(run, part, disturb=None, *, seen=seen, original=original):
            seen.add(threading.current_thread().name)
            return original(run, part, disturb)

        monkeypatch.setattr(features, "load_part", load)
        features.prepare(runs)
        batches.append(features.batch(runs))
        readers.append(seen)
    assert readers[0] == {threading.main_thread().name}
    assert threading.main_thread().name not in readers[1]
    for name, value in batches[0].items():
        torch.testing.assert_close(batches[1][name], value, rtol=0, atol=0)


def test_photos_need_not_be_square() -> None:
    features = build_features(tiny(image_size=[32, 64], patch_only=True, branches="1.gem"), CPU)
    run = open_runs(tiny())[0]
    assert features.load_part(run, "images")["images"].shape == (2, 3, 32, 64)
    features.prepare([run])
    assert features.batch([run])["images"][0].shape[2] == (32 // 16) * (64 // 16)
    assert build_features(tiny(image_size=[32]), CPU).stores["images"].spec != features.stores["images"].spec


def test_sensor_statistics_are_those_of_the_training_runs() -> None:
    features, runs = build_features(tiny(sensor_norm="train"), CPU), open_runs(tiny())
    train = [run for run in runs if run.split == "train"]
    features.prepare(train)
    features.fit_sensors(train, "train")
    series = features.batch(train)["sensors"]
    assert series.mean((0, 1)).abs().max() < 1e-4
    assert (series.std((0, 1), unbiased=False) - 1).abs().max() < 1e-3
    features.fit_sensors(train, "sample")
    assert features.batch(train)["sensors"].mean(1).abs().max() < 1e-4


def test_weights_that_moved_are_named_by_network() -> None:
    assert moved_weights(None) == {}
    assert moved_weights("video=a/b,image=c") == {"video_weights": "a/b", "image_weights": "c"}
    for text in ("a/b", "vidio=a", "video="):
        with pytest.raises(UserError, match="three frozen networks"):
            moved_weights(text)


def test_costs_are_said_before_they_are_paid() -> None:
    features, runs = build_features(tiny(), CPU), open_runs(tiny())[:5]
    lines = encoding_costs(features, runs, batch_size=32)
    assert len(features.stores["video"]) == 1  # the first run, to know what one takes
    video, audio, images, whole = lines
    bytes_of = {part: store.layout.row_bytes for part, store in features.stores.items()}
    assert video == f"video: 4 runs to encode, {in_bytes(bytes_of['video'])} each, {in_bytes(4 * bytes_of['video'])} in memory"  # fmt: skip  # noqa: E501
    assert audio.startswith("audio: 4 runs to encode")
    assert images.startswith("images: 4 runs to encode")
    assert whole.endswith(f"a batch of 32 reads {in_bytes(32 * sum(bytes_of.values()))}")
    features.prepare(runs)
    assert encoding_costs(features, runs, batch_size=32) == []
    assert (in_bytes(13_600_000), in_bytes(55e9), in_bytes(900)) == ("13.6 MB", "55.0 GB", "1 kB")


def test_photos_are_looked_for_without_reading_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    features, runs = build_features(tiny(), CPU), open_runs(tiny())[:3]
    features.prepare(runs)
    asked, original = [], features.stores["images"].rows

    def rows(keys, names=None):
        asked.append(names)
        return original(keys, names)

    monkeypatch.setattr(features.stores["images"], "rows", rows)
    assert usable(runs, features, print) == runs
    assert asked == [["views"]]


def test_published_encoders_keep_half_precision_rows() -> None:
    assert Args(data_path="x").feature_dtype == "fp16"
    assert Args().feature_dtype == Args(data_path="x", dummy=True).feature_dtype == "fp32"


@pytest.mark.parametrize("pool", ["none", "spatial"])
def test_aligned_sensors_know_when_each_token_of_their_encoders_lies(pool: str) -> None:
    args = tiny(align=True, video_frames=6, audio_frames=64, video_token_pool=pool)
    features, runs = build_features(args, CPU), open_runs(args)[:2]
    features.prepare(runs)
    clocks = build(args, features, text=None).model.align.clocks
    assert clocks["video"] == {"steps": 3}  # a step of two frames
    batch = features.batch(runs)
    times = token_times(batch["video"].shape[1], **clocks["video"])
    assert times.unique(return_counts=True)[1].tolist() == [batch["video"].shape[1] // 3] * 3
    columns = (batch["audio"].shape[1] - clocks["audio"]["prefix"]) / clocks["audio"]["rows"]
    assert columns == int(columns) > 1  # the spectrum's patches, row after row
    assert token_times(batch["audio"].shape[1], **clocks["audio"])[-1] == 1 - 0.5 / columns
