"""VisionAD against loops over patches."""

import pytest
import torch
from torch.nn import functional as F

from anomaly_lib.models.detectors import VisionAd
from tests.support.family import CLOSE, TinyNet, check_left_out, check_planted, check_saved, pictures, unit

OUTPUTS = ["layer.1", "layer.2", "layer.3"]


def make(**options):
    return VisionAd(extractor=TinyNet(*OUTPUTS), layers=OUTPUTS, **options)


def grid_of(detector, picture):
    found = detector.extractor(picture[None])
    return sum(found[name][0] for name in OUTPUTS) / 3


def changes(picture):
    """As it is, mirrored, and nothing below the network's mean."""
    return [picture, picture.flip(-2), picture.clamp(min=0.45)]


def six(picture):
    return [*(torch.rot90(picture, n, dims=(-2, -1)) for n in range(4)), picture.flip(-2), picture.flip(-1)]


def test_scores_equal_the_formulas():
    supports, images = pictures(2), pictures(2, seed=5)
    detector = make(top_share=0.02).fit([supports[:1], supports[1:]])
    found = detector(images)
    for n, image in enumerate(images):
        total = torch.zeros(5, 5)
        for kind in range(3):
            views = [grid_of(detector, view) for support in supports for view in six(changes(support)[kind])]
            normal = [unit(view[:, r, c]) for view in views for r in range(5) for c in range(5)]
            mine = grid_of(detector, changes(image)[kind])
            for r in range(5):
                for c in range(5):
                    row = unit(mine[:, r, c])
                    total[4 - r if kind == 1 else r, c] += min(1 - float(row @ other) for other in normal)
        large = F.interpolate(total[None, None], size=(40, 40), mode="bilinear")[0, 0]
        torch.testing.assert_close(found.map[n], large, **CLOSE)
        torch.testing.assert_close(found.score[n], large.flatten().sort().values[-32:].mean(), **CLOSE)


def test_views():
    images = pictures(2)
    views = make().support_views(images)
    assert views.shape == (2, 18, 3, 40, 40)
    for kind, changed in enumerate(changes(images[1])):
        assert torch.equal(views[1, 6 * kind : 6 * kind + 6], torch.stack(six(changed)))
    assert make(augment_support=False).support_views(images).shape == (2, 3, 3, 40, 40)
    plain = make(augment_support=False, augment_query=False)
    assert torch.equal(plain.support_views(images), images[:, None])
    assert [len(bank) for bank in plain.fit([images]).banks] == [50]
    with pytest.raises(ValueError, match="squares"):
        make().support_views(images[..., :32])


def test_one_image_left_out_a_planted_patch_and_a_saved_state():
    check_left_out(make, pictures(4))
    check_planted(make().fit([pictures(4)]), pictures(2, seed=9))
    check_saved(make, pictures(2))
    assert repr(make().fit([pictures(1)])).endswith("banks [150, 12], [150, 12], [150, 12]")
