"""The demo CLIP's training code: it encodes as the frozen backbone does, starts as documented, asks what it should."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anomaly_lib.backbones.clip import CLIP_MEAN, CLIP_STD, ClipBackbone
from scripts.demo_backbone import objective
from scripts.demo_backbone.model import MODEL, build, cosine_patches, encode_windows, start_attention
from scripts.demo_backbone.objective import MEMORY_TAPS, MemoryScale, losses, memory_distance
from scripts.demo_backbone.pictures.batches import Batch, make_batch
from scripts.demo_backbone.pictures.pictures import PIECES
from scripts.demo_backbone.pictures.pool import GRID, draw_pool


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    pool = draw_pool(tmp_path_factory.mktemp("pool"), 8, 3)
    torch.manual_seed(0)
    return make_batch(pool, np.random.default_rng(0), 4)


def test_training_encodes_as_the_backbone_does(batch: Batch) -> None:
    torch.manual_seed(0)
    clip, _, tokenizer = build()
    outputs = ["pooled", "patch_tokens", "vv_tokens", *(f"layer.{tap}" for tap in MEMORY_TAPS)]
    net = ClipBackbone(clip, tokenizer, name="demo", outputs=outputs, weights_id="random", config=MODEL)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    wanted = net.encode((batch.images - mean) / std)
    found = encode_windows(clip, batch.images, batch.offsets, value_value=True, taps=MEMORY_TAPS)
    for ours, theirs in (("pooled", "pooled"), ("patches", "patch_tokens"), ("vv", "vv_tokens")):
        torch.testing.assert_close(found[ours], F.normalize(wanted[theirs], dim=-1), atol=2e-5, rtol=0)
    for tap in MEMORY_TAPS:
        torch.testing.assert_close(found[f"layer.{tap}"], wanted[f"layer.{tap}"], atol=2e-4, rtol=1e-4)


def test_a_window_knows_its_place() -> None:
    torch.manual_seed(0)
    clip, _, _ = build()
    images = torch.rand(1, 3, 64, 64).expand(2, -1, -1, -1)
    out = encode_windows(clip, images, torch.tensor([[0, 0], [8, 3]]), value_value=False)["patches"]
    assert (out[0] - out[1]).norm(dim=-1).min() > 1e-3


def test_the_tower_starts_at_waves_and_comparisons() -> None:
    waves = cosine_patches(128, 8).flatten(1)
    unit = F.normalize(waves, dim=1)
    torch.testing.assert_close(unit @ unit.T, torch.eye(128), atol=1e-5, rtol=0)
    assert waves[0].reshape(3, 64).std(1).max() < 1e-6  # the first one is plain brightness
    torch.manual_seed(0)
    attn = torch.nn.MultiheadAttention(128, 4, batch_first=True)
    with torch.no_grad():
        start_attention(attn)
    query, key, value = attn.in_proj_weight.chunk(3)
    for head in range(4):
        rows = slice(32 * head, 32 * head + 32)
        assert (query[rows].T @ key[rows]).diagonal().mean() > 0.1  # alike attends to alike
    torch.testing.assert_close((attn.out_proj.weight @ value).diagonal().mean(), torch.tensor(-0.4), atol=0.02, rtol=0)


def test_memory_distance_is_that_of_a_loop() -> None:
    rows = torch.randn(2, PIECES, 5, 7)
    found = memory_distance(rows)
    for product in range(2):
        for piece in range(1, PIECES):
            for patch in range(5):
                asked = F.normalize(rows[product, piece, patch], dim=0)
                wanted = min((asked - F.normalize(other, dim=0)).norm() for other in rows[product, 0])
                torch.testing.assert_close(found[product, piece - 1, patch], wanted)


def test_what_only_a_comparison_shows_is_asked_of_the_memory_alone(batch: Batch) -> None:
    torch.manual_seed(0)
    clip, text, _ = build()

    def terms(compared: bool, monkey: torch.Tensor) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        asked = replace(batch, compared=torch.full_like(batch.compared, compared), patches=monkey)
        return losses(clip, text, MemoryScale(), asked, value_value=False, precision="fp32")

    damaged = batch.patches
    swapped = torch.where(damaged == 1, -1, damaged)
    assert set(terms(True, damaged)) == {"patch", "image", "memory", "memory rank", "material", "caption"} - (
        set() if (batch.object == -1).any() else {"material"}
    )
    torch.testing.assert_close(terms(True, damaged)["patch"], terms(True, swapped)["patch"])
    assert terms(False, damaged)["patch"] != terms(False, swapped)["patch"]
    assert terms(True, damaged)["memory"] != terms(True, swapped)["memory"]


def test_weights_of_picture_terms_are_lower_on_windows() -> None:
    parts = {name: torch.tensor(1.0) for name in objective.WEIGHTS}
    whole, window = (objective.weighted(parts, whole=flag) for flag in (True, False))
    off = sum(objective.WEIGHTS[name] for name in objective.OF_PICTURES) * (1 - objective.WINDOW_SHARE)
    torch.testing.assert_close(whole - window, torch.tensor(off))
    assert GRID == 16
