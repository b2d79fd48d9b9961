"""Metrics of your own: what a plugin registers is computed beside the others, of every detector.

    @METRICS.register("hits_at_five_percent")
    def hits(scores, labels, maps, masks): ...

`scores` [N] and `labels` [N] (0 normal, 1 anomalous) are those of one class; `maps` [N, H, W] and `masks` [N, H, W]
bool, or None where there are none. All are NumPy arrays; the answer is one number, shown as ``hits_at_five_percent``.
"""

import numpy as np

from anomaly_lib.errors import UserError, reason_of
from anomaly_lib.parts import Parts

METRICS = Parts("metric", "anomaly_lib.metrics", {})


def own_metrics(
    scores: np.ndarray, labels: np.ndarray, maps: np.ndarray | None, masks: np.ndarray | None
) -> dict[str, float]:
    """The registered metrics of these samples."""
    found = {}
    for name in METRICS:
        try:
            found[name] = float(METRICS.part(name)(scores, labels, maps, masks))
        except Exception as error:  # whatever a user's function raises
            raise UserError(f"metric {name}: {type(error).__name__}: {reason_of(error)}") from error
    return found
