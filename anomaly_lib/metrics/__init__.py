"""How good is it: tensors or arrays in, floats out. Undefined values are nan, wrong input is refused by name, never a
silent 0.
"""

from anomaly_lib.metrics.bootstrap import Interval, bootstrap_ci
from anomaly_lib.metrics.curve import ThresholdCurve
from anomaly_lib.metrics.image import (
    auroc,
    average_precision,
    expected_calibration_error,
    f1_max,
    f1_max_threshold,
    image_metrics,
    score_curve,
    threshold_metrics,
    youden,
)
from anomaly_lib.metrics.knn import knn_vote
from anomaly_lib.metrics.pimo import aupimo
from anomaly_lib.metrics.pixel import (
    aupro,
    per_image_iou,
    pixel_auroc,
    pixel_average_precision,
    pixel_curve,
    pixel_f1_max,
    pixel_metrics,
)
from anomaly_lib.metrics.pixel_bootstrap import pixel_bootstrap
from anomaly_lib.metrics.prediction import (
    accuracy,
    class_f1,
    confusion_matrix,
    macro_f1,
    mae,
    r2,
    regression_metrics,
    rmse,
)
from anomaly_lib.metrics.regions import label_regions
from anomaly_lib.metrics.streaming import PixelHistogram

__all__ = [
    "Interval",
    "PixelHistogram",
    "ThresholdCurve",
    "accuracy",
    "aupimo",
    "aupro",
    "auroc",
    "average_precision",
    "bootstrap_ci",
    "class_f1",
    "confusion_matrix",
    "expected_calibration_error",
    "f1_max",
    "f1_max_threshold",
    "image_metrics",
    "knn_vote",
    "label_regions",
    "macro_f1",
    "mae",
    "per_image_iou",
    "pixel_auroc",
    "pixel_average_precision",
    "pixel_bootstrap",
    "pixel_curve",
    "pixel_f1_max",
    "pixel_metrics",
    "r2",
    "regression_metrics",
    "rmse",
    "score_curve",
    "threshold_metrics",
    "youden",
]
