"""WinCLIP (Jeong et al., CVPR 2023): windows of an image compared with words, and with windows of normal images."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.backbones.clip import ClipBackbone
from anomaly_lib.config import configure
from anomaly_lib.models.detectors.banks import BankDetector, cosine_grid
from anomaly_lib.models.detectors.configs import summary_of
from anomaly_lib.models.detectors.contract import Features, Size
from anomaly_lib.models.detectors.family_configs import SUMMARY, WinClipConfig
from anomaly_lib.models.detectors.shapes import maps_of
from anomaly_lib.models.detectors.winclip_prompts import ANOMALOUS, NORMAL, prompts
from anomaly_lib.ops import cell_of, unit_rows, upsample_and_smooth
from anomaly_lib.types import Prediction


class WinClip(BankDetector):
    """Images [B, 3, H, W] -> scores [B] and maps [B, H, W]: how much more like "damaged" than "flawless" a window is.

    ``WinClip(extractor=net)(images)`` is zero-shot; after ``.fit(batches)`` windows and patches are compared with those
    of normal images, too. `extractor`, frozen, holds a `ClipBackbone` (its text tower is read once) and answers
    {"pooled": [B, D], "window.S": [B, D, h - S + 1, w - S + 1], other outputs: [B, C, h, w]}.
    """

    words: Tensor

    def __init__(self, config: WinClipConfig | None = None, *, extractor: nn.Module, **options: Any) -> None:
        config = configure(WinClipConfig, config, options)
        self.compared = [name for name in config.layers if name != SUMMARY]  # with normal images
        super().__init__(extractor, len(self.compared))
        self.config = config
        clip = next((m for m in extractor.modules() if isinstance(m, ClipBackbone)), None)
        if clip is None:
            raise ValueError("WinCLIP compares images with words: its extractor must hold a CLIP")
        clip.text.check_words(config.class_text, "class_text=object, or a published backbone=")
        sides = [clip.text.encode_text(prompts(config.class_text, states)).mean(0) for states in (NORMAL, ANOMALOUS)]
        self.register_buffer("words", F.normalize(torch.stack(sides), dim=-1))  # [2, D]: normal, anomalous

    def __repr__(self) -> str:
        known = self.shape_of_banks() if len(self.memories[0]) else "zero-shot"
        return summary_of("WinClip", WinClipConfig, self.config, [known])

    def fit_features(self, batches: Iterable[Features]) -> "WinClip":
        """Fill the banks; nothing, and nothing is encoded, where few_shot is off."""
        if self.config.few_shot:
            super().fit_features(batches)
        return self

    def memory_in_words(self, features: Features, count: int) -> str | None:
        """What `count` images take when they are learnt; nothing where words alone are compared."""
        return super().memory_in_words(features, count) if self.config.few_shot else None

    def rows_of(self, features: Features) -> Sequence[Iterable[Tensor]]:
        """For each output but the pooled one the unit rows [B, M, C]."""
        return [unit_rows(maps).flatten(1, 2) for maps in maps_of(features, self.compared)]

    def judge(self, features: Features, size: Size, numbers: Tensor | None) -> Prediction:
        """Scores [B] and maps [B, *size]; part "words" is the score [B] by words alone."""
        outputs = dict(zip(self.compared, (x[:, 0] for x in maps_of(features, self.compared)), strict=True))
        whole = self.anomalous(maps_of(features, [SUMMARY])[0][:, 0, :, None, None])[:, 0, 0]  # [B]
        by_window = [over_patches(self.anomalous(x), side) for name, x in outputs.items() if (side := side_of(name))]
        inverse = torch.stack([1 / grid for grid in by_window]).sum(0) + 1 / whole[:, None, None]
        grid, score = (len(by_window) + 1) / inverse, whole  # harmonic means: one high window alone says little
        if len(self.memories[0]):
            halves = []
            for (name, maps), bank in zip(outputs.items(), self.memories, strict=True):
                far = cosine_grid(maps, bank, numbers) / 2
                halves.append(over_patches(far, side) if (side := side_of(name)) else far)
            seen = torch.stack(halves).mean(0)
            grid, score = grid + seen, (score + seen.flatten(1).amax(1)) / 2
        drawn = upsample_and_smooth(grid, size, sigma=self.config.sigma)
        return Prediction(score, drawn, {"words": whole}, cell=cell_of(grid, size))

    def anomalous(self, maps: Tensor) -> Tensor:
        """Probability [B, h, w] of the anomalous words for maps [B, D, h, w] in CLIP's joint space."""
        cosines = torch.einsum("bdhw,kd->kbhw", F.normalize(maps, dim=1), self.words)
        return torch.sigmoid((cosines[1] - cosines[0]) / self.config.temperature)


def side_of(name: str) -> int:
    """The side of the windows that an output holds; 0 where it holds patches."""
    return int(name.removeprefix("window.")) if name.startswith("window.") else 0


def over_patches(windows: Tensor, side: int) -> Tensor:
    """Scores of windows [B, h - side + 1, w - side + 1] -> of patches [B, h, w]: harmonic mean of those over each."""
    kernel = windows.new_ones(1, 1, side, side)
    sums = F.conv_transpose2d(1 / windows.unsqueeze(1), kernel)
    counts = F.conv_transpose2d(torch.ones_like(windows[:1]).unsqueeze(1), kernel)
    return (counts / sums).squeeze(1)
