"""A trained detector as one graph, e.g. from the pixels of a picture of any size to score, map, p-value, decision."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_lib.data.pixels import PixelTransform
from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.feature_graph import FeatureGraph
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.errors import UserError
from anomaly_lib.files import atomic_file
from anomaly_lib.models.deploy import onnx_session
from anomaly_lib.models.detectors.memory_bank import MemoryBank
from anomaly_lib.models.sowa.model import AnomalyCLIP

INPUT, AXES = "image", ("batch", "height", "width")
OUTPUTS = {"score", "map", "p_value", "anomalous"}
DESCRIPTION = "anomaly_lib"  # under this name inside the file
Answer = Callable[..., dict[str, np.ndarray]]
"""What an exported file does: its inputs, e.g. uint8 RGB [B, H, W, 3] -> {"score": [B], ...}."""


class Graph(nn.Module):
    """What becomes a file: the tensors of `examples` -> `outputs`, of which those are there that the detector knows."""

    normal: Tensor

    def __init__(
        self, decision: Decision | None, examples: Mapping[str, Tensor], axes: Sequence[str], about: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.decision, self.examples, self.outputs = decision, dict(examples), ()
        self.axes = axes  # the first ones of every input, which may have any length
        self.about = about  # the inputs in words
        normal = () if decision is None else decision.normal
        self.register_buffer("normal", torch.tensor(normal, dtype=torch.float64), persistent=False)

    outputs: tuple[str, ...]

    def answers(self, score: Tensor, maps: Tensor | None = None) -> tuple[Tensor, ...]:
        """Score [B], map [B, h, w], p_value [B] and anomalous [B]; a score that is NaN has no p-value."""
        answers = {"score": score}
        if maps is not None:
            answers["map"] = maps
        if self.decision is not None:
            exact = score.double()
            if self.decision.has_p_values:
                above = (self.normal >= exact[:, None]).sum(1)
                p_value = (1 + above).double() / (1 + self.normal.shape[0])
                answers["p_value"] = torch.where(exact.isnan(), exact, p_value)
            answers["anomalous"] = exact >= self.decision.threshold
        self.outputs = tuple(answers)
        return tuple(answers.values())


class ExportedFeatures(Graph):
    """The graph of a detector whose frozen networks run elsewhere."""

    def __init__(self, graph: FeatureGraph, decision: Decision | None) -> None:
        kinds = {name: str(one.dtype).removeprefix("torch.") for name, one in graph.examples.items()}
        about = {
            name: {"type": kinds[name], "shape": [AXES[0], *one.shape[1:]], "holds": graph.inputs[name]}
            for name, one in graph.examples.items()
        }
        super().__init__(decision, graph.examples, AXES[:1], {"inputs": about})
        self.scored = graph.module
        self.eval()
        with torch.no_grad():
            self(*graph.examples.values())  # names the outputs

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return self.answers(self.scored(*given))


class ExportedDetector(Graph):
    """uint8 RGB [B, H, W, 3] of any size -> what the detector answers."""

    def __init__(self, detector: ImageDetector) -> None:
        picture = {"name": INPUT, "type": "uint8", "shape": [*AXES, 3], "colours": "RGB, turned by EXIF orientation"}
        super().__init__(
            detector.decision,
            {INPUT: torch.randint(0, 256, (2, 61, 47, 3), dtype=torch.uint8)},
            AXES,
            {"input": picture, "preprocessing inside": detector.transform.describe()},
        )
        # The networks are held by plain objects; an exporter must see them as parts of the module.
        self.networks = nn.ModuleList(_networks(detector, set()))
        self.predict = detector.predict_through
        self.pixels: dict[ImageTransform, PixelTransform] = {}
        self.eval()
        self._complete()

    @torch.no_grad()
    def _complete(self) -> None:
        """Let everything that is computed on first use be computed now."""
        self(torch.zeros(1, 40, 40, 3, dtype=torch.uint8))
        for module in self.modules():
            if isinstance(module, MemoryBank):
                module.complete_table()
            if isinstance(module, AnomalyCLIP):  # the prompts are learned: their features are constants of the file
                module.text_features = partial(torch.clone, module.text_features())  # type: ignore[method-assign]

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        found = self.predict(lambda transform: self._pixels(transform)(given[0]))
        return self.answers(found.score, found.map)

    def _pixels(self, transform: ImageTransform) -> PixelTransform:
        if transform not in self.pixels:
            self.pixels[transform] = PixelTransform(transform)
        return self.pixels[transform]


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


def traced(module: Graph) -> torch.export.ExportedProgram:
    """The graph for any number of inputs, images of any size."""
    axes = {place: torch.export.Dim(name, min=1) for place, name in enumerate(module.axes)}
    shapes = (tuple(axes for _ in module.examples),)  # of the one argument that takes them all
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused operator that no other program knows
    try:
        with torch.no_grad():
            return torch.export.export(module, (*module.examples.values(),), dynamic_shapes=shapes, strict=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def onnx_model(module: Graph) -> Any:
    """The graph as an ONNX model (`onnx.ModelProto`) with named outputs."""
    needs("onnxscript", "export", "format=onnx")
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells of what it did not simplify
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            traced(module), (), input_names=list(module.examples), output_names=list(module.outputs), dynamo=True,
            verbose=False, external_data=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    symbols = [axis.dim_param for axis in model.graph.input[0].type.tensor_type.shape.dim[: len(module.axes)]]
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in symbols:
                axis.dim_param = AXES[symbols.index(axis.dim_param)]
    return model


def save_onnx(model: Any, path: Path, description: Mapping[str, Any]) -> None:
    """One file, weights and description (`metadata_props`) inside."""
    entry = next((one for one in model.metadata_props if one.key == DESCRIPTION), None) or model.metadata_props.add()
    entry.key, entry.value = DESCRIPTION, json.dumps(description)
    with atomic_file(path) as stream:
        stream.write(model.SerializeToString())


def save_torch(program: torch.export.ExportedProgram, path: Path, description: Mapping[str, Any]) -> None:
    """A torch.export program; the description is an extra file in it."""
    with atomic_file(path) as stream:
        torch.export.save(program, stream, extra_files={f"{DESCRIPTION}.json": json.dumps(description)})


def save_openvino(source: Path, path: Path) -> None:
    """An ONNX file as OpenVINO's pair, `path` (.xml) and its weights (.bin)."""
    needs("openvino", "openvino", "format=openvino")
    import openvino

    openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=False)


def needs(package: str, extra: str, asked: str) -> None:
    """Refuse what a package is missing for, with the command that installs it."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{asked} needs: pip install 'anomaly_lib[{extra}]'")


def load_exported(path: Path) -> Answer:
    """What the file itself answers: its inputs, e.g. uint8 RGB [B, H, W, 3] -> arrays by the names of its outputs."""
    if path.suffix == ".onnx":
        session, inputs, names = onnx_session(path)
        return lambda *given: dict(zip(names, session.run(names, dict(zip(inputs, given, strict=True))), strict=True))
    if path.suffix == ".xml":
        import openvino

        compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        named = {name: output for output in compiled.outputs for name in output.get_names() & OUTPUTS}

        def of_openvino(*given: np.ndarray) -> dict[str, np.ndarray]:
            found = compiled(list(given))
            return {name: found[output] for name, output in named.items()}

        return of_openvino
    files = {f"{DESCRIPTION}.json": ""}
    program = torch.export.load(path, extra_files=files).module()
    outputs = json.loads(files[f"{DESCRIPTION}.json"])["outputs"]

    def answer(*given: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = program(*map(torch.from_numpy, given))
        return {name: value.cpu().numpy() for name, value in zip(outputs, found, strict=True)}

    return answer
