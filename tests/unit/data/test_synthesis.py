import pytest
import torch
from scipy import ndimage

from anomaly_lib.data.synthesis import (
    AUGMENTATIONS,
    CutPaste,
    _equalize,
    augment_textures,
    perlin_damage,
    perlin_masks,
    rotate,
    textures_of,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mask_areas_follow_the_measured_distribution():
    """Published for 128 x 128: mean 0.055, deciles 10/50/90 % = 0.027 / 0.044 / 0.090."""
    _, mask = perlin_masks((128, 128), 400, generator=seeded())
    area = mask.flatten(1).float().mean(1)
    assert (area > 0).all()
    assert area.mean().item() == pytest.approx(0.055, rel=0.15)
    low, middle, high = area.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    assert low == pytest.approx(0.027, rel=0.2)
    assert middle == pytest.approx(0.044, rel=0.2)
    assert high == pytest.approx(0.090, rel=0.25)


@pytest.mark.parametrize("textured", [False, True])
def test_perlin_damage_mixes_inside_the_mask_only(textured):
    images = torch.rand(12, 3, 31, 95)
    textures = torch.full((2, 3, 31, 95), 0.5) if textured else None
    damaged = perlin_damage(images, probability=1.0, textures=textures, generator=seeded())
    outside = ~damaged.mask.unsqueeze(1).expand_as(images)
    assert torch.equal(damaged.images[outside], images[outside])
    assert ((damaged.images - images).abs().amax((1, 2, 3)) > 0.02).all()
    assert damaged.mask.flatten(1).any(1).all()
    assert damaged.severity.min() >= 0.1
    assert damaged.severity.max() <= 1.0


def test_half_of_the_images_stay_clean_and_draws_repeat():
    images = torch.rand(400, 1, 16, 16)
    damaged = perlin_damage(images, generator=seeded(1))
    clean = ~damaged.mask.flatten(1).any(1)
    assert 0.4 < clean.float().mean() < 0.6
    assert torch.equal(damaged.images[clean], images[clean])
    assert (damaged.severity[clean] == 0).all()
    assert torch.equal(perlin_damage(images, generator=seeded(1)).images, damaged.images)


def test_rotation_equals_scipy():
    image = torch.rand(1, 1, 21, 33)
    for degrees in (30.0, 90.0, -45.0):
        got = rotate(image, torch.tensor([degrees]))[0, 0]
        want = ndimage.rotate(image[0, 0].numpy(), degrees, reshape=False, order=1)
        torch.testing.assert_close(got[8:13, 12:21], torch.from_numpy(want)[8:13, 12:21], atol=1e-4, rtol=0)


def test_augmentations_keep_shape_and_change_something():
    textures = torch.rand(6, 3, 12, 20)
    u = torch.full((6, 1, 1, 1), 0.9)
    for change in AUGMENTATIONS:
        got = change(textures, u)
        assert got.shape == textures.shape
        assert got.isfinite().all()
        assert (got - textures).abs().max() > 0.01, change.__name__
    assert ((augment_textures(textures, generator=seeded()) - textures).abs().amax((1, 2, 3)) > 0.01).all()
    assert augment_textures(torch.rand(3, 1, 8, 8)).shape == (3, 1, 8, 8)


def box_of(mask):
    rows, columns = mask.any(1).nonzero().squeeze(1), mask.any(0).nonzero().squeeze(1)
    return int(rows[0]), int(columns[0]), len(rows), len(columns)


def test_equalized_textures_use_every_level_alike():
    dark = torch.rand(2, 3, 64, 64) ** 2
    flat = _equalize(dark, torch.zeros(2, 1, 1, 1))
    assert flat.amin((2, 3)).eq(0).all()
    assert flat.amax((2, 3)).eq(1).all()
    # Above the lowest grey levels, which many pixels share, quantiles lie where a uniform distribution has them.
    for q in (0.5, 0.75, 0.9):
        torch.testing.assert_close(flat.flatten(2).quantile(q, dim=2), torch.full((2, 3), q), rtol=0, atol=0.06)


def test_cutpaste_adds_a_scaled_patch_of_the_image_itself():
    images = torch.rand(40, 1, 18, 26) * 0.1
    make = CutPaste(width_range=(3, 6), ratio_range=(0.5, 1.5), severity_max=2.0, probability=1.0, clamp=False)
    damaged = make(images, generator=seeded(2))
    assert damaged.severity.max() <= 2
    assert damaged.severity.std() > 0.3
    for b in range(len(images)):
        top, left, h, w = box_of(damaged.mask[b])
        assert damaged.mask[b].sum() == h * w
        assert 3 <= w <= 6
        assert int(w * 0.5) <= h <= int(w * 1.5)
        added = (damaged.images - images)[b, 0, top : top + h, left : left + w] / damaged.severity[b]
        patches = images[b, 0].unfold(0, h, 1).unfold(1, w, 1)
        error = (patches - added).abs().amax((2, 3))
        row, column = divmod(int(error.argmin()), error.shape[1])
        assert error.min() < 1e-3
        overlap = max(0, h - abs(row - top)) * max(0, w - abs(column - left))
        assert overlap <= 0.3 * h * w
        outside = ~damaged.mask[b]
        assert torch.equal(damaged.images[b, 0][outside], images[b, 0][outside])


def test_cutpaste_many_patches_clamp_and_skip():
    images = torch.rand(60, 3, 20, 30)
    damaged = CutPaste(width_range=(2, 5), ratio_range=(1, 1), count=4, probability=0.5)(images, generator=seeded(3))
    hit = damaged.severity > 0
    assert 0.3 < hit.float().mean() < 0.7
    assert torch.equal(damaged.images[~hit], images[~hit])
    assert damaged.images.max() <= 1
    assert damaged.mask[hit].flatten(1).sum(1).max() > 25  # more than one patch of 5 x 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width_range": (0, 3)}, "patch_width_range"),
        ({"width_range": (9, 3)}, "patch_width_range"),
        ({"ratio_range": (0.0, 1.0)}, "patch_ratio_range"),
        ({"severity_max": 0.0}, "severity_max"),
        ({"count": 0}, "patch_count"),
        ({"probability": 1.5}, "probability"),
    ],
)
def test_cutpaste_refuses_nonsense(options, message):
    with pytest.raises(ValueError, match=message):
        CutPaste(**options)


def test_cutpaste_patch_must_fit():
    with pytest.raises(ValueError, match="does not fit a 31x95"):
        CutPaste(width_range=(20, 80))(torch.rand(1, 1, 31, 95))


def test_texture_stack():
    assert textures_of([torch.rand(3, 40, 50), torch.rand(3, 10, 12)], (16, 24)).shape == (2, 3, 16, 24)
