"""FewShot against loops over patches."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anomaly_lib.models.detectors import FewShot
from anomaly_lib.ops import gaussian_blur
from anomaly_lib.systems.registry import SYSTEMS
from tests.support.family import CLOSE, TinyNet, check_left_out, check_planted, check_saved, pictures, unit

OUTPUTS = ["layer.1", "layer.2"]


def make(**options):
    net = TinyNet(*OUTPUTS)
    return FewShot(extractor=net, layers=OUTPUTS, **{"rotations": 2, "variance": 0.8, "top_share": 0.1, **options})


def vectors(detector, picture):
    """Both outputs at length 1 side by side, at length 1 again: one row a patch, in float64."""
    found = detector.extractor(picture[None])
    rows = []
    for place in range(found["layer.1"][0, 0].numel()):
        parts = [unit(found[name][0].flatten(1)[:, place].double()) for name in OUTPUTS]
        rows.append(unit(torch.cat(parts)).numpy())
    return np.stack(rows)


def test_scores_equal_the_formulas():
    supports, images = pictures(2), pictures(2, seed=5)
    detector = make(sigma=1.5).fit([supports])
    plain = [vectors(detector, support) for support in supports]
    turned = [vectors(detector, torch.rot90(support, 2, dims=(-2, -1))) for support in supports]
    normal = np.concatenate([*plain, *turned])
    subspaces = []
    for part in (slice(0, 12), slice(12, 24)):  # of each output, images as they are
        rows = np.concatenate(plain)[:, part]
        _, values, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
        kept = int(np.searchsorted((values**2).cumsum() / (values**2).sum(), 0.8)) + 1
        assert 1 < kept < 12
        subspaces.append((part, rows.mean(0), axes[:kept]))
    assert detector.axes.shape == (24, sum(len(axes) for _, _, axes in subspaces))
    found = detector(images)
    for n, image in enumerate(images):
        scores = torch.zeros(25)
        for place, row in enumerate(vectors(detector, image)):
            near = min(1 - float(row @ other) for other in normal)
            left = 0.0
            for part, mean, axes in subspaces:
                inside = sum(((row[part] - mean) @ axis) * axis for axis in axes)
                left += float(((row[part] - mean - inside) ** 2).sum())
            scores[place] = (near * left) ** 0.5
        assert scores.std() > 1e-4
        torch.testing.assert_close(found.score[n], scores.sort().values[-2:].mean(), **CLOSE)
        large = F.interpolate(scores.reshape(1, 1, 5, 5), size=(40, 40), mode="bilinear")[0]
        torch.testing.assert_close(found.map[n], gaussian_blur(large, 1.5)[0], **CLOSE)


def test_one_image_left_out_a_planted_patch_and_a_saved_state():
    check_left_out(make, pictures(4))
    check_planted(make(sigma=1.0).fit([pictures(4)]), pictures(2, seed=9))
    check_saved(make, pictures(2))
    fitted, fresh, images = make().fit([pictures(3)]), make(), pictures(3)
    fresh.load_state_dict(fitted.state_dict())  # what is loaded can leave an image out, too
    torch.testing.assert_close(fresh.left_out(images, [0, 1, 2]).map, fitted.left_out(images, [0, 1, 2]).map)
    assert "banks [200, 24]" in repr(make().fit([pictures(4)]))


class Stages(nn.Module):
    """A convolutional network's stages: each on a grid of its own, with channels of its own."""

    def forward(self, images):
        pooled = F.avg_pool2d(images, 8) + 0.1
        return {"layer1": pooled, "layer2": torch.cat([pooled, pooled.square()], 1)[:, :, ::2, ::2]}


def test_stages_of_any_grid_are_read_on_the_grid_of_the_first():
    detector = FewShot(extractor=Stages(), layers=["layer1", "layer2"], rotations=1).fit([pictures(3)])
    assert detector.banks[0].rows.shape == (3 * 25, 9)
    assert detector(pictures(1, seed=4)).map.shape == (1, 40, 40)


def test_misuse_is_said():
    with pytest.raises(ValueError, match="empty"):
        make()(pictures(1))
    with pytest.raises(ValueError, match="no normal images"):
        make().fit([])


def test_all_images_are_learnt_as_they_are_and_few_in_turns():
    options = SYSTEMS["detectors"].Args
    assert options(model="fewshot").rotations == 1
    assert options(model="fewshot", shot=4).rotations == 8
    assert options(model="fewshot", rotations=4).rotations == 4
