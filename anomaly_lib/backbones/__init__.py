"""Frozen encoders and where their weights come from."""

from anomaly_lib.backbones.base import FrozenBackbone, Layer
from anomaly_lib.backbones.registry import create_backbone, list_backbones

__all__ = ["FrozenBackbone", "Layer", "create_backbone", "list_backbones"]
