"""PatchCore and PaDiM against plain loops and formulas."""

import io
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from anomaly_lib.models.detectors.memory_bank import MemoryBank
from anomaly_lib.models.detectors.padim import Padim
from anomaly_lib.models.detectors.patchcore import PatchCore, aggregate_patches


class TinyExtractor(nn.Module):
    """Three maps at strides 4, 8, 16 from frozen random convolutions."""

    def __init__(self, channels: tuple[int, int, int] = (6, 10, 14)) -> None:
        super().__init__()
        torch.manual_seed(5)
        sizes = (3, *channels)
        self.stages = nn.ModuleList(
            nn.Conv2d(sizes[n], sizes[n + 1], 3, stride=2 if n else 4, padding=1) for n in range(3)
        )
        self.requires_grad_(False)

    def forward(self, images):
        maps, x = {}, images
        for n, stage in enumerate(self.stages, start=1):
            x = torch.tanh(stage(x))
            maps[f"layer{n}"] = x
        return maps


@pytest.fixture
def images():
    return torch.rand(6, 3, 31, 95)


def enlarge(maps, size):
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def embedded(model, images):
    return model.embed(model.features_of(images, model.query_views))


def patch_rows(extractor, image):
    """Every position's vector, by loops: zero-padded 3x3 means, second layer resized to the first."""
    maps = extractor(image[None])
    means = []
    for name in ("layer2", "layer3"):
        x = F.pad(maps[name], (1, 1, 1, 1))[0]
        _, h, w = maps[name].shape[1:]
        rows = [[x[:, r : r + 3, c : c + 3].mean((1, 2)) for c in range(w)] for r in range(h)]
        means.append(torch.stack([torch.stack(row) for row in rows]))
    second = enlarge(means[1].permute(2, 0, 1)[None], means[0].shape[:2])
    return torch.cat([means[0], second[0].permute(1, 2, 0)], dim=2)  # [h, w, D]


