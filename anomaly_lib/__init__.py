"""Five published anomaly-detection systems on one plain-PyTorch library.

Importing this package is cheap: nothing heavy is loaded and no work is done. Take what you need by name, e.g.
``from anomaly_lib.metrics import aupro``, ``detector = anomaly_lib.fit("fewshot", "parts/")`` or
``detector = anomaly_lib.load("runs/.../checkpoint.pt")``.
"""

from typing import Any

__version__ = "0.2.0"
__all__ = ["__version__", "fit", "load"]


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


def fit(model: str, data: Any, **options: Any) -> Any:
    """A detector trained on your own images, which predicts, evaluates, saves, exports and reports (`fitting.Fitted`).

    `model`: a registered detector (patchcore, padim, fewshot ...), "promptad" or "sowa". `data`: a folder with good/
    (and bad/, or one folder a defect), below train/ and test/ where there are such; a folder of nothing but good
    images; or good images one by one: a list of files, arrays [H, W, 3] or PIL images, which are kept as files in
    runs/parts/ (OUTPUT_DIR/parts/). Without a test split three of ten good images are not learned but tested.
    `options`: those of the training program by their names there, e.g. ``shot=4, image_size=256, device="cpu"``.
    The run lies in `output_dir`, or in runs/; the same call again reads the finished run.
    """
    from anomaly_lib.fitting import fit

    return fit(model, data, **options)
