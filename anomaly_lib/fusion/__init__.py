"""How several signals become one: score fusion, calibration, FiLM, cross-attention, middle fusion."""

from anomaly_lib.fusion.attention import CrossAttention, multi_head_attention
from anomaly_lib.fusion.calibration import (
    CALIBRATIONS,
    QuantileCalibration,
    ZScoreCalibration,
    calibrate,
    quantile_calibration,
    z_score_calibration,
)
from anomaly_lib.fusion.cross_modal import CrossModalAttention, FineGrainedAttention
from anomaly_lib.fusion.film import FiLM, film
from anomaly_lib.fusion.late import LATE_FUSIONS, late_fusion_by_name
from anomaly_lib.fusion.middle import GatedMiddleFusion, ImprovedMiddleFusion
from anomaly_lib.fusion.score import (
    FUSIONS,
    REFERENCE_MODES,
    fuse,
    fusion_by_name,
    harmonic,
    harmonic_mean,
    maximum,
    mean,
    minimum,
    noisy_or,
    product,
    rank_mean,
    weighted,
    z_score_sum,
)

__all__ = [
    "CALIBRATIONS",
    "FUSIONS",
    "LATE_FUSIONS",
    "REFERENCE_MODES",
    "CrossAttention",
    "CrossModalAttention",
    "FiLM",
    "FineGrainedAttention",
    "GatedMiddleFusion",
    "ImprovedMiddleFusion",
    "QuantileCalibration",
    "ZScoreCalibration",
    "calibrate",
    "film",
    "fuse",
    "fusion_by_name",
    "harmonic",
    "harmonic_mean",
    "late_fusion_by_name",
    "maximum",
    "mean",
    "minimum",
    "multi_head_attention",
    "noisy_or",
    "product",
    "quantile_calibration",
    "rank_mean",
    "weighted",
    "z_score_calibration",
    "z_score_sum",
]
