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
from numpy.typing import NDArray

from anomaly_lib.detect.decision import Decision

BETS = np.array([-2.0, -1.0, 1.0, 2.0])  # a stake is multiplied by 1 + bet * (p - 1/2); below 0: scores will rise
USUAL, TOO_MANY = 0.25, 0.6  # share of parts called anomalous that is no news, and the share that is betted on
CALLED, NOT_CALLED = np.array([TOO_MANY / USUAL]), np.array([(1 - TOO_MANY) / (1 - USUAL)])


class Game:
    """The wealth of a player who does not know when it begins to pay.

    He puts 1 / (t (t + 1)) of his money into the game at step t, so that a drift which begins late is found after a
    delay that grows with the logarithm of its beginning alone.
    """

    def __init__(self, bets: int) -> None:
        self.stakes, self.steps, self.wealth = np.zeros(bets), 0, 1.0

    def play(self, factors: NDArray[np.float64]) -> None:
        """One step: each stake is multiplied by its factor, whose expectation is 1 at most while nothing drifts."""
        self.steps += 1
        self.stakes += 1 / (len(self.stakes) * self.steps * (self.steps + 1))
        self.stakes *= factors
        self.wealth = float(self.stakes.sum()) + 1 / (self.steps + 1)  # the rest is not in the game yet


class DriftCheck:
    """Feed scores in the order in which parts come; `add` says when they are no longer like those before.

    Without a threshold all parts are presumed normal. With one those below it are, and compared with the normal scores
    below it: given the normal score on which it lies, both are exchangeable still. Of those above it only the number
    counts, for half of the money: it is no news while each part has a chance of a quarter at most to be called
    anomalous (from 19 normal scores on, a promised 5% is not kept as badly as that in 1 of 200 cases).
    """

    def __init__(
        self, normal: Iterable[float] = (), *, threshold: float | None = None, chance: float = 0.01, seed: int = 0
    ) -> None:
        self.threshold, self.chance, self.parts, self.found = threshold, chance, 0, False
        self._seen = array("d", sorted(normal))
        self._scores, self._calls = Game(len(BETS)), Game(1)
        self._rng = np.random.default_rng(seed)

    @classmethod
    def beside(cls, decision: Decision, *, chance: float = 0.01) -> "DriftCheck":
        """Of a stream of parts that the decision judges."""
        below = [value for value in decision.normal if value < decision.threshold]
        if below and np.nextafter(below[-1], np.inf) == decision.threshold:
            below.pop()
        return cls(below, threshold=decision.threshold, chance=chance)

    @property
    def wealth(self) -> float:
        return self._scores.wealth if self.threshold is None else (self._scores.wealth + self._calls.wealth) / 2

    def add(self, score: float) -> bool:
        """True once: at the score with which the parts are no longer like those before."""
        self.parts += 1
        called = self.threshold is not None and score >= self.threshold
        self._calls.play(CALLED if called else NOT_CALLED)
        if not called:
            self._scores.play(1 + BETS * (self._p_value(score) - 0.5))
        news = not self.found and self.wealth >= 1 / self.chance
        self.found |= news
        return news

    def _p_value(self, score: float) -> float:
        """Where the score stands among all before it, 0 (highest) to 1, by lot among equals; it joins them."""
        low, high = bisect_left(self._seen, score), bisect_right(self._seen, score)
        place = len(self._seen) - high + self._rng.random() * (high - low + 1)
        insort(self._seen, score)
        return float(place / len(self._seen))

    @property
    def way(self) -> str:
        """Which bets have won: the scores "rise" or "fall"."""
        return "rise" if (self._scores.stakes * BETS).sum() < 0 else "fall"

    def describe(self) -> str:
        """What has been found in a stream, in one line."""
        if self.threshold is not None and self._calls.wealth > self._scores.wealth:
            what = f"more than {USUAL:.0%} of the parts are called anomalous: unless so many are,"
        else:
            what = f"the scores of those taken for normal {self.way}:"
        return (
            f"drift: after {self.parts} parts {what} they are not like the normal data of the decision any more, and "
            "its p-values and promised rate no longer hold (without a drift this is said with a chance of "
            f"{self.chance:.0%} at most)"
        )
