"""The loss that asks for a margin between two distances."""

from torch import Tensor

from anomaly_lib.losses.distance import Reduction


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 0.0,
    squared: bool = True,
    dim: int = -1,
    reduction: Reduction = "mean",
) -> Tensor:
    """``relu(d(anchor, positive) - d(anchor, negative) + margin)`` with (squared) Euclidean distances over `dim`."""
    to_positive = (anchor - positive).square().sum(dim)
    to_negative = (anchor - negative).square().sum(dim)
    if not squared:
        # A square root has no gradient at 0, which an anchor equal to its positive reaches.
        to_positive, to_negative = (to_positive + 1e-12).sqrt(), (to_negative + 1e-12).sqrt()
    hinge = (to_positive - to_negative + margin).relu()
    return hinge.mean() if reduction == "mean" else hinge
