"""How good is it: tensors or arrays in, floats out. Undefined values are nan, wrong input is refused by name, never a
silent 0.
"""

from typing import TYPE_CHECKING

from anomaly_lib.lazy import lazy_names

if TYPE_CHECKING:
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
    from anomaly_lib.metrics.own import METRICS
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
    from anomaly_lib.metrics.pixel_intervals import pixel_bootstrap
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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Interval": "bootstrap",
        "METRICS": "own",
        "PixelHistogram": "streaming",
        "ThresholdCurve": "curve",
        "accuracy": "prediction",
        "aupimo": "pimo",
        "aupro": "pixel",
        "auroc": "image",
        "average_precision": "image",
        "bootstrap_ci": "bootstrap",
        "class_f1": "prediction",
        "confusion_matrix": "prediction",
        "expected_calibration_error": "image",
        "f1_max": "image",
        "f1_max_threshold": "image",
        "image_metrics": "image",
        "knn_vote": "knn",
        "label_regions": "regions",
        "macro_f1": "prediction",
        "mae": "prediction",
        "per_image_iou": "pixel",
        "pixel_auroc": "pixel",
        "pixel_average_precision": "pixel",
        "pixel_bootstrap": "pixel_intervals",
        "pixel_curve": "pixel",
        "pixel_f1_max": "pixel",
        "pixel_metrics": "pixel",
        "r2": "prediction",
        "regression_metrics": "prediction",
        "rmse": "prediction",
        "score_curve": "image",
        "threshold_metrics": "image",
        "youden": "image",
    },
)
