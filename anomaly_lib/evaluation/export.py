"""scripts/export.py's body: a trained image detector as one file that needs none of this library to run."""

import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_lib.detect.decision import CALIBRATE, Decision, at_asked_rate
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.detect.tables import Table
from anomaly_lib.errors import UserError
from anomaly_lib.evaluation.checkpoints import one_checkpoint
from anomaly_lib.evaluation.options import ExportArgs
from anomaly_lib.files import atomic_file, write_json
from anomaly_lib.models.detectors.memory_bank import MemoryBank
from anomaly_lib.models.sowa.model import AnomalyCLIP
from anomaly_lib.systems.registry import Registry

DESCRIPTION = "anomaly_lib"  # under this name inside the file
HOW_TO_DECIDE = {
    "anomalous": "score >= threshold",
    "p_value": "(1 + number of `normal` at or above the score) / (1 + number of `normal`)",
    "region": "map >= map_threshold, without pieces of fewer than `cell` pixels",
}


class ExportedDetector(nn.Module):
    """transformed images [B, 3, H, W] -> scores [B], maps [B, h, w]: preprocessing stays outside (see the .json)."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        # The networks are held by plain objects; an exporter must see them as parts of the module.
        self.networks = nn.ModuleList(_networks(detector, set()))
        self._predict: Callable[[Tensor], Any] = detector.predict_batch
        self.eval()

    def complete(self, images: Tensor) -> None:
        """Let everything that is computed on first use be computed now."""
        with torch.no_grad():
            self(images)
        for module in self.modules():
            if isinstance(module, MemoryBank):
                module.complete_table()
            if isinstance(module, AnomalyCLIP):  # the prompts are learned: their features are constants of the file
                with torch.no_grad():
                    features = module.text_features()
                module.text_features = partial(torch.clone, features)  # type: ignore[method-assign]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        prediction = self._predict(images)
        return (prediction.score,) if prediction.map is None else (prediction.score, prediction.map)


def _networks(owner: Any, seen: set[int]) -> Iterator[nn.Module]:
    """Every network that `owner` reaches, through plain objects and containers of this library."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    inner: Iterable[Any] = ()
    if isinstance(owner, (list, tuple)):
        inner = owner
    elif isinstance(owner, dict):
        inner = owner.values()
    elif type(owner).__module__.startswith("anomaly_lib.") and hasattr(owner, "__dict__"):
        inner = [value for name, value in vars(owner).items() if name not in ("_modules", "_parameters", "_buffers")]
    if isinstance(owner, nn.Module):
        yield owner
    for value in inner:
        yield from _networks(value, seen)


def export(args: ExportArgs, systems: Registry, say: Callable[[str], object]) -> int:
    """Write the file and its description, compare it with the detector on fresh input, time both."""
    if not args.checkpoint:
        raise UserError("checkpoint= is needed: the checkpoint file of an image detector")
    checkpoint = one_checkpoint(args.checkpoint)
    detector = systems.load(checkpoint, device=args.device, weights=args.weights)
    decision = at_asked_rate(detector.decision, args.false_alarms)
    folder = Path(args.output_dir) if args.output_dir else checkpoint.parent / "export"
    path = folder / f"{checkpoint.stem}{'.onnx' if args.format == 'onnx' else '.pt2'}"
    done = write_exported(detector, decision, path, args.tolerance)
    if decision is None:
        say(f"{checkpoint}: no decision, only scores: {detector.undecided}; {CALIBRATE} adds one")
    else:
        short = [] if args.false_alarms is None else decision.short_of(args.false_alarms)
        say("\n".join([*short, f"decision: {decision.describe()}"]))
    size = path.stat().st_size / 2**20
    say(f"{path}: {size:.1f} MiB, largest relative difference to the detector {done.difference:.2e}")
    table = Table(["run by", "milliseconds an image"])
    for name, call in (
        ("this library (PyTorch)", lambda: done.module(done.images)),
        (f"{args.format} file", lambda: done.run(done.images)),
    ):
        table.rows.append({"run by": name, "milliseconds an image": latency(call, args.repeats)})
    table.notes.append(f"median of {args.repeats} calls, batch 1, {torch.get_num_threads()} CPU threads")
    table.write(path.with_name(f"{path.stem}_{args.format}_latency"))
    say(table.text(1))
    return 0


