"""CLIP's window features against a loop over windows, and which windows there are."""

import pytest
import torch

from anomaly_lib.backbones import clip_windows, create_backbone
from anomaly_lib.errors import UserError


@pytest.mark.parametrize("tile", [3, 2048])
def test_each_window_is_encoded_by_itself(tile, monkeypatch):
    monkeypatch.setattr(clip_windows, "TILE", tile)
    clip = create_backbone("tiny-clip", weights="random", layers=["window.2", "window.3", "pooled"])
    assert clip.dim_of("window.2") == 32
    images = torch.randn(2, 3, 64, 64)
    found = clip.encode(images)
    visual = clip.clip.visual
    with torch.no_grad():
        tokens = visual._embeds(images)
        for side in (2, 3):
            assert found[f"window.{side}"].shape == (2, 32, 5 - side, 5 - side)
            for r in range(5 - side):
                for c in range(5 - side):
                    mine = [1 + 4 * i + j for i in range(r, r + side) for j in range(c, c + side)]
                    pooled = visual.ln_post(visual.transformer(tokens[:, [0, *mine]]))[:, 0] @ visual.proj
                    torch.testing.assert_close(found[f"window.{side}"][:, :, r, c], pooled, atol=1e-5, rtol=1e-5)
    whole = create_backbone("tiny-clip", weights="random", layers=["pooled", "window.2", "normed.-1"]).encode(images)
    assert torch.equal(whole["pooled"], found["pooled"])


def test_a_window_covers_some_patches_and_not_more_than_there_are():
    with pytest.raises(UserError, match=r"window.0: tiny-clip has windows of 1 to 2 patches"):
        create_backbone("tiny-clip", weights="random", layers=["window.0"], image_size=32)
    with pytest.raises(UserError, match="1 to 2"):
        create_backbone("tiny-clip", weights="random", layers=["window.3"], image_size=32)
