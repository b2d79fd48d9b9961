"""Smaller and portable models: dynamic int8 linears, magnitude pruning, export with named inputs."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from anomaly_lib.errors import UserError


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
    """`torch.export` program of a dict model; call `.module()(*batch.values())`, save with `torch.export.save`."""
    wrapped = Positional(model.eval(), list(batch), outputs)
    return torch.export.export(wrapped, tuple(batch.values()), strict=False)


def export_torchscript(model: nn.Module, batch: Mapping[str, Tensor], outputs: Sequence[str]) -> Any:
    """TorchScript by tracing, for runtimes that have nothing newer."""
    wrapped = Positional(model.eval(), list(batch), outputs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns about every shape it fixes; the parity test guards the result
        return torch.jit.trace(wrapped, tuple(batch.values()), check_trace=False)  # type: ignore[no-untyped-call]
