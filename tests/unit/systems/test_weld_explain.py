"""What predict says of a run folder beside the score: unusual parts, attention over time and views; document's keys."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import anomaly_lib
from anomaly_lib.models.weld.causal_film import CausalFiLM
from anomaly_lib.models.weld.causal_film_parts import ProcessEncoder, RobustResultEncoder
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld.causal_film.explain import unusual
from anomaly_lib.systems.weld.causal_film.options import tiny
from anomaly_lib.systems.weld.data.demo import weld_demo_runs, write_weld_demo
from anomaly_lib.systems.weld.data.runs import WeldDataset
from anomaly_lib.systems.weld.options import WeldSettings


def test_process_attention_is_that_of_the_forward_pass() -> None:
    torch.manual_seed(0)
    encoder = ProcessEncoder(d_model=16, process_heads=2).eval()
    video, audio = torch.randn(2, 6, 16), torch.randn(2, 5, 16)
    seen: list[torch.Tensor] = []
    last = encoder.decoder.layers[-1]
    for attention in (last.self_attn, last.multihead_attn):
        attention.register_forward_pre_hook(lambda *_: None)  # no fast path that hides the call
        original = attention.forward

        def forward(*args, original=original, **more):
            more["need_weights"] = True
            out = original(*args, **more)
            seen.append(out[1].mean(1))
            return out

        attention.forward = forward
    encoder(video, audio)
    there = [weights.clone() for weights in seen[:2]]
    over_video, over_audio = encoder.attention(video, audio)
    torch.testing.assert_close(over_video, there[0])
    torch.testing.assert_close(over_audio, there[1])
    torch.testing.assert_close(over_audio.sum(1), torch.ones(2))


def test_view_shares_count_the_channels_a_photo_decides() -> None:
    encoder = RobustResultEncoder(branches="1.mean", image_dim=4, d_model=8).eval()
    tokens = [torch.randn(2, 3, 5, 4)]
    views = torch.tensor([[True, True, True], [True, False, False]])
    shares = encoder.view_shares(tokens, views)
    z = encoder.encode_views(tokens, views)
    assert shares[0].tolist() == pytest.approx([(z[0].argmax(0) == i).float().mean().item() for i in range(3)])
    assert shares[1].tolist() == [1, 0, 0]
    even = RobustResultEncoder(branches="1.mean", image_dim=4, d_model=8, view_pool="mean")
    torch.testing.assert_close(even.view_shares(tokens, views), torch.tensor([[1 / 3] * 3, [1, 0, 0]]))
    assert CausalFiLM.attention.__doc__


def test_unusual_is_one_on_average_over_the_runs_it_was_fitted_on() -> None:
    vectors = 5 + 3 * torch.randn(200, 7)
    found = unusual(vectors, vectors.mean(0), vectors.std(0, unbiased=False))
    assert found.square().mean().item() == pytest.approx(1, abs=1e-5)
    assert unusual(vectors[:1] + 300, vectors.mean(0), vectors.std(0)).item() > 50


def test_a_run_folder_is_scored_decided_and_explained(tmp_path: Path) -> None:
    data = write_weld_demo(tmp_path / "data", train=6, good=2, per_defect=1)
    defaults = {"demo_train": 96, "demo_good": 24, "demo_defects": 6}  # not the small ones: there are files
    options = {"data_path": str(data), "dummy": True, "epochs": 1, **defaults}
    result = SYSTEMS["causal_film"].train(tiny(**options, output_dir=str(tmp_path / "run")))
    detector = anomaly_lib.load(result.checkpoint)
    folders = sorted(path.parent for path in data.glob("*_train/*/*.csv"))[:4]
    lost = folders[0]
    next(lost.glob("*.flac")).unlink()
    found = detector.predict(folders)
    assert found.anomalous is not None
    alone = {"video", "audio", "sensors", "images", "process", "result"}
    assert set(found.parts) == {"cosine", "l1", *alone, "attention.video", "attention.audio", "attention.view"}
    torch.testing.assert_close(found.score, found.parts["cosine"] + 10 * found.parts["l1"])
    for name in alone:
        assert found.parts[name][1:].mean() < 2, name
    assert found.parts["audio"][0] > found.parts["audio"][1:].max()  # there is none
    video, audio, view = (found.parts[f"attention.{name}"] for name in ("video", "audio", "view"))
    assert video.shape == (4, 1)
    assert view.shape == (4, 2)
    for weights in (video, view):
        torch.testing.assert_close(weights.sum(1), torch.ones(4))
    assert audio.shape[0] == 4
    assert (audio.sum(1) <= 1 + 1e-5).all()


def test_samples_and_batches_know_the_documents_keys() -> None:
    runs = weld_demo_runs(train=2, good=1, per_defect=1)[:2]
    settings = WeldSettings(video_frames=2, video_size=16, image_size=[32], audio_frames=8)
    sample = WeldDataset(runs, settings)[0]
    assert sample["post_weld_images"].shape == (5, 3, 32, 32)
    assert sample["sensor"] is sample["sensors"]
    assert "post_images" not in list(sample)  # nothing is held twice
    with pytest.raises(KeyError):
        sample["nothing"]
    batch = next(iter(DataLoader(WeldDataset(runs, settings), batch_size=2)))
    assert batch["post_images"].shape == (2, 5, 3, 32, 32)
