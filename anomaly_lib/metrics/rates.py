"""A counted rate and how far it may be off."""

from typing import NamedTuple

from anomaly_lib.errors import UserError


class CountedRate(NamedTuple):
    """`hits` of `total`, with the exact (Clopper-Pearson) confidence interval of the rate behind it."""

    hits: int
    total: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.hits / self.total

    def __str__(self) -> str:
        return f"{self.hits}/{self.total} = {self.rate:.1%} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def counted_rate(hits: int, total: int, *, level: float = 0.95) -> CountedRate:
    """The rate hits / total; its interval covers the true rate with at least probability `level`, at any count."""
    from scipy.special import betaincinv

    if not 0 <= hits <= total or total < 1:
        raise UserError(f"a rate needs 0 <= hits <= total and total >= 1, got {hits} of {total}")
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, total - hits + 1, tail))
    high = 1.0 if hits == total else float(betaincinv(hits + 1, total - hits, 1 - tail))
    return CountedRate(hits, total, low, high)
