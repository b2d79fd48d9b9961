"""RAD against loops over images, positions and places nearby."""

import pytest
import torch
from torch.nn import functional as F

from anomaly_lib.models.detectors import Rad
from anomaly_lib.ops import gaussian_blur
from tests.support.family import CLOSE, TinyNet, check_left_out, check_planted, check_saved, features_of, pictures, unit

OUTPUTS = ["layer.1", "layer.2"]


def make(**options):
    return Rad(extractor=TinyNet(*OUTPUTS), layers=["pooled", *OUTPUTS], **options)


@pytest.mark.parametrize("radius", [0, 1])
def test_scores_equal_the_formulas(radius):
    supports, images = pictures(5), pictures(2, seed=5)
    detector = make(nearest_images=2, radius=radius, top_share=0.02).fit([supports[:3], supports[3:]])
    found = detector(images)
    known = detector.extractor(supports)
    for n, image in enumerate(images):
        mine = detector.extractor(image[None])
        alike = [float(unit(mine["pooled"][0]) @ unit(other)) for other in known["pooled"]]
        near = sorted(range(5), key=lambda k: -alike[k])[:2]
        grid = torch.zeros(5, 5)
        for name in OUTPUTS:
            for r in range(5):
                for c in range(5):
                    places = [
                        (i, j) for i in range(5) for j in range(5) if abs(i - r) <= radius and abs(j - c) <= radius
                    ]
                    row = unit(mine[name][0, :, r, c])
                    best = max(float(row @ unit(known[name][k, :, i, j])) for k in near for i, j in places)
                    grid[r, c] += (1 - best) / 2
        large = F.interpolate(grid[None, None], size=(40, 40), mode="bilinear")
        want = gaussian_blur(large, 1.0)[0, 0]
        torch.testing.assert_close(found.map[n], want, **CLOSE)
        torch.testing.assert_close(found.score[n], want.flatten().sort().values[-32:].mean(), **CLOSE)


@pytest.mark.parametrize("nearest", [2, 150])
def test_one_image_left_out(nearest):
    check_left_out(lambda: make(nearest_images=nearest), pictures(4))


def test_a_planted_patch_and_a_saved_state():
    detector = make().fit([pictures(4)])
    check_planted(detector, pictures(2, seed=9))
    check_saved(make, pictures(2))
    assert repr(detector).endswith("; 4 normal images")
    assert "4 images" in detector.memory_in_words(features_of(detector, pictures(1)), 4)
    with pytest.raises(ValueError, match="25 positions"):
        detector(pictures(1, size=48))
    with pytest.raises(ValueError, match="fit the detector"):
        make()(pictures(1))
    with pytest.raises(ValueError, match="pooled"):
        Rad(extractor=TinyNet("a"), layers=["a"])
