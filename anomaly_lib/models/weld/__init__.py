"""Networks of the weld systems, by the names their documents give them."""

from typing import TYPE_CHECKING

from anomaly_lib.lazy import lazy_names

if TYPE_CHECKING:
    from anomaly_lib.models.weld.causal_film import CausalFiLM
    from anomaly_lib.models.weld.causal_film_loss import CausalFiLMLoss
    from anomaly_lib.models.weld.causal_film_loss import CausalFiLMLoss as CausalFILMLoss
    from anomaly_lib.models.weld.causal_film_parts import (
        AntiGenDecoder,
        ProcessEncoder,
        RobustResultEncoder,
        SensorModulator,
    )
    from anomaly_lib.models.weld.config import CausalFiLMConfig, LossConfig
    from anomaly_lib.models.weld.encoders import AudioEncoder, ImageEncoder, VideoEncoder
    from anomaly_lib.models.weld.quad_config import QuadConfig
    from anomaly_lib.models.weld.supcon_quad import CrossAttentionFusion, QuadModal, SensorEncoder
    from anomaly_lib.models.weld.supcon_quad import CrossAttentionFusion as CrossAttentionFusionModule
    from anomaly_lib.models.weld.supcon_quad import QuadModal as QuadModalSOTAModel
    from anomaly_lib.models.weld.video_ae import VideoAE

PLACES = {
    "AntiGenDecoder": "causal_film_parts",
    "AudioEncoder": "encoders",
    "CausalFILMLoss": "causal_film_loss:CausalFiLMLoss",
    "CausalFiLM": "causal_film",
    "CausalFiLMConfig": "config",
    "CausalFiLMLoss": "causal_film_loss",
    "CrossAttentionFusion": "supcon_quad",
    "CrossAttentionFusionModule": "supcon_quad:CrossAttentionFusion",
    "ImageEncoder": "encoders",
    "LossConfig": "config",
    "ProcessEncoder": "causal_film_parts",
    "QuadConfig": "quad_config",
    "QuadModal": "supcon_quad",
    "QuadModalSOTAModel": "supcon_quad:QuadModal",
    "RobustResultEncoder": "causal_film_parts",
    "SensorEncoder": "supcon_quad",
    "SensorModulator": "causal_film_parts",
    "VideoAE": "video_ae",
    "VideoEncoder": "encoders",
}
"""Name -> file of this folder it lies in."""

__getattr__, __dir__ = lazy_names(__name__, PLACES)
__all__ = [
    "AntiGenDecoder",
    "AudioEncoder",
    "CausalFILMLoss",
    "CausalFiLM",
    "CausalFiLMConfig",
    "CausalFiLMLoss",
    "CrossAttentionFusion",
    "CrossAttentionFusionModule",
    "ImageEncoder",
    "LossConfig",
    "ProcessEncoder",
    "QuadConfig",
    "QuadModal",
    "QuadModalSOTAModel",
    "RobustResultEncoder",
    "SensorEncoder",
    "SensorModulator",
    "VideoAE",
    "VideoEncoder",
]
