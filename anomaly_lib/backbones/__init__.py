"""Frozen encoders and where their weights come from."""

from typing import TYPE_CHECKING

from anomaly_lib.lazy import lazy_names

if TYPE_CHECKING:
    from anomaly_lib.backbones.base import FrozenBackbone, Layer
    from anomaly_lib.backbones.registry import create_backbone, list_backbones

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FrozenBackbone": "base",
        "Layer": "base",
        "create_backbone": "registry",
        "list_backbones": "registry",
    },
)
