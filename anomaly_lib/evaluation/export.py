"""scripts/export.py's body: a trained detector as one file that needs none of this library to run."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anomaly_lib.backbones.weights import file_sha256
from anomaly_lib.detect.contract import Detector
from anomaly_lib.detect.decision import CALIBRATE, at_asked_rate
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.detect.tables import Table
from anomaly_lib.engine.run import machine_facts
from anomaly_lib.errors import UserError, reason_of
from anomaly_lib.evaluation.checkpoints import one_checkpoint
from anomaly_lib.evaluation.compared import (
    fresh_pictures,
    largest_difference,
    latency,
    loss_of_precision,
    normal_pictures,
)
from anomaly_lib.evaluation.graph import (
    ExportedDetector,
    ExportedFeatures,
    Graph,
    load_exported,
    needs,
    onnx_model,
    save_onnx,
    save_openvino,
    save_torch,
    traced,
)
from anomaly_lib.evaluation.options import SUFFIXES, ExportArgs
from anomaly_lib.evaluation.quantise import half_model, int8_model
from anomaly_lib.files import write_json
from anomaly_lib.systems.registry import Registry
from anomaly_lib.types import Prediction

HOW_TO_DECIDE = {
    "anomalous": "score >= threshold",
    "p_value": "(1 + number of `normal` at or above the score) / (1 + number of `normal`)",
    "region": "map >= map_threshold, without pieces of fewer than `cell` pixels",
}


def export(args: ExportArgs, systems: Registry, say: Callable[[str], object]) -> int:
    """Write the file, its description and a runner, compare the file with the detector on fresh input, time both."""
    if not args.checkpoint:
        raise UserError("checkpoint= is needed: the checkpoint file of a detector")
    checkpoint = one_checkpoint(args.checkpoint)
    detector = systems.load(checkpoint, device=args.device, weights=args.weights)
    detector = detector if args.obj is None else detector.of_class(args.obj)
    decision = detector.decision = at_asked_rate(detector.decision, args.false_alarms)
    path = args.file_of(checkpoint)
    done = write_exported(
        detector, path, args.tolerance, checkpoint=checkpoint, precision=args.precision, calibration=args.calibration
    )
    if decision is None:
        say(f"{checkpoint}: no decision, only scores: {detector.undecided}; {CALIBRATE} adds one")
    else:
        short = [] if args.false_alarms is None else decision.short_of(args.false_alarms)
        say("\n".join([*short, f"decision: {decision.describe()}"]))
    size = sum(one.stat().st_size for one in path.parent.glob(f"{path.stem}.*") if one.suffix in {path.suffix, ".bin"})
    say(f"{path}: {size / 2**20:.1f} MiB, largest relative difference to the detector {done.difference:.2e}")
    for line in done.lost:
        say(line)
    table, column = Table(["run by", f"milliseconds {done.each}"]), f"milliseconds {done.each}"
    for name, call in (("this library (PyTorch)", done.ours), (f"{args.file_format} file", done.theirs)):
        table.rows.append({"run by": name, column: latency(call, args.repeats)})
    table.notes.append(f"median of {args.repeats} calls, {done.timed}, {torch.get_num_threads()} CPU threads")
    table.write(path.with_name(f"{path.stem}_{args.file_format}_latency"))
    say(table.text(1))
    return 0


@dataclass
class Exported:
    """A file that was written, and how it compares with the detector."""

    difference: float  # largest, relative
    lost: list[str]  # what less precision costs, in words
    each: str  # "an image"
    timed: str  # the input of the next two, in words
    ours: Callable[[], object]  # the detector
    theirs: Callable[[], object]  # the file itself


def write_exported(
    detector: Any, path: Path, tolerance: float, *, checkpoint: Path, precision: str = "fp32",
    calibration: str | None = None,
) -> Exported:  # fmt: skip
    """Write a detector as the file `path` (its format follows from the suffix), its description and a runner."""
    if path.suffix not in SUFFIXES.values():
        raise UserError(
            f"{path}: the name of an exported file ends in .onnx, in .pt2 for a torch.export program, or in .xml for "
            "OpenVINO"
        )
    if path.suffix == SUFFIXES["openvino"]:
        needs("openvino", "openvino", "format=openvino")
    if not isinstance(detector, ImageDetector):
        if precision != "fp32":
            raise UserError(f"precision={precision}: is measured on pictures, and {detector.system} reads none")
        return _from_features(detector, path, tolerance, checkpoint)
    if detector.transductive:
        raise UserError(f"{path}: scores images by one another, a file scores one alone: it cannot be exported")
    if not detector.takes_pixels:
        raise UserError(f"{path}: {detector.system} reads files of floats, an exported file takes pictures of 8 bits")
    images = fresh_pictures()
    wanted, module = detector.predict(images), ExportedDetector(detector)
    description = describe(detector, wanted, module, checkpoint) | {"precision": precision}
    model = write_graph(module, path, description, precision, calibration)
    run = load_exported(path)
    difference = largest_difference(wanted, run, [(image[None],) for image in images])
    lost: list[str] = []
    if precision == "fp32":
        check_difference(difference, tolerance, path)
    else:
        description["measured"], lost = loss_of_precision(detector, run)
        save_onnx(model, path, description)
    write_json(path.with_suffix(".json"), description)
    first = images[0]
    timed = f"one picture of {'x'.join(map(str, first.shape[1::-1]))}"
    return Exported(difference, lost, "an image", timed, lambda: detector.predict(first), lambda: run(first[None]))


def _from_features(detector: Any, path: Path, tolerance: float, checkpoint: Path) -> Exported:
    """Write the part of a detector that follows its frozen networks."""
    graph = detector.feature_graph()
    if graph is None:
        raise UserError(f"{path}: {detector.system} has no graph of pictures or features; it cannot be exported")
    with torch.no_grad():
        wanted = Prediction(graph.module(*graph.examples.values()))
    module = ExportedFeatures(graph, detector.decision).cpu()
    description = describe(detector, wanted, module, checkpoint)
    try:
        write_graph(module, path, description)
    except UserError:
        raise
    except Exception as error:  # whatever an exporter stumbles over
        raise UserError(f"{path}: a part of {detector.system} cannot be exported ({reason_of(error)})") from error
    run = load_exported(path)
    each = [tuple(one[i : i + 1].cpu().numpy() for one in graph.examples.values()) for i in range(len(wanted.score))]
    difference = largest_difference(wanted, run, each)
    check_difference(difference, tolerance, path)
    write_json(path.with_suffix(".json"), description)
    first = [one[:1] for one in graph.examples.values()]
    return Exported(
        difference, [], "a sample", "features of one sample", lambda: graph.module(*first), lambda: run(*each[0])
    )


def write_graph(
    module: Graph, path: Path, description: dict[str, Any], precision: str = "fp32", calibration: str | None = None
) -> Any:
    """Write the file itself and, of all but torch.export programs, the runner; answers the ONNX model, if any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == SUFFIXES["torch"]:
        return save_torch(traced(module), path, description)
    model = onnx_model(module)
    if precision == "fp16":
        model = half_model(model)
    elif precision == "int8":
        model = int8_model(model, normal_pictures(calibration))
    plain = path.with_suffix(SUFFIXES["onnx"])
    save_onnx(model, plain, description)
    if path.suffix == SUFFIXES["openvino"]:
        save_openvino(plain, path)
    shutil.copyfile(Path(__file__).with_name("runner.py"), path.parent / "runner.py")
    return model


def check_difference(difference: float, tolerance: float, path: Path) -> None:
    if not difference <= tolerance:
        raise UserError(f"{path}: differs by {difference:.2e}, more than tolerance={tolerance}")


def describe(detector: Detector, found: Prediction, module: Graph, checkpoint: Path) -> dict[str, Any]:
    """What a reader of the file needs to know: input, outputs, what is inside, and where it comes from."""
    facts, decision = machine_facts(), detector.decision
    return {
        "system": detector.system,
        "model": getattr(detector.args, "model", detector.system),
        "classes": detector.class_names if isinstance(detector, ImageDetector) else [],
        **module.about,
        "outputs": list(module.outputs),
        "cell": found.cell,
        "alpha": None if decision is None else decision.false_alarms,
        "decision": None if decision is None else decision.plain() | {"how": HOW_TO_DECIDE},
        "weights": dict(detector.facts.weights),
        "commit": facts["git_commit"],
        "versions": {"anomaly_lib": facts["anomaly_lib"], "torch": facts["torch"]},
        "checkpoint": {"name": checkpoint.name, "sha256": file_sha256(checkpoint)},
    }
