"""V4 from raw tensors: the document's contract, equal to what the detector says of the same runs; thin encoders."""

import pytest
import torch

from anomaly_lib.errors import UserError
from anomaly_lib.models.weld import AudioEncoder, ImageEncoder, VideoEncoder
from anomaly_lib.systems.weld.data.runs import WeldDataset
from anomaly_lib.systems.weld.inputs import build_features
from anomaly_lib.systems.weld.supcon.detector import QuadDetector
from anomaly_lib.systems.weld.supcon.knn import Bank
from anomaly_lib.systems.weld.supcon.options import tiny
from anomaly_lib.systems.weld.supcon.task import build, open_runs


@pytest.fixture(scope="module")
def detector() -> QuadDetector:
    """Untrained: what it says is as good a witness."""
    args = tiny()
    features = build_features(args, torch.device("cpu"))
    torch.manual_seed(0)
    bank = Bank(torch.randn(4, args.hidden_dim), torch.tensor([0, 0, 1, 2]))
    return QuadDetector(args, build(args, features), features, bank, epoch=0)


def raw(detector: QuadDetector, count: int = 3) -> dict[str, torch.Tensor]:
    runs = open_runs(detector.args)[:count]
    samples = [WeldDataset(runs, detector.args)[i] for i in range(count)]
    keys = {
        "video": "video",
        "post_images": "post_weld_images",
        "audio": "audio",
        "sensors": "sensor",
        "views": "views",
    }
    return {key: torch.stack([sample[ours] for sample in samples]) for key, ours in keys.items()}


@torch.no_grad()
def test_raw_tensors_give_what_the_detector_says_of_the_runs(detector: QuadDetector) -> None:
    runs = open_runs(detector.args)[:3]
    found = detector.inspector()(raw(detector))
    there = detector.encode(runs)
    assert found["features"].shape == (3, detector.args.hidden_dim)
    assert found["logits"].shape == (3, 12)
    for name in ("features", "logits", "anomaly_score"):
        torch.testing.assert_close(found[name], there[name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_waveform_stands_for_its_spectrum_and_absent_modalities_are_masked(detector: QuadDetector) -> None:
    inspector, batch = detector.inspector(), raw(detector)
    wave = torch.from_numpy(open_runs(detector.args)[0].render(("audio",)).audio)
    one = {name: value[:1] for name, value in batch.items()}
    spoken = inspector({**one, "audio": wave[None, None]})["features"]
    torch.testing.assert_close(spoken, inspector(one)["features"], rtol=1e-4, atol=1e-5)
    silent = {name: value for name, value in batch.items() if name != "audio"}
    denied = {**batch, "present": torch.tensor([[True, True, False, True]] * 3)}
    without = inspector(silent)["features"]
    torch.testing.assert_close(without, inspector(denied)["features"])
    assert (without - inspector(batch)["features"]).abs().max() > 1e-4
    assert without.isfinite().all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"video": torch.zeros(2, 8, 1, 32)}, r"video: expected \[batch, frames, 1, height, width\], got"),
        ({"audio": torch.zeros(2, 16)}, "audio: expected"),
        ({"sensors": torch.zeros(3, 8, 6), "video": torch.zeros(2, 2, 1, 32, 32)}, "different batch sizes"),
        ({}, "at least one of video, images, audio, sensors"),
    ],
    ids=str,
)
def test_mistakes_get_one_line(detector: QuadDetector, change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        detector.inspector()(change)


def test_predict_says_what_the_fusion_reads(detector: QuadDetector) -> None:
    found = detector.predict(open_runs(detector.args)[:2])
    for name, length in (("video", 1), ("images", 1), ("sensors", 16)):
        weights = found.parts[f"attention.{name}"]
        assert weights.shape == (2, length)
        torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert found.parts["attention.audio"].ndim == 2


def test_the_documents_encoders_are_frozen_wrappers() -> None:
    video = VideoEncoder("random", freeze=True, name="tiny-vjepa2", pool="spatial")
    images = ImageEncoder("random", freeze=True, name="tiny-dinov2", aggregate="max")
    audio = AudioEncoder("random", freeze=True, name="tiny-ast")
    for encoder in (video, images, audio):
        assert all(param.requires_grad is False for param in encoder.parameters())
        assert "frozen" in repr(encoder)
    assert video(torch.randn(2, 4, 1, 32, 32)).shape == (2, 2, video.width)
    photos = torch.randn(2, 5, 3, 28, 28)
    assert images(photos).shape == (2, images.width)
    each = ImageEncoder("random", name="tiny-dinov2")
    each.load_state_dict(images.state_dict())
    torch.testing.assert_close(images(photos), each(photos).amax(1))
    assert audio(torch.randn(2, 1, 128, 32)).shape == (2, audio.width)
    learns = AudioEncoder("random", False, name="tiny-ast", tokens=True)
    learns(torch.randn(1, 1, 128, 32)).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learns.parameters())
    for make, said in ((lambda: VideoEncoder("random", name="tiny-vjepa2", pool="x"), "pool=x"), (lambda: each(photos[0]), "images: expected")):  # fmt: skip  # noqa: E501
        with pytest.raises(UserError, match=said):
            make()