@dataclass
class Exported:
    """A file that was written, and how it compares with the detector."""

    module: nn.Module
    run: Callable[[Tensor], list[np.ndarray]]  # of the file itself
    images: Tensor  # one input [1, 3, H, W]
    difference: float  # largest, relative


def write_exported(detector: Any, decision: Decision | None, path: Path, tolerance: float) -> Exported:
    """Write a detector as the file `path` (its format follows from the suffix) and its description beside it."""
    if not isinstance(detector, ImageDetector):
        raise UserError(f"{path}: {detector.system} is no image detector; only these can be exported")
    if detector.transductive:
        raise UserError(f"{path}: scores images by one another, a file scores one alone: it cannot be exported")
    write = {".onnx": export_onnx, ".pt2": export_torch}.get(path.suffix)
    if write is None:
        raise UserError(f"{path}: the name of an exported file ends in .onnx, or in .pt2 for a torch.export program")
    module = ExportedDetector(detector)
    height, width = detector.transform.output_size(1000, 1000)
    images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    module.complete(images)
    path.parent.mkdir(parents=True, exist_ok=True)
    description = describe(detector, decision, images)
    write(module, images, path, json.dumps(description))
    write_json(path.with_suffix(".json"), description)
    run = load_exported(path)
    difference = largest_difference(module, run, images.shape)
    if difference > tolerance:
        raise UserError(f"{path}: differs by {difference:.2e}, more than tolerance={tolerance}")
    return Exported(module, run, images, difference)


@torch.no_grad()
def describe(detector: ImageDetector, decision: Decision | None, images: Tensor) -> dict[str, Any]:
    """What a reader of the file needs to know: preprocessing, outputs, and how to decide by them."""
    found = detector.predict_batch(images)
    return {
        "input": {"name": "images", "shape": list(images.shape), "preprocessing": detector.transform.describe()},
        "outputs": ["score"] if found.map is None else ["score", "map"],
        "cell": found.cell,
        "decision": None if decision is None else decision.plain() | {"how": HOW_TO_DECIDE},
    }


def export_onnx(module: nn.Module, images: Tensor, path: Path, description: str) -> None:
    """An ONNX file with fixed input shape; weights and description (`metadata_props`) inside."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("format=onnx needs: pip install 'anomaly_lib[export]'") from None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (images,), input_names=["images"], dynamo=True, verbose=False, external_data=False
        )
    assert program is not None
    program.model.metadata_props[DESCRIPTION] = description
    program.save(str(path))


def export_torch(module: nn.Module, images: Tensor, path: Path, description: str) -> None:
    """A torch.export program; the description is an extra file in it."""
    with torch.no_grad():
        program = torch.export.export(module, (images,), strict=False)
    with atomic_file(path) as stream:
        torch.export.save(program, stream, extra_files={f"{DESCRIPTION}.json": description})


def load_exported(path: Path) -> Callable[[Tensor], list[np.ndarray]]:
    """A function from input to outputs that runs the file itself."""
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {session.get_inputs()[0].name: images.numpy()})
    program = torch.export.load(path).module()

    def run(images: Tensor) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in program(images)]

    return run


def largest_difference(module: nn.Module, run: Callable[[Tensor], list[np.ndarray]], shape: tuple[int, ...]) -> float:
    """Largest |difference| over outputs and three inputs, relative to the range of the output."""
    worst = 0.0
    for seed in (1, 2, 3):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            wanted = [output.detach().cpu().numpy() for output in module(images)]
        for want, found in zip(wanted, run(images), strict=True):
            scale = max(float(np.abs(want).max()), 1e-6)
            worst = max(worst, float(np.abs(want - found).max()) / scale)
    return worst


def latency(call: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of one call, after two warm-up calls."""
    times = []
    for index in range(repeats + 2):
        started = time.perf_counter()
        with torch.no_grad():
            call()
        if index >= 2:
            times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))
