"""Smaller ONNX files: the network of an exported detector in half precision or in whole numbers of eight bits."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_lib.errors import UserError
from anomaly_lib.evaluation.graph import INPUT

WEIGHED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def network_nodes(model: Any) -> list[str]:
    """Names of the nodes that lie in a network; preprocessing, search and decision keep their precision."""
    names = []
    for node in model.graph.node:
        scopes = {one.key: one.value for one in node.metadata_props}.get("namespace", "")
        if "/networks." in scopes:
            names.append(node.name)
    return names


def half_model(model: Any) -> Any:
    """The model with networks in float16; input and outputs stay as they are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    inside = set(network_nodes(model))
    others = [node.name for node in model.graph.node if node.name not in inside]
    return convert_float_to_float16(model, keep_io_types=True, node_block_list=others)


def int8_model(model: Any, normal: Sequence[np.ndarray]) -> Any:
    """The model with the products of its networks in int8.

    With pictures `normal` ([H, W, 3] uint8) the ranges of activations are measured on them (static quantisation);
    without any they are found anew in every call (dynamic).
    """
    import onnx
    from onnxruntime import quantization

    inside = set(network_nodes(model))
    nodes = [node.name for node in model.graph.node if node.name in inside and node.op_type in WEIGHED]
    if not nodes:
        raise UserError("precision=int8: this detector has no network whose products could be in int8")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        if normal:
            quantization.quantize_static(
                source, target, _Pictures(normal), nodes_to_quantize=nodes, per_channel=True,
                quant_format=quantization.QuantFormat.QDQ, activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
        else:
            quantization.quantize_dynamic(
                source, target, nodes_to_quantize=nodes, per_channel=True, weight_type=quantization.QuantType.QUInt8
            )
        return onnx.load(target)


class _Pictures:
    """Pictures as onnxruntime's calibration asks for them: one after the other, then None."""

    def __init__(self, pictures: Sequence[np.ndarray]) -> None:
        self._left: Iterator[np.ndarray] = iter(pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        picture = next(self._left, None)
        return None if picture is None else {INPUT: picture[None]}

    def __iter__(self) -> "_Pictures":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        found = self.get_next()
        if found is None:
            raise StopIteration
        return found
