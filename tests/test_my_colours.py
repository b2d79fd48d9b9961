"""MyColours tells an image of other colours from normal ones."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectors.my_colours import MyColours


def test_other_colours_score_higher() -> None:
    normal = 0.5 + 0.01 * torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    detector = MyColours().fit([normal[:3], normal[3:5]])
    same, other = detector(torch.stack([normal[5], torch.zeros(3, 32, 32)])).score
    assert other > 1 > same
