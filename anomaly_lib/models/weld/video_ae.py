"""The appearance model of late fusion: an auto-encoder on one frozen vector per clip."""

from torch import Tensor, nn


class VideoAE(nn.Module):
    """dim -> 128 -> 64 -> 128 -> dim with ReLU between; the score is the mean squared error of a clip's vector."""

    def __init__(self, *, dim: int = 768) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, 128),
            nn.ReLU(),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Linear(64, 128),
            nn.ReLU(),
            nn.Linear(128, dim),
        )

    def forward(self, clips: Tensor) -> Tensor:
        """[B, dim] -> [B, dim]."""
        return self.net(clips)

    def score(self, clips: Tensor) -> Tensor:
        """[B, dim] -> [B], higher is more anomalous."""
        return (self(clips) - clips).square().mean(-1)
