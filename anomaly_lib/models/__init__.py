"""The networks of all systems, by the names their documents give them: ``from anomaly_lib.models import PromptAD``.

Nothing is imported until a name is asked for. Every module is made from its configuration or from keyword options:
``PatchCore(config, extractor=...)`` = ``PatchCore(coreset_ratio=0.1, extractor=...)``.
"""

from typing import TYPE_CHECKING

from anomaly_lib.lazy import lazy_names

PLACES = {
    "PromptAD": "promptad",
    "AnomalyCLIP": "sowa",
    "AnomalyPromptLearner": "sowa",
    "BasicLayer": "sowa",
    "DotProductFusion": "sowa",
    "FusionModule": "sowa",
    "TextMapEncoder": "sowa",
    "VisionMapEncoder": "sowa",
    "AntiGenDecoder": "weld",
    "CausalFILMLoss": "weld",
    "CausalFiLM": "weld",
    "ProcessEncoder": "weld",
    "RobustResultEncoder": "weld",
    "SensorModulator": "weld",
    "ALIGNN": "crystal",
    "CrystalFusionModel": "crystal",
    "Mamba": "mamba",
    "AnomalyDino": "detectors",
    "FewShot": "detectors",
    "SubspaceAd": "detectors",
    "VisionAd": "detectors",
    "Rad": "detectors",
    "MuSc": "detectors",
    "WinClip": "detectors",
    "Draem": "detectors",
    "DraemSevNet": "detectors",
    "Padim": "detectors",
    "PatchCore": "detectors",
    "ReverseDistillation": "detectors",
}
"""Name -> package or file of this folder that offers it."""

if TYPE_CHECKING:
    from anomaly_lib.models.crystal import ALIGNN, CrystalFusionModel
    from anomaly_lib.models.detectors import (
        AnomalyDino,
        Draem,
        DraemSevNet,
        FewShot,
        MuSc,
        Padim,
        PatchCore,
        Rad,
        ReverseDistillation,
        SubspaceAd,
        VisionAd,
        WinClip,
    )
    from anomaly_lib.models.mamba import Mamba
    from anomaly_lib.models.promptad import PromptAD
    from anomaly_lib.models.sowa import (
        AnomalyCLIP,
        AnomalyPromptLearner,
        BasicLayer,
        DotProductFusion,
        FusionModule,
        TextMapEncoder,
        VisionMapEncoder,
    )
    from anomaly_lib.models.weld import (
        AntiGenDecoder,
        CausalFiLM,
        CausalFILMLoss,
        ProcessEncoder,
        RobustResultEncoder,
        SensorModulator,
    )

__getattr__, __dir__ = lazy_names(__name__, PLACES)
__all__ = [
    "ALIGNN",
    "AnomalyCLIP",
    "AnomalyDino",
    "AnomalyPromptLearner",
    "AntiGenDecoder",
    "BasicLayer",
    "CausalFILMLoss",
    "CausalFiLM",
    "CrystalFusionModel",
    "DotProductFusion",
    "Draem",
    "DraemSevNet",
    "FewShot",
    "FusionModule",
    "Mamba",
    "MuSc",
    "Padim",
    "PatchCore",
    "ProcessEncoder",
    "PromptAD",
    "Rad",
    "ReverseDistillation",
    "RobustResultEncoder",
    "SensorModulator",
    "SubspaceAd",
    "TextMapEncoder",
    "VisionAd",
    "VisionMapEncoder",
    "WinClip",
]
