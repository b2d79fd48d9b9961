"""How the named tensors of one sample lie in the bytes of one row."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_lib.errors import UserError

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Field:
    name: str
    shape: tuple[int, ...]  # of one sample
    dtype: torch.dtype
    start: int
    size: int  # bytes

    def empty(self, count: int) -> Tensor:
        return torch.empty((count, *self.shape), dtype=self.dtype)


@dataclass(frozen=True)
class RowLayout:
    """Fixed-size rows: every sample of a store has tensors of the same names and shapes."""

    fields: tuple[Field, ...]

    @property
    def row_bytes(self) -> int:
        return self.fields[-1].start + self.fields[-1].size

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of names, shapes, types and places."""
        return checksum_of(self.to_plain())

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> "RowLayout":
        """Layout of a batch [B, ...] per name; floating tensors are stored as `dtype`, others as they are."""
        if not tensors:
            raise UserError("an encoder must answer at least one named tensor")
        fields, start = [], 0
        for name, tensor in tensors.items():
            kept = dtype if tensor.is_floating_point() else tensor.dtype
            size = prod(tensor.shape[1:]) * kept.itemsize
            fields.append(Field(name, tuple(tensor.shape[1:]), kept, start, size))
            start += size
        return cls(tuple(fields))

    def pack(self, tensors: Mapping[str, Tensor]) -> Bytes:
        """[B, row_bytes]"""
        wrong = {f.name: f.shape for f in self.fields if f.name not in tensors or tensors[f.name].shape[1:] != f.shape}
        if wrong or len(tensors) != len(self.fields):
            given = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
            raise UserError(
                f"this feature store holds rows of {self.describe()}, the encoder answered {given}: "
                "encode at one fixed image size"
            )
        return np.concatenate([self.field_bytes(field, tensors[field.name]) for field in self.fields], axis=1)

    @staticmethod
    def field_bytes(field: Field, tensor: Tensor) -> Bytes:
        """[B, size] bytes of one tensor [B, ...]."""
        rows = tensor.detach().to("cpu", field.dtype).contiguous().reshape(len(tensor), -1)
        return rows.view(torch.uint8).numpy() if rows.numel() else np.zeros((len(tensor), field.size), np.uint8)

    def field(self, name: str) -> Field:
        for one in self.fields:
            if one.name == name:
                return one
        raise UserError(f"no stored feature {name!r}; this store has {', '.join(one.name for one in self.fields)}")

    def describe(self) -> str:
        return ", ".join(f"{f.name} {list(f.shape)} {str(f.dtype).removeprefix('torch.')}" for f in self.fields)

    def to_plain(self) -> list[dict[str, Any]]:
        return [
            {
                "name": f.name,
                "shape": list(f.shape),
                "dtype": str(f.dtype).removeprefix("torch."),
                "start": f.start,
                "size": f.size,
            }
            for f in self.fields
        ]

    @classmethod
    def from_plain(cls, plain: list[dict[str, Any]]) -> "RowLayout":
        return cls(
            tuple(Field(f["name"], tuple(f["shape"]), getattr(torch, f["dtype"]), f["start"], f["size"]) for f in plain)
        )


def checksum_of(plain: object) -> int:
    """CRC-32 of a layout's plain form."""
    return zlib.crc32(json.dumps(plain).encode())


def as_bytes(tensor: Tensor) -> Bytes:
    """[N, size] writable view of the bytes of a contiguous tensor [N, ...]."""
    return tensor.reshape(len(tensor), -1).view(torch.uint8).numpy()
