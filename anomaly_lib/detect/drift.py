"""Do the parts of a stream still look like the normal data that the decision rests on?

A conformal test martingale (Vovk et al., Algorithmic Learning in a Random World, 2022): while scores are exchangeable,
the smoothed p-value of each among all before it is uniform and independent of the others, and no bet on it gains on
average. A player who starts with 1 and never owes therefore ever reaches 1 / chance with probability `chance` at most
(Ville's inequality), however long the stream is.
"""

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable

import numpy as np

from anomaly_lib.detect.decision import Decision

BETS = np.array([-2.0, -1.0, 1.0, 2.0])  # a stake is multiplied by 1 + bet * (p - 1/2); below 0: scores will rise


class DriftCheck:
    """Feed scores of parts that are presumed normal in the order they come; `add` says when they are no longer alike.

    The start of a drift is not known, so the player puts a part of his money into the game at every step, 1 / (t (t +
    1)) at step t: a drift that begins late is found after a delay that grows with the logarithm of its beginning alone.
    """

    def __init__(self, normal: Iterable[float] = (), *, chance: float = 0.01, seed: int = 0) -> None:
        self.chance, self.count, self.wealth, self.found = chance, 0, 1.0, False
        self._seen = array("d", sorted(normal))
        self._stakes = np.zeros(len(BETS))
        self._rng = np.random.default_rng(seed)

    @classmethod
    def beside(cls, decision: Decision, *, chance: float = 0.01) -> "DriftCheck":
        """Of a stream whose parts above the threshold are left out, since they are not presumed normal.

        Left out on both sides: given the normal score on which the threshold lies, those below it and the new ones
        below it are exchangeable still.
        """
        below = [value for value in decision.normal if value < decision.threshold]
        if below and np.nextafter(below[-1], np.inf) == decision.threshold:
            below.pop()
        return cls(below, chance=chance)

    def add(self, score: float) -> bool:
        """True once: at the score with which the scores are no longer exchangeable with those before."""
        low, high = bisect_left(self._seen, score), bisect_right(self._seen, score)
        at_least = len(self._seen) - high + self._rng.random() * (high - low + 1)
        p = at_least / (len(self._seen) + 1)
        insort(self._seen, score)
        self.count += 1
        self._stakes += 1 / (len(BETS) * self.count * (self.count + 1))
        self._stakes *= 1 + BETS * (p - 0.5)
        self.wealth = float(self._stakes.sum()) + 1 / (self.count + 1)  # the rest is not in the game yet
        news = not self.found and self.wealth >= 1 / self.chance
        self.found |= news
        return news

    def describe(self) -> str:
        """What has been found, in one line."""
        way = "rise" if (self._stakes * BETS).sum() < 0 else "fall"
        return (
            f"drift: after {self.count} parts the scores of those taken for normal {way}: they are not like the normal "
            "data of the decision any more, and its p-values and promised rate no longer hold (without a drift this is "
            f"said with a chance of {self.chance:.0%} at most)"
        )
