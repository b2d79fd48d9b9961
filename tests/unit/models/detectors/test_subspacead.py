"""SubspaceAD against a singular value decomposition and loops over patches."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anomaly_lib.models.detectors import SubspaceAd
from anomaly_lib.ops import gaussian_blur
from tests.support.family import CLOSE, TinyNet, check_left_out, check_planted, check_saved, pictures

OUTPUTS = ["layer.1", "layer.2"]


def make(**options):
    return SubspaceAd(extractor=TinyNet(*OUTPUTS), layers=OUTPUTS, **{"rotations": 2, **options})


def patches(detector, picture):
    """The mean of both outputs, one row a patch, in float64."""
    found = detector.extractor(picture[None])
    return ((found["layer.1"] + found["layer.2"]) / 2)[0].flatten(1).T.double().numpy()


@pytest.mark.parametrize("options", [{"variance": 0.9}, {"components": 3}])
def test_scores_equal_the_formulas(options):
    supports, images = pictures(2), pictures(2, seed=5)
    detector = make(top_share=0.02, **options).fit([supports])
    views = [view for image in supports for view in detector.support_views(image[None])[0]]
    assert len(views) == 6
    normal = np.concatenate([patches(detector, view) for view in views])
    mean = normal.mean(0)
    _, values, axes = np.linalg.svd(normal - mean, full_matrices=False)
    kept, explained = 0, 0.0
    while explained < options.get("variance", 2) and kept < options.get("components", 12):
        explained += values[kept] ** 2 / (values**2).sum()
        kept += 1
    assert 1 < kept < 12
    assert detector.axes.shape == (12, kept)
    found = detector(images)
    for n, image in enumerate(images):
        grid = torch.zeros(25)
        for place, row in enumerate(patches(detector, image)):
            inside = sum(((row - mean) @ axis) * axis for axis in axes[:kept])
            grid[place] = float(((row - mean - inside) ** 2).sum())
        large = F.interpolate(grid.reshape(1, 1, 5, 5), size=(40, 40), mode="bilinear")[0, 0]
        want = gaussian_blur(large, 4.0, radius=1)
        torch.testing.assert_close(found.map[n], want, **CLOSE)
        torch.testing.assert_close(found.score[n], want.flatten().sort().values[-32:].mean(), **CLOSE)


def test_what_is_learnt_of_a_support():
    images = pictures(2)
    views = make(rotations=5).support_views(images)
    assert views.shape == (2, 6, 3, 40, 40)
    assert torch.equal(views[:, 0], images)
    assert torch.equal(views[1], make(rotations=5).support_views(images[1:])[0])  # whatever stands beside it
    assert not torch.equal(views, make(rotations=5, seed=7).support_views(images))
    assert (views[:, 1:, :, 0, 0] == 0).any()  # black corners
    assert make(rotations=0).support_views(images).shape == (2, 1, 3, 40, 40)


@pytest.mark.parametrize("rotations", [0, 2])
def test_one_image_left_out(rotations):
    check_left_out(lambda: make(rotations=rotations, variance=0.9, top_share=0.1), pictures(4))


def test_a_planted_patch_and_a_saved_state():
    check_planted(make(rotations=0).fit([pictures(4)]), pictures(2, seed=9))
    check_saved(make, pictures(2))
    assert "of 12 dimensions" in repr(make().fit([pictures(2)]))
    with pytest.raises(ValueError, match="fit the detector"):
        make()(pictures(1))
    with pytest.raises(ValueError, match="variance"):
        make(components=2, variance=0.5)
