"""Training-time changes of weld inputs: one geometry for all frames and views, errors never swallowed."""

import pytest
import torch

from anomaly_lib.systems.weld.data.augment import augment_audio, augment_images, augment_video, augment_weld


@pytest.mark.parametrize("change", [augment_images, augment_video])
def test_every_frame_and_view_is_changed_alike(change) -> None:
    same = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)).expand(5, -1, -1, -1)
    mirrored = 0
    for seed in range(20):
        torch.manual_seed(seed)
        out = change(same)
        assert out.shape == same.shape
        assert float((out - out[:1]).abs().max()) < 0.2  # noise may differ, mirrors and crops may not
        straight = torch.corrcoef(torch.stack([out[0].flatten(), same[0].flatten()]))[0, 1]
        flipped = torch.corrcoef(torch.stack([out[0].flatten(), same[0].flip(-1).flatten()]))[0, 1]
        mirrored += int(flipped > straight)
    assert 4 <= mirrored <= 16


def test_audio_bands_are_filled_with_silence() -> None:
    spectrum = torch.rand(1, 40, 60, generator=torch.Generator().manual_seed(1)) + 1
    filled = []
    for seed in range(20):
        torch.manual_seed(seed)
        out = augment_audio(spectrum)
        silent = (out - out.min()).abs() < 1e-6
        filled.append((int(silent[0].all(0).sum()), int(silent[0].all(1).sum())))
    assert max(time for time, _ in filled) in range(1, 10)  # at most 15 % of 60 frames
    assert max(bands for _, bands in filled) in range(1, 9)  # at most 20 % of 40 bands
    assert (0, 0) in filled


def test_labels_and_masks_stay() -> None:
    sample = {"video": torch.rand(4, 1, 8, 8), "label": torch.tensor(1), "views": torch.tensor([True, False])}
    torch.manual_seed(0)
    out = augment_weld(sample)
    assert out["label"] is sample["label"]
    assert out["views"] is sample["views"]
    assert not torch.equal(out["video"], sample["video"])
