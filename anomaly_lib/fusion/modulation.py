"""Feature-wise linear modulation: a condition scales and shifts the channels of features."""

from torch import Tensor, nn


def film(features: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """``features * gamma + beta``; gamma = 1 and beta = 0 is the identity.

    `gamma` and `beta` [B, C] are spread over any axes between batch and channels of `features` [B, ..., C];
    tensors that already have the rank of `features` broadcast as they are.
    """
    while gamma.ndim < features.ndim:
        gamma, beta = gamma.unsqueeze(1), beta.unsqueeze(1)
    return features * gamma + beta


class FiLM(nn.Module):
    """One linear map of the condition to (gamma - 1, beta); zero-initialised, hence the identity at step 0."""

    def __init__(self, *, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(condition_dim, 2 * channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def parameters_for(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Gamma and beta, each [B, C], for a condition [B, D]."""
        scale, shift = self.head(condition).chunk(2, dim=-1)
        return scale + 1, shift

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        gamma, beta = self.parameters_for(condition)
        return film(features, gamma, beta)
