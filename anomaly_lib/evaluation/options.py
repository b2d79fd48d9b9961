"""Options of the programs over detectors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from anomaly_lib.config import Options, Switch, arg, override
from anomaly_lib.detect.choice import Choice
from anomaly_lib.errors import OptionError
from anomaly_lib.models.detectors.registry import load_plugin
from anomaly_lib.options import DecisionArgs

POLICIES = ("stored", "support-quantile", "f1", "youden", "false-alarms")
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}


@dataclass
class OpenedAs(Options):
    """How a trained detector is opened."""

    weights: Optional[str] = arg(
        None, "weight file of its frozen network, if it has moved since training; 'random' = untrained", type=str
    )
    device: str = arg("auto", "auto, cpu, cuda or cuda:N")
    plugin: Optional[str] = arg(
        None, "Python file that defines the detector, if it is one of your own; it is run", type=str
    )

    def check(self) -> None:
        if self.plugin:  # a checkpoint's own word on what file to run counts for nothing
            load_plugin(self.plugin)


@dataclass
class DetectorFile(OpenedAs):
    """The trained detector."""

    checkpoint: Optional[str] = arg(
        None, "checkpoint file, run folder (searched below) or glob pattern in quotes", type=str
    )


@dataclass
class AskedRate(Options):
    """The decision."""

    false_alarms: Optional[float] = arg(
        None,
        "promise this share of false alarms, from the stored scores of normal data; None = as stored",
        type=float,
        at_least=0,
        at_most=0.5,
    )


@dataclass
class EvaluateArgs(DetectorFile, Choice, AskedRate):
    """Evaluation of trained checkpoints."""

    parameters: str = arg(
        "auto",
        "averaged (ema) or raw trained parameters; auto = averaged where the checkpoint has them",
        choices=["auto", "ema", "raw"],
    )
    output_dir: Optional[str] = arg(
        None, "folder for tables and figures; None = evaluation/ beside the checkpoint", type=str, aliases=["output"]
    )
    compare: list[str] = arg([], "more checkpoints to set beside --checkpoint, in the table and in the report")
    report: Optional[str] = arg(None, "also write an HTML report into this folder", type=str)
    policy: str = arg("stored", "how the decision threshold is set", choices=list(POLICIES))
    false_alarms: Optional[float] = override(AskedRate, "false_alarms", needs={"policy": ("stored", "false-alarms")})
    support_quantile: float = arg(
        0.99, "quantile of normal scores", at_least=0, at_most=1, needs={"policy": "support-quantile"}
    )
    bootstrap: int = arg(1000, "resamples behind the 95% confidence intervals; 0 = none", at_least=0)
    fpr_limits: list[float] = arg([0.3], "false-positive limits of AUPRO", at_least=0, at_most=1)
    figures: Switch = arg(True, "draw figures")
    visualize: Switch = arg(False, "draw every image beside its truth and its heat map")
    dirpath: Optional[str] = arg(
        None, "folder of these pictures; None = visualizations/ beside the tables", type=str, needs={"visualize": True}
    )
    verbose: Switch = arg(False, "also print a line for every sample")


@dataclass
class PredictArgs(DetectorFile, AskedRate):
    """Score images that have no labels."""

    input: list[str] = arg([], "images, folders (searched below) or glob patterns; may stand without the flag")
    output_dir: str = arg("predictions", "folder for predictions.csv and overlays/", aliases=["out", "output"])
    batch_size: int = arg(8, "images scored together", at_least=1)
    obj: Optional[str] = arg(
        None, "class of the images, for a detector that remembers several", type=str, aliases=["class-name"]
    )
    threshold: Optional[float] = arg(None, "decide by this score instead of the stored threshold", type=float)
    overlays: Switch = arg(True, "write an overlay of each image")
    on_error: str = arg("fail", "a damaged image stops the run, or is listed and skipped", choices=["fail", "skip"])
    watch: Switch = arg(False, "keep looking for new images until interrupted")
    poll_seconds: float = arg(1.0, "pause between two looks", at_least=0, needs={"watch": True})
    idle_seconds: float = arg(
        0.0, "leave when nothing new came for this long; 0 = never", at_least=0, needs={"watch": True}
    )

    def check(self) -> None:
        if self.threshold is not None and self.false_alarms is not None:
            raise OptionError(f"threshold={self.threshold:g}: false_alarms={self.false_alarms:g} sets it; give one")


@dataclass
class CalibrateArgs(DetectorFile, DecisionArgs):
    """Give any checkpoint a decision, from normal files it was not trained on."""

    normal: list[str] = arg(
        [], "images, folders (searched below), glob patterns or serve's marks.csv; of weld detectors folders of runs"
    )
    output: Optional[str] = arg(None, "file to write; None = the checkpoint itself", type=str)
    obj: Optional[str] = override(PredictArgs, "obj")
    batch_size: int = arg(8, "inputs scored together", at_least=1)
    on_error: str = arg("fail", "a damaged file stops the work, or is listed and skipped", choices=["fail", "skip"])


@dataclass
class ExportArgs(DetectorFile, AskedRate):
    """Export of a trained image detector, or of Causal-FiLM from features."""

    obj: Optional[str] = override(PredictArgs, "obj")
    format: Optional[str] = arg(
        None,
        "onnx = for onnxruntime; torch = a torch.export program (.pt2); openvino = its .xml; None = as --output says, "
        "else onnx",
        type=str,
        choices=list(SUFFIXES),
    )
    precision: str = arg(
        "fp32", "of its networks; what fp16 and int8 cost is measured; only of onnx", choices=["fp32", "fp16", "int8"]
    )
    calibration: Optional[str] = arg(
        None,
        "folder of normal images that the ranges of int8 are measured on; None = found anew in every call",
        type=str,
        needs={"precision": "int8"},
    )
    output_dir: Optional[str] = arg(
        None, "folder, or the file itself, e.g. part.onnx; None = export/ beside the checkpoint", type=str,
        aliases=["output"],
    )  # fmt: skip
    repeats: int = arg(10, "calls behind the median latency", at_least=1)
    tolerance: float = arg(1e-3, "largest allowed difference to the detector, relative to its range", at_least=0)

    def check(self) -> None:
        if self.precision != "fp32" and self.file_format != "onnx":
            raise OptionError(f"precision={self.precision}: has no effect without format=onnx")
        if self.format not in (None, self.file_format):
            raise OptionError(f"format={self.format}: output_dir={self.output_dir} says {self.file_format}")

    @property
    def file_format(self) -> str:
        """What is written: as the name of the file says, if one is given."""
        said = [name for name, suffix in SUFFIXES.items() if str(self.output_dir).endswith(suffix)]
        return said[0] if said else self.format or "onnx"

    def file_of(self, checkpoint: Path) -> Path:
        """Where it is written."""
        suffix = SUFFIXES[self.file_format]
        if self.output_dir and self.output_dir.endswith(suffix):
            return Path(self.output_dir)
        kind = "" if self.precision == "fp32" else f"_{self.precision}"
        folder = Path(self.output_dir) if self.output_dir else checkpoint.parent / "export"
        return folder / f"{checkpoint.stem}{kind}{suffix}"
