"""WinCLIP against loops over windows and patches."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anomaly_lib.backbones import create_backbone
from anomaly_lib.models.detectors import WinClip
from anomaly_lib.models.detectors.winclip_prompts import ANOMALOUS, NORMAL, prompts
from tests.support.family import CLOSE, TinyNet, check_left_out, check_saved, pictures, unit

LAYERS = ["pooled", "window.2", "window.3", "normed.3"]


class Extractor(nn.Module):
    """A tiny CLIP whose patch rows become maps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = create_backbone("tiny-clip", weights="random", layers=LAYERS)

    def forward(self, images):
        found = self.net(images - 0.45)
        return found | {"normed.3": found["normed.3"].mT.unflatten(2, (4, 4))}


EXTRACTOR = Extractor()


def make(**options):
    return WinClip(extractor=EXTRACTOR, layers=LAYERS, class_text="metal nut", **options)


def covered(scores, side):
    """Harmonic mean [4, 4] of the windows' scores that cover each patch."""
    grid = torch.zeros(4, 4)
    for r in range(4):
        for c in range(4):
            mine = [
                float(scores[i, j])
                for i in range(5 - side)
                for j in range(5 - side)
                if i <= r < i + side and j <= c < j + side
            ]
            grid[r, c] = len(mine) / sum(1 / score for score in mine)
    return grid


@pytest.mark.parametrize("shots", [0, 2])
def test_scores_equal_the_formulas(shots):
    detector, images, supports = make(), pictures(2, 64, seed=5), pictures(2, 64)
    if shots:
        detector.fit([supports])
    found = detector(images)
    text = EXTRACTOR.net.text
    words = [unit(text.encode_text(prompts("metal nut", states)).mean(0)) for states in (NORMAL, ANOMALOUS)]
    mine, normal = EXTRACTOR(images), EXTRACTOR(supports)

    def likely(vector):
        return torch.stack([unit(vector) @ word / 0.07 for word in words]).softmax(0)[1]

    for n in range(2):
        whole = likely(mine["pooled"][n])
        inverse, seen = 1 / whole, torch.zeros(4, 4)
        for name, side in (("window.2", 2), ("window.3", 3), ("normed.3", 1)):
            grid = mine[name][n].flatten(1).T
            if side > 1:
                scores = torch.stack([likely(row) for row in grid]).reshape(5 - side, 5 - side)
                inverse = inverse + 1 / covered(scores, side)
            rows = [unit(row) for one in normal[name] for row in one.flatten(1).T]
            far = torch.stack([min((1 - unit(row) @ other) / 2 for other in rows) for row in grid])
            seen += covered(far.reshape(5 - side, 5 - side), side) / 3
        want, score = 3 / inverse, whole
        if shots:
            want, score = want + seen, (whole + seen.max()) / 2
        large = F.interpolate(want[None, None], size=(64, 64), mode="bilinear")[0, 0]
        torch.testing.assert_close(found.map[n], large, **CLOSE)
        torch.testing.assert_close(found.score[n], score, **CLOSE)
        torch.testing.assert_close(found.parts["words"][n], whole, **CLOSE)


def test_prompts_are_the_published_ones():
    normal, anomalous = prompts("pill", NORMAL), prompts("pill", ANOMALOUS)
    assert (len(normal), len(anomalous)) == (7 * 22, 4 * 22)
    assert len(set(normal + anomalous)) == 11 * 22
    assert "a photo of the small pill without flaw." in normal
    assert "a jpeg corrupted photo of a damaged pill." in anomalous
    assert "a photo of the pill with defect for anomaly detection." in anomalous


def test_one_image_left_out_a_saved_state_and_what_is_said():
    check_left_out(make, pictures(3, 64))
    check_saved(make, pictures(2, 64))
    assert repr(make()).endswith("zero-shot")
    assert "banks [18, 32], [8, 32], [32, 64]" in repr(make().fit([pictures(2, 64)]))
    zero = make(few_shot=False).fit(iter([]))
    images = pictures(2, 64, seed=7)
    features = zero.features_of(images, zero.query_views)
    assert zero.memory_in_words(features, 2) is None
    assert "58 patches" in make().memory_in_words(features, 2)  # 9 + 4 windows and 16 patches an image
    assert torch.equal(zero(images).map, make()(images).map)
    odd = images.clone()
    odd[:, :, 16:32, 32:48] = (torch.arange(16)[:, None] // 2 + torch.arange(16) // 2) % 2
    few = make().fit([images])
    highest = few(odd).map.flatten(1).argmax(1)
    rows, columns = highest // 64, highest % 64
    assert ((rows >= 12) & (rows < 36) & (columns >= 28) & (columns < 52)).all()
    with pytest.raises(ValueError, match="must hold a CLIP"):
        WinClip(extractor=TinyNet("a"), layers=["pooled", "window.2"])
    with pytest.raises(ValueError, match="at least one window"):
        WinClip(extractor=EXTRACTOR, layers=["pooled"])
    demo = nn.Sequential(create_backbone("demo-clip", layers=["pooled", "window.2"]))
    assert WinClip(extractor=demo, layers=["pooled", "window.2"]).words.shape == (2, 128)
    with pytest.raises(ValueError, match="lacks 'spark'"):
        WinClip(extractor=demo, layers=["pooled", "window.2"], class_text="spark plug")
