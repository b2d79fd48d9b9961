"""Masked pre-training on what was recorded: hidden patches of frames, photographs and spectra are rebuilt.

The way of SimMIM (Xie et al., 2022): hidden patches stay in the encoder's input, filled with a constant, and one linear
layer on each token predicts the values of its patch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.patches import PatchGrid


class MaskedPatches(nn.Module):
    """Hide `ratio` of the patches of clips and rebuild their values from the encoder's tokens.

    `read` makes patch tokens [N, P, width] of clips [N, T, C, H, W], with gradients into the blocks that learn. Of a
    video the same places are hidden in all frames: a patch that is hidden for a moment could be copied from the next.
    """

    def __init__(
        self, read: Callable[[Tensor], Tensor], grid: PatchGrid, *, width: int, values: int, ratio: float
    ) -> None:
        super().__init__()
        self.read, self.grid, self.ratio = read, grid, ratio
        self.decode = nn.Linear(width, values)

    def hide(self, clips: Tensor) -> Tensor:
        """Which cells [N, P] to hide: `ratio` of the places, at least one, and not all of several."""
        frames, rows, columns = self.grid.cells(clips)
        places = rows * columns
        count = min(max(1, round(places * self.ratio)), max(1, places - 1))
        order = torch.rand(len(clips), places, device=clips.device).argsort(1).argsort(1)
        return (order < count).repeat(1, frames)

    def forward(self, clips: Tensor) -> Tensor:
        """Mean absolute error [] over the hidden values of clips [N, T, C, H, W].

        Values are counted in standard deviations of what is seen of their own clip, from its mean on, so that video,
        photographs and sound weigh alike; that mean also fills what is hidden (0 where inputs are normalised, and no
        loud line where a spectrum is in decibels).
        """
        if not len(clips):  # no run of the batch has this modality
            return self.decode.bias.sum() * 0
        hidden = self.hide(clips)
        covered = self.grid.spread(hidden, clips)
        mean, std = seen_moments(clips, ~covered)
        rebuilt = self.decode(self.read(torch.where(covered, mean, clips)))
        target = self.grid.cut((clips - mean) / std)
        return (rebuilt - target).abs()[hidden].mean()


def seen_moments(clips: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [N, 1, 1, 1, 1] of the values of each clip that are `seen` [N, T, 1, H, W]."""
    axes, kept = (1, 2, 3, 4), seen.expand_as(clips)
    count = kept.sum(axes, keepdim=True).clamp_min(1)
    mean = torch.where(kept, clips, 0.0).sum(axes, keepdim=True) / count
    variance = torch.where(kept, (clips - mean).square(), 0.0).sum(axes, keepdim=True) / count
    return mean, variance.sqrt().clamp_min(1e-2)
