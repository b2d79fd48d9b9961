"""`anomaly_lib.fit`: a detector of your own images in one call, and what can be done with it in one call each."""

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_lib.detect.decision import at_asked_rate
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.detect.scores import Evaluated
from anomaly_lib.detect.scoring import class_table
from anomaly_lib.errors import UserError
from anomaly_lib.evaluation.evaluate import evaluate_checkpoint
from anomaly_lib.evaluation.export import write_exported
from anomaly_lib.evaluation.options import EvaluateArgs, ExportArgs
from anomaly_lib.evaluation.report import write_evaluation_report
from anomaly_lib.files import copy_file
from anomaly_lib.fitting.training import trained
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.types import Prediction

if TYPE_CHECKING:
    from anomaly_lib.fitting.estimator import DetectorEstimator


def fit(model: str, data: Any, **options: Any) -> "Fitted":
    """See `anomaly_lib.fit`."""
    return Fitted(trained(model, data, **options), device=options.get("device", "auto"))


class Fitted:
    """A trained image detector and its checkpoint file; `Fitted("part.pt")` opens one that was saved."""

    def __init__(self, checkpoint: str | Path, *, device: str = "auto") -> None:
        self.checkpoint, self.device = Path(checkpoint), device
        detector = SYSTEMS.load(self.checkpoint, device=device)
        if not isinstance(detector, ImageDetector):
            raise UserError(f"{checkpoint}: {detector.system} is no image detector; anomaly_lib.load opens it")
        self.detector = detector

    def __repr__(self) -> str:
        decision = self.detector.decision
        said = f"no decision: {self.detector.undecided}" if decision is None else decision.describe()
        model = getattr(self.detector.args, "model", self.detector.system)
        return f"{model} detector, {said}; {self.checkpoint}"

    def predict(self, inputs: Any) -> Prediction:
        """Score one or many images: files, a folder, arrays, PIL images. A notebook shows the answer."""
        return self.detector.predict(inputs)

    def evaluate(self, data: str | Path | None = None, **options: Any) -> Evaluated:
        """Scores and figures of the test images: those of the training run, or of another folder.

        `options`: those of evaluate.py, e.g. ``obj=``, ``policy=``, ``false_alarms=``.
        """
        if data is not None:
            options = {"dataset": "folder", "data_path": str(data)} | options
        args = EvaluateArgs(**({"checkpoint": str(self.checkpoint), "device": self.device} | options))
        return evaluate_checkpoint(self.checkpoint, args, SYSTEMS)

    def report(self, folder: str | Path, data: str | Path | None = None, **options: Any) -> Path:
        """Write the HTML report of an evaluation into a folder; returns the page."""
        done = [self.evaluate(data, **options)]
        return write_evaluation_report(Path(folder), done, class_table(done))

    def save(self, path: str | Path) -> Path:
        """Copy the checkpoint, which `anomaly_lib.load`, `Fitted` and every program read."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        copy_file(self.checkpoint, path)
        return Path(path)

    def export(
        self, path: str | Path, *, obj: str | None = None, false_alarms: float | None = None,
        tolerance: float = ExportArgs.tolerance,
    ) -> Path:  # fmt: skip
        """Write one .onnx file (.pt2: a torch.export program) that is compared with the detector, and a description.

        `obj`: the class, where the detector remembers several. `false_alarms`: what the file promises, from the stored
        scores of normal images; None = as the detector does.
        """
        args = ExportArgs(false_alarms=false_alarms, tolerance=tolerance)  # checked there
        detector = copy(self.detector) if obj is None else self.detector.of_class(obj)
        detector.decision = at_asked_rate(detector.decision, args.false_alarms)
        write_exported(detector, Path(path), args.tolerance, checkpoint=self.checkpoint)
        return Path(path)

    def as_sklearn(self) -> "DetectorEstimator":
        """The detector as scikit-learn's outlier detectors are: score_samples, decision_function, predict, clone ..."""
        from anomaly_lib.fitting.estimator import estimator_of

        return estimator_of(self.detector)
