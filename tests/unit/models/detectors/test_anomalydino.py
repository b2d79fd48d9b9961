"""AnomalyDINO against loops over patches."""

import pytest
import torch
from torch.nn import functional as F

from anomaly_lib.models.detectors import AnomalyDino
from anomaly_lib.ops import foreground, gaussian_blur
from tests.support.family import CLOSE, TinyNet, check_left_out, check_planted, check_saved, features_of, pictures, unit

OUTPUTS = ["layer.1", "layer.2"]


def make(**options):
    return AnomalyDino(extractor=TinyNet(*OUTPUTS), layers=OUTPUTS, **options)


def twin(detector, supports, image, *, kept=None):
    """Patch scores [h, w]: every patch of every turn is compared with every patch of the image."""

    def grid_of(picture):
        found = detector.extractor(picture[None])
        return sum(found[name][0] for name in OUTPUTS) / len(OUTPUTS)

    views = [grid_of(view) for support in supports for view in detector.support_views(support[None])[0]]
    normal = [unit(view[:, r, c]) for view in views for r in range(view.shape[1]) for c in range(view.shape[2])]
    mine = grid_of(image)
    scores = torch.zeros(mine.shape[1:])
    for r in range(mine.shape[1]):
        for c in range(mine.shape[2]):
            if kept is None or kept[r, c]:
                row = unit(mine[:, r, c])
                scores[r, c] = min(1 - float(row @ other) for other in normal)
    return scores


@pytest.mark.parametrize("mask", [False, True])
def test_scores_equal_the_formulas(mask):
    options = {"mask": True, "mask_threshold": 0.2} if mask else {}
    supports, images = pictures(2, 64), pictures(2, 64, seed=5)
    detector = make(rotations=3, top_share=0.1, **options).fit([supports])
    found = detector(images)
    for n, image in enumerate(images):
        grids = features_of(detector, images)
        mean = torch.stack([grids[name][n : n + 1, 0] for name in OUTPUTS]).mean(0)
        kept = foreground(mean, 0.2)[0] if mask else None
        assert kept is None or 0 < kept.sum() < kept.numel()
        scores = twin(detector, supports, image, kept=kept)
        assert scores.std() > 1e-4
        torch.testing.assert_close(
            found.score[n], torch.stack(sorted(scores.flatten(), reverse=True)[:6]).mean(), **CLOSE
        )
        large = F.interpolate(scores[None, None], size=(64, 64), mode="bilinear")[0]
        torch.testing.assert_close(found.map[n], gaussian_blur(large, 4.0, border="symmetric")[0], **CLOSE)


def test_what_is_learnt_of_a_support():
    image = pictures(1)[0]
    views = make().support_views(image[None])[0]
    assert views.shape == (8, 3, 40, 40)
    assert all(torch.equal(views[2 * n], torch.rot90(image, n, dims=(-2, -1))) for n in range(4))
    assert torch.equal(views, make().support_views(pictures(2))[0])
    assert torch.equal(make(rotations=1).support_views(image[None])[0], image[None])
    bank = make(rotations=2).fit([pictures(3)]).banks[0]
    assert bank.rows.shape == (3 * 2 * 25, 12)
    assert bank.owners.bincount().tolist() == [50, 50, 50]
    some = make(rotations=2, mask=True, mask_threshold=0.2, mask_support=True).fit([pictures(3, 64)]).banks[0]
    assert 0 < len(some) < 3 * 2 * 64


def test_one_image_left_out_a_planted_patch_and_a_saved_state():
    check_left_out(lambda: make(rotations=2, sigma=1.0), pictures(4))
    check_planted(make(rotations=2, sigma=1.0).fit([pictures(4)]), pictures(2, seed=9))
    check_saved(make, pictures(2))
    assert "banks [400, 12]" in repr(make().fit([pictures(2)]))


def test_misuse_is_said():
    with pytest.raises(ValueError, match="empty"):
        make()(pictures(1))
    with pytest.raises(ValueError, match="no normal images"):
        make().fit([])
    with pytest.raises(ValueError, match="layers=pooled"):
        AnomalyDino(extractor=TinyNet("a"), layers=["pooled"]).fit([pictures(1)])
    with pytest.raises(ValueError, match="mask_threshold"):
        make(mask_threshold=3.0)
