"""A detector in scikit-learn's manners: for pipelines, cross-validation and searches over its options."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from anomaly_lib.config import to_plain
from anomaly_lib.detect.contract import Detector
from anomaly_lib.errors import UserError
from anomaly_lib.fitting.training import trained
from anomaly_lib.systems.registry import SYSTEMS

NOT_ITS_OWN = ("model", "data_path", "dataset", "obj", "output_dir", "save_path", "resume", "fresh")  # of a run


class DetectorEstimator(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """``model`` and its options are the parameters; X holds images: files, arrays [H, W, 3] or [H, W], PIL images.

    Higher `score_samples` and `decision_function` are more normal, `predict` says +1 for normal and -1 for anomalous,
    as of all outlier detectors there. `fit` learns the images whose y is not -1, by `anomaly_lib.fit`, which keeps
    three of ten of them for the figures of its run.
    """

    def __init__(self, model: str = "patchcore", **options: Any) -> None:
        self.model = model
        self.__dict__.update(options)

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002 - nothing is nested
        return {name: value for name, value in vars(self).items() if not name.startswith("_") and name[-1] != "_"}

    def set_params(self, **params: Any) -> "DetectorEstimator":
        self.__dict__.update(params)  # a name that is no option is refused by `fit`
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.no_validation = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "detector_")

    def fit(self, X: Iterable[Any], y: Sequence[int] | None = None) -> "DetectorEstimator":
        images = images_of(X)
        if y is not None:
            if len(y) != len(images):
                raise UserError(f"y: {len(y)} labels for {len(images)} images")
            images = [image for image, label in zip(images, y, strict=True) if label != -1]
        options = self.get_params()
        checkpoint = trained(options.pop("model"), images, **options)
        self.detector_ = SYSTEMS.load(checkpoint, device=options.get("device", "auto"))
        return self

    def score_samples(self, X: Iterable[Any]) -> np.ndarray:
        """[N]: the higher, the more normal."""
        return -self._found(X).score.numpy()

    def decision_function(self, X: Iterable[Any]) -> np.ndarray:
        """[N]: `score_samples` above the threshold; 0 and less is anomalous."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Iterable[Any]) -> np.ndarray:
        """[N]: +1 for normal, -1 for anomalous."""
        return np.where(self.decision_function(X) > 0, 1, -1)

    @property
    def offset_(self) -> float:
        """What `decision_function` takes from `score_samples`: minus the threshold of the decision."""
        check_is_fitted(self)
        decision = self.detector_.decision
        if decision is None:
            raise UserError(f"{self.model}: no decision: {self.detector_.undecided}; score_samples works")
        return -float(decision.threshold)

    def _found(self, X: Iterable[Any]) -> Any:
        check_is_fitted(self)
        return self.detector_.predict(images_of(X))


def images_of(X: Iterable[Any]) -> list[Any]:
    """Single images of whatever holds some; an array gives those along its first axis."""
    if isinstance(X, (str, bytes)) or not isinstance(X, Iterable) or getattr(X, "ndim", 1) in (0, 2):
        raise UserError(
            "X: give a list of files or images, or an array [N, H, W, 3] or [N, H, W]; a table holds no images"
        )
    return list(X)


def estimator_of(detector: Detector) -> DetectorEstimator:
    """The estimator that was fitted so; its parameters are the options that are not defaults."""
    args = detector.args
    model = getattr(args, "model", detector.system)
    chosen = {"model": model} if hasattr(args, "model") else {}
    usual = to_plain(type(args)(dataset="folder", data_path=".", **chosen))
    own = {k: v for k, v in to_plain(args).items() if k not in NOT_ITS_OWN and usual.get(k) != v}
    made = DetectorEstimator(model, **own)
    made.detector_ = detector
    return made