def test_patchcore_equals_the_formulas(images):
    extractor = TinyExtractor()
    model = PatchCore(extractor=extractor, coreset_ratio=0.5, neighbours=4).fit(images[:4].split(3))
    bank = model.bank.rows
    assert len(bank) == 4 * 4 * 12 // 2
    rows = torch.cat([patch_rows(extractor, image).flatten(0, 1) for image in images[:4]])
    assert (torch.cdist(bank, rows, compute_mode="donot_use_mm_for_euclid_dist").amin(1) < 1e-6).all()
    assert len(bank.unique(dim=0)) == len(bank)

    got = model(images[4:])
    for b, image in enumerate(images[4:]):
        queries = patch_rows(extractor, image)
        distance = torch.cdist(queries.flatten(0, 1), bank, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distance.min(1)
        worst = int(nearest.values.argmax())
        around = torch.cdist(bank[nearest.indices[worst]][None], bank)[0].topk(4, largest=False).indices
        to_those = torch.stack([(queries.flatten(0, 1)[worst] - bank[i]).norm() for i in around])
        weight = 1 - math.exp(to_those[0]) / sum(math.exp(d) for d in to_those)
        assert got.score[b].item() == pytest.approx(float(weight * nearest.values[worst]), rel=1e-4)
        grid = nearest.values.reshape(queries.shape[:2])
        large = enlarge(grid[None, None], (31, 95))[0, 0]
        want = ndimage.gaussian_filter(large.numpy(), 4.0, mode="mirror")
        np.testing.assert_allclose(got.map[b].numpy(), want, atol=1e-4)


def test_patchcore_knows_its_own_images_and_defects(images):
    model = PatchCore(extractor=TinyExtractor(), coreset_ratio=1.0).fit([images])
    assert model(images).score.max() < 1e-4
    broken = images.clone()
    broken[:, :, 8:20, 30:60] = 3
    found = model(broken)
    assert found.score.min() > 0.01
    peak = found.map[0].flatten().argmax()
    assert 25 <= int(peak % 95) <= 65


def test_original_patchcore_scoring(images):
    extractor = TinyExtractor()
    model = PatchCore(
        extractor=extractor, coreset_size=30, embedding="aggregate", aggregate_dim=8, scoring="max", squared=True,
        patch_neighbours=3,
    ).fit([images[:4]])  # fmt: skip
    assert model.bank.rows.shape == (30, 8)
    grid, score = model.score_grid(embedded(model, images[4:]))
    rows = embedded(model, images[4:]).flatten(2).transpose(1, 2)
    want = torch.cdist(rows, model.bank.rows.expand(2, -1, -1)).square().topk(3, largest=False).values.mean(2)
    torch.testing.assert_close(grid.flatten(1), want, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(score, want.amax(1), rtol=1e-4, atol=1e-6)


def test_aggregate_is_the_mean_over_patch_and_channel_groups():
    maps = [torch.rand(1, 4, 3, 3), torch.rand(1, 8, 3, 3)]
    got = aggregate_patches(maps, 2)
    centre = [x[0].reshape(x.shape[1], -1) for x in maps]  # the middle position sees the whole 3x3 map
    per_layer = [torch.stack([c[: len(c) // 2].mean(), c[len(c) // 2 :].mean()]) for c in centre]
    torch.testing.assert_close(got[0, :, 1, 1], torch.stack([per_layer[0].mean(), per_layer[1].mean()]))


def test_chunked_fit_is_close_to_the_whole(images):
    whole = PatchCore(extractor=TinyExtractor(), coreset_size=40).fit([images])
    chunked = PatchCore(extractor=TinyExtractor(), coreset_size=40, chunk_rows=60).fit(images.split(1))
    assert len(chunked.bank) == 40
    far = lambda model: model.bank.search(embedded(model, images).permute(0, 2, 3, 1).flatten(0, 2))[0].max()  # noqa: E731
    assert far(chunked) <= 2 * far(whole)


def test_bank_grows_shrinks_merges_and_is_written(images):
    model = PatchCore(extractor=TinyExtractor(), coreset_ratio=1.0, neighbours=3).fit([images[:3]])
    before = model(images[4:]).score
    rows = len(model.bank)
    numbers = model.add_images(images[3:5], ratio=1.0)
    assert numbers == [3, 4]
    assert model(images[4:5]).score < 1e-4  # now known
    assert model.bank.remove(numbers) == len(model.bank) * 2 // 3
    assert len(model.bank) == rows
    torch.testing.assert_close(model(images[4:]).score, before)

    other = PatchCore(extractor=TinyExtractor(), coreset_ratio=1.0).fit([images[3:5]])
    both = model.bank.merged(other.bank)
    assert both.owners.max() == 4
    assert len(both) == rows + len(other.bank)
    stream = io.BytesIO()
    both.write(stream)
    stream.seek(0)
    again = MemoryBank.read(stream)
    assert torch.equal(again.rows, both.rows)
    assert torch.equal(again.owners, both.owners)
    with pytest.raises(ValueError, match="vectors of"):
        both.add(torch.rand(2, 3), torch.tensor([9, 9]))


def test_neighbour_table_gives_what_a_search_gives():
    bank = MemoryBank(torch.randn(50, 6))
    for indices in (torch.tensor([3, 3, 9]), torch.arange(50)):
        want = torch.cdist(bank.rows[indices], bank.rows).topk(5, largest=False).indices
        assert torch.equal(bank.neighbours_of(indices, 5), want)


def test_state_dict_round_trip(images):
    model = PatchCore(extractor=TinyExtractor(), coreset_size=20).fit([images])
    fresh = PatchCore(extractor=TinyExtractor())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images).score, model(images).score)
    padim = Padim(extractor=TinyExtractor(), features=12).fit([images])
    blank = Padim(extractor=TinyExtractor(), features=12, seed=9)
    blank.load_state_dict(padim.state_dict())
    assert torch.equal(blank(images).map, padim(images).map)


@pytest.mark.parametrize("batch", [2, 6])
def test_padim_equals_the_formulas(images, batch):
    extractor = TinyExtractor()
    model = Padim(extractor=extractor, features=9, seed=3).fit(images.split(batch))
    channels = torch.randperm(30, generator=torch.Generator().manual_seed(3))[:9]
    assert torch.equal(model.channels, channels)
    maps = extractor(images)
    size = maps["layer1"].shape[-2:]
    layers = [F.interpolate(maps[f"layer{i}"], size=size, mode="nearest") for i in (1, 2, 3)]
    full = torch.cat(layers, dim=1)[:, channels]
    rows = full.flatten(2).double().numpy()  # [B, D, P]
    distance = np.zeros((len(images), rows.shape[2]))
    for p in range(rows.shape[2]):
        inverse = np.linalg.inv(np.cov(rows[:, :, p], rowvar=False) + (0.01 + 1e-5) * np.eye(9))
        centred = rows[:, :, p] - rows[:, :, p].mean(0)
        distance[:, p] = np.sqrt(np.einsum("bi,ij,bj->b", centred, inverse, centred))
    np.testing.assert_allclose(model.score_grid(embedded(model, images)).flatten(1).numpy(), distance, rtol=1e-3)
    large = enlarge(torch.from_numpy(distance).reshape(-1, 1, *size), (31, 95))
    want = ndimage.gaussian_filter(large[0, 0].numpy(), 4.0, mode="mirror")
    got = model(images)
    np.testing.assert_allclose(got.map[0].numpy(), want, rtol=1e-3)
    assert torch.equal(got.score, got.map.amax((1, 2)))


def test_padim_refuses_what_it_cannot_do(images):
    with pytest.raises(ValueError, match="at least 2"):
        Padim(extractor=TinyExtractor(), features=4).fit([images[:1]])
    with pytest.raises(ValueError, match="31 of 30"):
        Padim(extractor=TinyExtractor(), features=31).fit([images])
    model = Padim(extractor=TinyExtractor(), features=4).fit([images])
    with pytest.raises(ValueError, match="positions"):
        model(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="fit"):
        Padim(extractor=TinyExtractor(), features=4)(images)
    with pytest.raises(ValueError, match="empty"):
        PatchCore(extractor=TinyExtractor())(images)


def test_a_normal_image_is_judged_by_the_others_alone() -> None:
    """Left out exactly: as a bank without its rows, or Gaussians fitted without it, would judge it."""
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    model = PatchCore(extractor=TinyExtractor(), coreset_ratio=1.0, neighbours=3, sigma=1.0).fit([images])
    found = model.left_out(images[1:3], [1, 2])
    for row, number in enumerate((1, 2)):
        others = torch.cat([images[:number], images[number + 1 :]])
        alone = PatchCore(extractor=TinyExtractor(), coreset_ratio=1.0, neighbours=3, sigma=1.0).fit([others])
        wanted = alone(images[number : number + 1])
        torch.testing.assert_close(found.score[row], wanted.score[0])
        torch.testing.assert_close(found.map[row], wanted.map[0])
    assert len(model.bank) == len(alone.bank) // 4 * 5  # nothing was lost
    gaussians = Padim(extractor=TinyExtractor(), features=6, sigma=1.0).fit([images])
    found = gaussians.left_out(images, range(5))
    for number in range(5):
        alone = Padim(extractor=TinyExtractor(), features=6, sigma=1.0)
        alone.fit([torch.cat([images[:number], images[number + 1 :]])])
        wanted = alone(images[number : number + 1])
        torch.testing.assert_close(found.score[number], wanted.score[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.map[number], wanted.map[0], rtol=1e-3, atol=1e-4)
