"""Stop when a validation figure has not improved for a while. Its counters travel in the checkpoint."""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class EarlyStopping:
    """`patience` epochs without an improvement of more than `min_delta` end the run; 0 never does."""

    patience: int = 0
    higher_is_better: bool = True
    min_delta: float = 0.0
    best: float = math.nan
    best_epoch: int = -1
    waited: int = 0

    def improved(self, value: float, epoch: int) -> bool:
        """Note this epoch's value; True when it is the best so far. NaN never is."""
        gain = value - self.best if self.higher_is_better else self.best - value
        better = not math.isnan(value) and (math.isnan(self.best) or gain > self.min_delta)
        if better:
            self.best, self.best_epoch, self.waited = float(value), epoch, 0
        else:
            self.waited += 1
        return better

    @property
    def should_stop(self) -> bool:
        return 0 < self.patience <= self.waited

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("best", "best_epoch", "waited"):
            setattr(self, name, state[name])
