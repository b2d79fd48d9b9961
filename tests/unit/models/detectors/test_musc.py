"""MuSc against loops over images and patches."""

import pytest
import torch
from torch.nn import functional as F

from anomaly_lib.models.detectors import MuSc
from tests.support.family import CLOSE, TinyNet, pictures, unit

OUTPUTS = ["layer.1", "layer.2"]


def make(**options):
    return MuSc(extractor=TinyNet(*OUTPUTS), layers=["pooled", *OUTPUTS], **options)


def means(grid, window):
    """Mean of every neighbourhood, zeros beyond the edge counted: [C, h, w]."""
    reach = window // 2
    padded = F.pad(grid, (reach,) * 4)
    out = torch.zeros_like(grid)
    for r in range(grid.shape[1]):
        for c in range(grid.shape[2]):
            out[:, r, c] = padded[:, r : r + window, c : c + window].mean((1, 2))
    return out


def test_scores_equal_the_formulas():
    images = pictures(5)
    detector = make(windows=[1, 3], nearest_share=0.6, rescore=[1, 2])
    found, features = detector(images), detector.extractor(images)
    grids = torch.zeros(5, 5, 5)
    for name in OUTPUTS:
        for window in (1, 3):
            rows = []
            for one in features[name]:
                normed = (one - one.mean()) / (one.var(correction=0) + 1e-5).sqrt()
                rows.append([unit(v) for v in means(normed, window).flatten(1).T])
            for i in range(5):
                for p in range(25):
                    away = [min((rows[i][p] - v).norm() for v in rows[j]) for j in range(5) if j != i]
                    grids[i, p // 5, p % 5] += sum(sorted(away)[:2]) / 2 / 4
    want = F.interpolate(grids[:, None], size=(40, 40), mode="bilinear", align_corners=True)[:, 0]
    torch.testing.assert_close(found.map, want, **CLOSE)
    scores = want.flatten(1).max(1).values
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    for i in range(5):
        alike = [float(unit(features["pooled"][i]) @ unit(other)) for other in features["pooled"]]
        second = sorted(range(5), key=lambda j: -alike[j])[1]
        pair = (alike[i] * scores[i] + alike[second] * scores[second]) / (alike[i] + alike[second])
        torch.testing.assert_close(found.score[i], (scores[i] + pair) / 2, **CLOSE)


def test_a_planted_patch_is_found_among_the_others():
    images = pictures(6)
    images[4, :, 16:24, 24:32] = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    told = []
    detector = make(windows=[1], rescore=[0])
    detector.progress = lambda done, total: told.append((done, total))
    found = detector(images)
    assert found.score.argmax() == 4
    assert found.map.flatten(1).amax(1).equal(found.score)
    highest = int(found.map[4].argmax())
    assert 14 <= highest // 40 < 26
    assert 22 <= highest % 40 < 34
    assert told == [(1, 2), (2, 2)]


def test_it_is_transductive_and_says_so():
    detector = make()
    assert detector.transductive
    assert detector.least_images is None
    assert "transductive" in repr(detector)
    images = pictures(4)
    assert not torch.allclose(detector(images).map[0], detector(images[:3]).map[0])
    assert detector.fit(iter([])) is detector
    with pytest.raises(ValueError, match="at least two"):
        detector(images[:1])
    with pytest.raises(ValueError, match="windows=4"):
        make(windows=[1, 4])
    with pytest.raises(ValueError, match="pooled"):
        MuSc(extractor=TinyNet("a"), layers=["a"])
    assert MuSc(extractor=TinyNet("a"), layers=["a"], rescore=[0])(images).score.std() > 0
