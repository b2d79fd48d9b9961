"""Five published anomaly-detection systems on one plain-PyTorch library.

Importing this package is cheap: nothing heavy is loaded and no work is done. Take what you need by name, e.g.
``from anomaly_lib.metrics import aupro`` or ``detector = anomaly_lib.load("runs/.../checkpoint.pt")``.
"""

from typing import Any

__version__ = "0.2.0"
__all__ = ["__version__", "load"]


def load(path: Any, *, weights: Any = None, plugin: Any = None) -> Any:
    """The trained detector stored in a checkpoint: ``load(path).predict(image)`` -> score, map, decision.

    `weights`: where the weights of its frozen network lie now. `plugin`: the Python file that defines the detector, if
    it is one of your own; it is run.
    """
    if plugin is not None:
        from anomaly_lib.models.detectors.registry import load_plugin

        load_plugin(plugin)
    from anomaly_lib.systems.registry import SYSTEMS

    return SYSTEMS.load(path, weights=None if weights is None else str(weights))
