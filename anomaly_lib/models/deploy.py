"""Smaller and portable models: dynamic int8 linears, magnitude pruning, files that run without this library."""

import copy
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from anomaly_lib.errors import UserError
from anomaly_lib.files import atomic_file

NAMES = "names.json"  # of inputs and outputs, inside a torch.export file


class Int8Linear(nn.Module):
    """[..., in] -> [..., out] in int8: one scale a row of weights, activations quantised per call; what the file
    stores is what runs.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1).clamp_min(1e-8) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None

    def extra_repr(self) -> str:
        rows, columns = self.weight.shape
        return f"in_features={columns}, out_features={rows}, bias={self.bias is not None}"

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        step = flat.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
        whole = (flat / step).round().to(torch.int8)
        product = torch._int_mm(whole, self.weight.T) if _int_mm_fits(flat) else (whole.float() @ self.weight.T.float())
        out = product.float() * step * self.scale
        out = out if self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], -1)


def _int_mm_fits(x: Tensor) -> bool:
    """CUDA's integer product wants at least 17 rows and multiples of 8; the CPU takes anything."""
    return x.device.type == "cpu" or (x.shape[0] > 16 and x.shape[1] % 8 == 0)


def quantize_linears(model: nn.Module, *, smallest: int = 1024) -> nn.Module:
    """A copy of the model with every plain `nn.Linear` of at least `smallest` weights in int8."""
    model = copy.deepcopy(model).eval()
    for path, module in list(model.named_modules()):
        # nn.TransformerEncoderLayer and MultiheadAttention read `.weight` of their linears on a fused path
        if type(module) is nn.Linear and module.weight.numel() >= smallest:
            parent, _, child = path.rpartition(".")
            owner = model.get_submodule(parent)
            if not isinstance(owner, (nn.TransformerEncoderLayer, nn.MultiheadAttention)):
                setattr(owner, child, Int8Linear(module))
    return model


def prune_linears(model: nn.Module, amount: float, *, structured: bool = False) -> float:
    """Zero the smallest weights in place: `amount` of all (global, L1) or of each layer's rows (L2) -> sparsity."""
    if not 0 <= amount < 1:
        raise UserError(f"amount={amount}: must lie in [0, 1)")
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    if structured:
        for layer in layers:
            prune.ln_structured(layer, "weight", amount=amount, n=2, dim=0)  # type: ignore[no-untyped-call]
    else:
        prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=amount)  # type: ignore[no-untyped-call]
    for layer in layers:
        prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    weights = torch.cat([layer.weight.detach().flatten() for layer in layers])
    return float((weights == 0).float().mean())


class Positional(nn.Module):
    """A model that takes and returns dicts, with tensors in a fixed order instead: what exporters want."""

    def __init__(self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, tuple(inputs), tuple(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.model(dict(zip(self.inputs, tensors, strict=True)))
        return tuple(found[name] for name in self.outputs)


def export_torch(model: nn.Module, batch: Mapping[str, Tensor], outputs: Sequence[str]) -> Any:
    """`torch.export` program of a dict model for batches of any size; its inputs are those of `batch`, in order."""
    wrapped = Positional(model.eval(), list(batch), outputs)
    size = torch.export.Dim("batch", min=1)
    axes = tuple({0: size} for _ in batch)
    with torch.no_grad():
        return torch.export.export(wrapped, tuple(batch.values()), dynamic_shapes=(axes,), strict=False)


def write_model(model: nn.Module, batch: Mapping[str, Tensor], outputs: Sequence[str], path: Path) -> None:
    """A dict model as a file that runs without its code: a torch.export program (.pt2) or ONNX (.onnx).

    Inputs and outputs keep their names and their order; `batch` is an example of at least two samples.
    """
    program = export_torch(model, batch, outputs)
    if path.suffix == ".pt2":
        with atomic_file(path) as stream:
            torch.export.save(program, stream, extra_files={NAMES: json.dumps([list(batch), list(outputs)])})
        return
    if path.suffix != ".onnx":
        raise UserError(f"{path}: the name of an exported model ends in .pt2 or .onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations; the parity test guards the result
        made = torch.onnx.export(
            program, (), input_names=list(batch), output_names=list(outputs), dynamo=True, verbose=False,
            external_data=False,
        )  # fmt: skip
    assert made is not None
    with atomic_file(path) as stream:
        stream.write(made.model_proto.SerializeToString())


def onnx_session(path: Path) -> tuple[Any, list[str], list[str]]:
    """An ONNX file opened on the CPU with as many threads as torch has; names of its inputs, names of its outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, [one.name for one in session.get_inputs()], [one.name for one in session.get_outputs()]


def read_model(path: Path) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """What a file of `write_model` answers to a batch."""
    if path.suffix == ".onnx":
        session, wanted, answers = onnx_session(path)

        def of_onnx(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
            found = session.run(answers, {name: batch[name].numpy() for name in wanted})
            return {name: torch.from_numpy(value) for name, value in zip(answers, found, strict=True)}

        return of_onnx
    files = {NAMES: ""}
    program = torch.export.load(path, extra_files=files).module()
    inputs, outputs = json.loads(files[NAMES])

    def of_program(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(outputs, program(*(batch[name] for name in inputs)), strict=True))

    return of_program
