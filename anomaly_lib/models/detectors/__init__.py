"""Detectors that are one file each, and their registry; nothing is imported until a name is asked for."""

from typing import TYPE_CHECKING

from anomaly_lib.lazy import lazy_names

if TYPE_CHECKING:
    from anomaly_lib.models.detectors.anomalydino import AnomalyDino
    from anomaly_lib.models.detectors.contract import FeatureDetector, Features
    from anomaly_lib.models.detectors.draem import Draem
    from anomaly_lib.models.detectors.draem_sevnet import DraemSevNet
    from anomaly_lib.models.detectors.fewshot import FewShot
    from anomaly_lib.models.detectors.memory_bank import MemoryBank
    from anomaly_lib.models.detectors.musc import MuSc
    from anomaly_lib.models.detectors.padim import Padim
    from anomaly_lib.models.detectors.patchcore import PatchCore
    from anomaly_lib.models.detectors.rad import Rad
    from anomaly_lib.models.detectors.registry import register
    from anomaly_lib.models.detectors.reverse_distillation import ReverseDistillation
    from anomaly_lib.models.detectors.subspacead import SubspaceAd
    from anomaly_lib.models.detectors.visionad import VisionAd
    from anomaly_lib.models.detectors.winclip import WinClip

PLACES = {
    "AnomalyDino": "anomalydino",
    "Draem": "draem",
    "DraemSevNet": "draem_sevnet",
    "FeatureDetector": "contract",
    "Features": "contract",
    "FewShot": "fewshot",
    "MemoryBank": "memory_bank",
    "MuSc": "musc",
    "Padim": "padim",
    "PatchCore": "patchcore",
    "Rad": "rad",
    "ReverseDistillation": "reverse_distillation",
    "SubspaceAd": "subspacead",
    "VisionAd": "visionad",
    "WinClip": "winclip",
    "register": "registry",
}
"""Name -> file of this folder."""

__getattr__, __dir__ = lazy_names(__name__, PLACES)
__all__ = [
    "AnomalyDino",
    "Draem",
    "DraemSevNet",
    "FeatureDetector",
    "Features",
    "FewShot",
    "MemoryBank",
    "MuSc",
    "Padim",
    "PatchCore",
    "Rad",
    "ReverseDistillation",
    "SubspaceAd",
    "VisionAd",
    "WinClip",
    "register",
]
