"""Calibrated and uncertain answers: temperature scaling, Monte-Carlo dropout, deep ensembles."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fit_temperature(logits: Tensor, labels: Tensor, *, max_iter: int = 100) -> float:
    """The scalar T > 0 that minimises the cross-entropy of logits / T on validation samples, by LBFGS on log T.

    `logits` [N, C], `labels` [N] class indices.
    """
    logits, labels = logits.detach().double(), labels.detach()
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], lr=0.5, max_iter=max_iter, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_t.exp(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(log_t.detach().clamp(-5, 5).exp())


@contextmanager
def dropout_on(model: nn.Module) -> Iterator[nn.Module]:
    """Dropout active, norm layers in eval mode; every module's own mode comes back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.AlphaDropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
            module.train()
        elif isinstance(getattr(module, "dropout", None), float):  # attention applies its rate by hand in train mode
            module.training = True
    try:
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def mc_dropout(model: nn.Module, forward: Callable[[nn.Module], Tensor], *, passes: int = 20) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of `forward(model)` over stochastic passes, each of the shape it answers."""
    with dropout_on(model):
        return _spread([forward(model) for _ in range(passes)])


@torch.no_grad()
def deep_ensemble(models: Sequence[nn.Module], forward: Callable[[nn.Module], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of `forward(model)` over independently trained models."""
    return _spread([forward(model.eval()) for model in models])


def _spread(answers: list[Tensor]) -> tuple[Tensor, Tensor]:
    stacked = torch.stack(answers)
    return stacked.mean(0), stacked.std(0, unbiased=False)


def predictive_entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats of [..., C] -> [...]."""
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum(-1)
