"""`anomaly_lib.fit`: a detector of your own images in one call, and what can be done with it in one call each."""

import difflib
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from anomaly_lib.data.layouts import is_list
from anomaly_lib.detect.decision import at_asked_rate
from anomaly_lib.detect.images import ImageDetector, pictures_of, single_inputs
from anomaly_lib.detect.scores import Evaluated
from anomaly_lib.detect.scoring import class_table
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.evaluation.evaluate import evaluate_checkpoint
from anomaly_lib.evaluation.export import write_exported
from anomaly_lib.evaluation.options import EvaluateArgs, ExportArgs
from anomaly_lib.evaluation.report import write_evaluation_report
from anomaly_lib.files import copy_file
from anomaly_lib.models.detectors.registry import names
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.types import Prediction

if TYPE_CHECKING:
    from anomaly_lib.fitting.estimator import DetectorEstimator

SYSTEMS_OF_IMAGES = ("promptad", "sowa")  # beside the registered detectors


def fit(model: str, data: Any, **options: Any) -> "Fitted":
    """See `anomaly_lib.fit`."""
    if "data_path" in options:
        raise OptionError(
            f"data_path={options['data_path']}: the second argument says where the data lie; leave it out"
        )
    system, named = (model, {}) if model in SYSTEMS_OF_IMAGES else ("detectors", {"model": _known(model, options)})
    where = {"dataset": "folder", "data_path": "."}  # looked at before the data are: a wrong option costs no time
    SYSTEMS[system].Args(**(where | named | options))
    where["data_path"] = str(_folder_of(data, options.get("output_dir")))
    result = SYSTEMS[system].train(SYSTEMS[system].Args(**(where | named | options)))
    if result.checkpoint is None:
        raise UserError(f"{result.run_dir}: the run left no checkpoint")
    return Fitted(result.checkpoint, device=options.get("device", "auto"))


def _known(model: str, options: dict[str, Any]) -> str:
    """The name of a detector of the registry, or of one that `plugin` brings."""
    choices = [*names(), *SYSTEMS_OF_IMAGES]
    if model not in choices and not options.get("plugin"):
        close = difflib.get_close_matches(str(model), choices, n=1, cutoff=0.5)
        remedy = f"; did you mean {close[0]}?" if close else ""
        raise OptionError(f"model={model}: choose from {', '.join(choices)}{remedy}")
    return model


def _folder_of(data: Any, output_dir: str | Path | None) -> Path:
    """The folder of the data, or the CSV file that lists them.

    Single files and pictures are put into a folder that is named after what they hold.
    """
    if isinstance(data, (str, Path)) and (is_list(data) or not Path(data).is_file()):
        if not is_list(data) and not Path(data).expanduser().is_dir():
            raise UserError(f"{data}: no such folder of images")
        return Path(data)
    if isinstance(data, Sequence) and not len(data):
        raise UserError("data=[]: no images; give a folder, or a list of files, arrays or PIL images")
    room = Path(output_dir) / "parts" if output_dir else Path("runs") / "parts"
    room.mkdir(parents=True, exist_ok=True)
    whole = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=room, prefix=".new-") as new:
        good = Path(new) / "good"
        good.mkdir()
        for number, (suffix, content) in enumerate(_as_files(single_inputs(data))):
            (good / f"{number:05d}{suffix}").write_bytes(content)
            whole.update(hashlib.sha256(content).digest())
        folder = room / whole.hexdigest()[:12]
        if not folder.is_dir():
            made = Path(new) / "made"
            made.mkdir()
            os.replace(good, made / "good")
            os.replace(made, folder)
    return folder


def _as_files(inputs: Sequence[Any]) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of each file, picture or array; no value is changed but those of coloured floats (8 bits)."""
    for one in inputs:
        (pixels,) = pictures_of([one])  # says what is wrong with it, too
        if isinstance(one, (str, Path)):
            yield Path(one).suffix.lower(), Path(one).read_bytes()
            continue
        out = io.BytesIO()
        grey = pixels.dtype != np.uint8 and bool((pixels == pixels[:, :, :1]).all())
        if grey:
            Image.fromarray(np.ascontiguousarray(pixels[:, :, 0])).save(out, format="TIFF")
        else:
            if pixels.dtype != np.uint8:
                pixels = np.round(pixels.clip(0, 1) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(out, format="PNG", compress_level=1)
        yield ".tif" if grey else ".png", out.getvalue()


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
        self, path: str | Path, *, false_alarms: float | None = None, tolerance: float = ExportArgs.tolerance
    ) -> Path:
        """Write one .onnx file (or .pt2, a torch.export program), compared with the detector, and its description.

        `false_alarms`: what the file promises, from the stored scores of normal images; None = as the detector does.
        """
        args = ExportArgs(false_alarms=false_alarms, tolerance=tolerance)  # checked there
        decision = at_asked_rate(self.detector.decision, args.false_alarms)
        write_exported(self.detector, decision, Path(path), args.tolerance)
        return Path(path)

    def as_sklearn(self) -> "DetectorEstimator":
        """The detector as scikit-learn's outlier detectors are: score_samples, decision_function, predict, clone ..."""
        from anomaly_lib.fitting.estimator import estimator_of

        return estimator_of(self)
