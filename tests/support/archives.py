"""TorchScript archives with the names and shapes of a real one, as OpenAI ships CLIP."""

from pathlib import Path

import torch
from torch import Tensor, nn


class Tree(nn.Module):
    """A scriptable module whose parameters have given dotted names."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        inner: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            head, dot, rest = name.partition(".")
            if dot:
                inner.setdefault(head, {})[rest] = value
            else:
                self.register_parameter(head, nn.Parameter(value, requires_grad=False))
        for head, values in inner.items():
            self.add_module(head, Tree(values))

    def forward(self, x: Tensor) -> Tensor:
        return x


def save_archive(tensors: dict[str, Tensor], path: Path) -> None:
    """Script a module tree that holds ``tensors`` (and OpenAI's entries that are no weights)."""
    tree = Tree(tensors)
    tree.register_buffer("input_resolution", torch.tensor(64))
    tree.register_buffer("context_length", torch.tensor(77))
    torch.jit.script(tree).save(str(path))
