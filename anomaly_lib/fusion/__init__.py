"""How several signals become one: score fusion, calibration, FiLM, cross-attention, middle fusion."""

from typing import TYPE_CHECKING

from anomaly_lib.lazy import lazy_names

if TYPE_CHECKING:
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
    from anomaly_lib.fusion.late import LATE_FUSIONS, late_fusion_by_name
    from anomaly_lib.fusion.middle import GatedMiddleFusion, ImprovedMiddleFusion
    from anomaly_lib.fusion.modulation import FiLM, film
    from anomaly_lib.fusion.names import REFERENCE_MODES
    from anomaly_lib.fusion.score import (
        FUSIONS,
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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CALIBRATIONS": "calibration",
        "CrossAttention": "attention",
        "CrossModalAttention": "cross_modal",
        "FUSIONS": "score",
        "FiLM": "modulation",
        "FineGrainedAttention": "cross_modal",
        "GatedMiddleFusion": "middle",
        "ImprovedMiddleFusion": "middle",
        "LATE_FUSIONS": "late",
        "QuantileCalibration": "calibration",
        "REFERENCE_MODES": "names",
        "ZScoreCalibration": "calibration",
        "calibrate": "calibration",
        "film": "modulation",
        "fuse": "score",
        "fusion_by_name": "score",
        "harmonic": "score",
        "harmonic_mean": "score",
        "late_fusion_by_name": "late",
        "maximum": "score",
        "mean": "score",
        "minimum": "score",
        "multi_head_attention": "attention",
        "noisy_or": "score",
        "product": "score",
        "quantile_calibration": "calibration",
        "rank_mean": "score",
        "weighted": "score",
        "z_score_calibration": "calibration",
        "z_score_sum": "score",
    },
)
