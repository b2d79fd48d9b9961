"""Frozen encoders and where their weights come from."""

from anomaly_lib.backbones.base import FrozenBackbone, Layer
from anomaly_lib.backbones.registry import create_backbone

__all__ = ["FrozenBackbone", "Layer", "create_backbone"]
