"""Options of the detectors that need no training, each with its published default. This file loads no torch."""

from dataclasses import dataclass
from typing import Any

from anomaly_lib.config import Options, Switch, arg


@dataclass
class AnomalyDinoConfig(Options):
    """AnomalyDINO: nearest normal patch of turned supports."""

    layers: list[str] = arg(["patch_tokens"], "outputs of the frozen network whose mean is compared")
    rotations: int = arg(8, "evenly spread turns of a normal image that are learnt; 1 = as it is", at_least=1)
    mask: Switch = arg(
        False,
        "score the object alone (published: on for all of VisA; in MVTec for capsule hazelnut pill screw toothbrush)",
    )
    mask_support: Switch = arg(False, "learn the object alone, too", needs={"mask": True})
    mask_threshold: float = arg(10.0, "first principal component beyond which a patch is object", needs={"mask": True})
    neighbours: int = arg(1, "nearest patches averaged in a patch's score", at_least=1)
    top_share: float = arg(0.01, "share of patches whose mean is the image score", at_least=0, at_most=1)
    sigma: float = arg(4.0, "Gaussian smoothing of the map", at_least=0)


FAMILY: dict[str, dict[str, Any]] = {
    "anomalydino": {
        "config": AnomalyDinoConfig,
        "module": "anomalydino:AnomalyDino",
        "training": {"backbone": "timm:vit_small_patch14_dinov2", "image_size": [448, 448], "batch_size": 8},
        "demo": {"layers": ["layer.3"]},
    },
}
"""Detector -> its options, where its module lies, published values of what is no option of the module, and what
differs on the demo backbone."""
