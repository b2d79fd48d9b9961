"""scripts/export.py's body: a trained image detector as one file that needs none of this library to run."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomaly_lib.backbones.weights import file_sha256
from anomaly_lib.data.base import load_pixels
from anomaly_lib.data.images import read_image
from anomaly_lib.detect.decision import CALIBRATE, at_asked_rate
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.detect.tables import Table
from anomaly_lib.engine.run import machine_facts
from anomaly_lib.errors import UserError
from anomaly_lib.evaluation.checkpoints import one_checkpoint
from anomaly_lib.evaluation.graph import (
    AXES,
    INPUT,
    Answer,
    ExportedDetector,
    load_exported,
    needs,
    onnx_model,
    save_onnx,
    save_openvino,
    save_torch,
    traced,
)
from anomaly_lib.evaluation.inputs import expand
from anomaly_lib.evaluation.options import ExportArgs
from anomaly_lib.evaluation.quantise import half_model, int8_model
from anomaly_lib.files import write_json
from anomaly_lib.metrics import auroc
from anomaly_lib.systems.registry import Registry
from anomaly_lib.types import Prediction

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
CALIBRATED, COMPARED = 64, 200  # pictures that set the ranges of int8, and that the loss of precision is measured on
HOW_TO_DECIDE = {
    "anomalous": "score >= threshold",
    "p_value": "(1 + number of `normal` at or above the score) / (1 + number of `normal`)",
    "region": "map >= map_threshold, without pieces of fewer than `cell` pixels",
}


def export(args: ExportArgs, systems: Registry, say: Callable[[str], object]) -> int:
    """Write the file, its description and a runner, compare the file with the detector on fresh input, time both."""
    if not args.checkpoint:
        raise UserError("checkpoint= is needed: the checkpoint file of an image detector")
    checkpoint = one_checkpoint(args.checkpoint)
    detector = systems.load(checkpoint, device=args.device, weights=args.weights)
    detector = detector if args.obj is None else detector.of_class(args.obj)
    decision = detector.decision = at_asked_rate(detector.decision, args.false_alarms)
    folder = Path(args.output_dir) if args.output_dir else checkpoint.parent / "export"
    kind = "" if args.precision == "fp32" else f"_{args.precision}"
    path = folder / f"{checkpoint.stem}{kind}{SUFFIXES[args.format]}"
    done = write_exported(
        detector, path, args.tolerance, checkpoint=checkpoint, precision=args.precision, calibration=args.calibration
    )
    if decision is None:
        say(f"{checkpoint}: no decision, only scores: {detector.undecided}; {CALIBRATE} adds one")
    else:
        short = [] if args.false_alarms is None else decision.short_of(args.false_alarms)
        say("\n".join([*short, f"decision: {decision.describe()}"]))
    size = sum(one.stat().st_size for one in folder.glob(f"{path.stem}.*") if one.suffix in {path.suffix, ".bin"})
    say(f"{path}: {size / 2**20:.1f} MiB, largest relative difference to the detector {done.difference:.2e}")
    for line in done.lost:
        say(line)
    table = Table(["run by", "milliseconds an image"])
    image = done.images[0]
    for name, call in (
        ("this library (PyTorch)", lambda: detector.predict(image)),
        (f"{args.format} file", lambda: done.run(image[None])),
    ):
        table.rows.append({"run by": name, "milliseconds an image": latency(call, args.repeats)})
    shape = "x".join(map(str, image.shape[1::-1]))
    table.notes.append(f"median of {args.repeats} calls, one picture of {shape}, {torch.get_num_threads()} CPU threads")
    table.write(path.with_name(f"{path.stem}_{args.format}_latency"))
    say(table.text(1))
    return 0


@dataclass
class Exported:
    """A file that was written, and how it compares with the detector."""

    run: Answer  # of the file itself
    images: list[np.ndarray]  # that it was compared on, [H, W, 3] uint8
    difference: float  # largest, relative
    lost: list[str]  # what less precision costs, in words


def write_exported(
    detector: Any, path: Path, tolerance: float, *, checkpoint: Path, precision: str = "fp32",
    calibration: str | None = None,
) -> Exported:  # fmt: skip
    """Write a detector as the file `path` (its format follows from the suffix), its description and a runner."""
    if not isinstance(detector, ImageDetector):
        raise UserError(f"{path}: {detector.system} is no image detector; only these can be exported")
    if detector.transductive:
        raise UserError(f"{path}: scores images by one another, a file scores one alone: it cannot be exported")
    if not detector.takes_pixels:
        raise UserError(f"{path}: {detector.system} reads files of floats, an exported file takes pictures of 8 bits")
    if path.suffix not in SUFFIXES.values():
        raise UserError(
            f"{path}: the name of an exported file ends in .onnx, in .pt2 for a torch.export program, or in .xml for "
            "OpenVINO"
        )
    if path.suffix == SUFFIXES["openvino"]:
        needs("openvino", "openvino", "format=openvino")
    images = fresh_pictures()
    wanted, module = detector.predict(images), ExportedDetector(detector)
    path.parent.mkdir(parents=True, exist_ok=True)
    description = describe(detector, wanted, module, checkpoint) | {"precision": precision}
    if path.suffix == SUFFIXES["torch"]:
        save_torch(traced(module), path, description)
    else:
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
    run = load_exported(path)
    difference = largest_difference(wanted, run, images)
    lost: list[str] = []
    if precision == "fp32":
        if difference > tolerance:
            raise UserError(f"{path}: differs by {difference:.2e}, more than tolerance={tolerance}")
    else:
        description["measured"], lost = loss_of_precision(detector, run)
        save_onnx(model, path, description)
    write_json(path.with_suffix(".json"), description)
    return Exported(run, images, difference, lost)


def describe(detector: ImageDetector, found: Prediction, module: ExportedDetector, checkpoint: Path) -> dict[str, Any]:
    """What a reader of the file needs to know: input, outputs, what is inside, and where it comes from."""
    facts, decision = machine_facts(), detector.decision
    return {
        "system": detector.system,
        "model": getattr(detector.args, "model", detector.system),
        "classes": detector.class_names,
        "input": {"name": INPUT, "type": "uint8", "shape": [*AXES, 3], "colours": "RGB, turned by EXIF orientation"},
        "preprocessing inside": detector.transform.describe(),
        "outputs": list(module.outputs),
        "cell": found.cell,
        "alpha": None if decision is None else decision.false_alarms,
        "decision": None if decision is None else decision.plain() | {"how": HOW_TO_DECIDE},
        "weights": dict(detector.facts.weights),
        "commit": facts["git_commit"],
        "versions": {"anomaly_lib": facts["anomaly_lib"], "torch": facts["torch"]},
        "checkpoint": {"name": checkpoint.name, "sha256": file_sha256(checkpoint)},
    }


def fresh_pictures() -> list[np.ndarray]:
    """Drawn pictures [H, W, 3] of several sizes and shapes, one of them tall."""
    rng = np.random.default_rng(0)
    made = []
    for height, width in ((256, 256), (97, 150), (211, 64)):
        coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
        smooth = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
        made.append((0.7 * smooth + 0.3 * rng.integers(0, 256, smooth.shape)).astype(np.uint8))
    return made


def largest_difference(wanted: Prediction, run: Answer, images: Sequence[np.ndarray]) -> float:
    """Largest |difference| of scores and maps, relative to the largest value of each."""
    worst = 0.0
    for index, image in enumerate(images):
        found = run(image[None])
        for name in ("score", "map"):
            value = getattr(wanted, name)
            if value is not None:
                want = value[index].detach().cpu().numpy()
                scale = max(float(np.abs(value.detach().cpu().numpy()).max()), 1e-6)
                worst = max(worst, float(np.abs(want - found[name][0]).max()) / scale)
    return worst


def normal_pictures(folder: str | None) -> list[np.ndarray]:
    """Normal pictures [H, W, 3] uint8 that the ranges of int8 are measured on; [] without a folder."""
    if folder is None:
        return []
    files = [path for path, _ in expand(folder)][:CALIBRATED]
    pictures = [read_image(path) for path in files]
    if not pictures or any(picture.dtype != np.uint8 for picture in pictures):
        raise UserError(f"calibration={folder}: pictures of 8 bits are needed")
    return pictures


def loss_of_precision(detector: ImageDetector, run: Answer) -> tuple[dict[str, Any], list[str]]:
    """AUROC and decisions of file and detector on the test images of the training run, and the same in words."""
    try:
        selection = detector.items()
    except UserError as error:
        return {}, [f"what less precision costs could not be measured: {error}"]
    ours, theirs, labels, flipped = [], [], [], 0
    for item in evenly(selection.items, COMPARED):
        pixels = load_pixels(item)[0]
        if pixels.dtype != np.uint8:
            return {}, [f"what less precision costs could not be measured: {item.path} has more than 8 bits"]
        found = detector.predict(pixels)
        answer = run(pixels[None])
        ours.append(float(found.score[0]))
        theirs.append(float(answer["score"][0]))
        labels.append(item.label)
        flipped += found.anomalous is not None and bool(found.anomalous[0]) != bool(answer["anomalous"][0])
    truth = torch.tensor(labels)
    before, after = (auroc(torch.tensor(values), truth) for values in (ours, theirs))
    measured = {"on": selection.name, "images": len(labels), "auroc": after, "auroc_of_fp32": before}
    line = f"on {len(labels)} images of {selection.name}: AUROC {after:.4f}, in fp32 {before:.4f}"
    if detector.decision is not None:
        measured["decisions_that_differ"] = flipped
        line += f"; {flipped} decisions differ"
    return measured, [line]


def evenly(items: Sequence[Any], most: int) -> Iterator[Any]:
    """At most `most` of the items, spread over them all."""
    step = max(1.0, len(items) / most)
    return (items[int(place * step)] for place in range(min(most, len(items))))


def latency(call: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of one call, after two warm-up calls."""
    times = []
    for index in range(repeats + 2):
        started = time.perf_counter()
        call()
        if index >= 2:
            times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))
