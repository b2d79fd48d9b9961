"""Small trainable additions to frozen linear layers: LoRA and bottleneck adapters, both the identity at step 0."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.errors import UserError


class LoRALinear(nn.Module):
    """[..., in] -> [..., out]: W x + b + (alpha / r) B A x; W and b frozen, A Kaiming-uniform, B zero."""

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if rank < 1:
            raise UserError(f"rank={rank}: must be at least 1")
        self.base = base.requires_grad_(False)
        self.scale = (rank if alpha is None else alpha) / rank
        like = base.weight
        self.down = nn.Parameter(torch.empty(rank, base.in_features, dtype=like.dtype, device=like.device))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, dtype=like.dtype, device=like.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)
        self.merged = False

    def extra_repr(self) -> str:
        return f"rank={len(self.down)}, merged={self.merged}"

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return self.base(x)  # type: ignore[no-any-return]
        return self.base(x) + self.scale * (self.dropout(x) @ self.down.T @ self.up.T)  # type: ignore[no-any-return]

    @torch.no_grad()
    def merge(self) -> None:
        """Add B A into W: no cost at inference."""
        if not self.merged:
            self.base.weight += self.scale * (self.up @ self.down)
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        if self.merged:
            self.base.weight -= self.scale * (self.up @ self.down)
            self.merged = False


class BottleneckAdapter(nn.Module):
    """[..., in] -> [..., out]: the frozen layer's output plus up(GELU(down(output))); `up` starts at zero."""

    def __init__(self, base: nn.Linear, *, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.out_features, rank), nn.Linear(rank, base.out_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        return out + self.up(torch.nn.functional.gelu(self.down(out)))  # type: ignore[no-any-return]


MAKERS = {"lora": LoRALinear, "adapter": BottleneckAdapter}


def add_adapters(
    model: nn.Module, names: Sequence[str], *, kind: str = "lora", rank: int = 8, alpha: float | None = None
) -> list[str]:
    """Replace each `nn.Linear` whose path contains one of `names`; returns the replaced paths. `alpha`: of LoRA."""
    if kind not in MAKERS:
        raise UserError(f"kind={kind}: choose from {', '.join(MAKERS)}")
    options: dict[str, Any] = {"rank": rank} if alpha is None else {"rank": rank, "alpha": alpha}
    replaced = []
    for path, module in list(model.named_modules()):
        if type(module) is not nn.Linear or not any(name in path for name in names):
            continue
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, MAKERS[kind](module, **options))
        replaced.append(path)
    if not replaced:
        raise UserError(f"no linear layer matches {', '.join(names)}")
    return replaced


def merge_adapters(model: nn.Module) -> None:
    """Fold every LoRA into its layer and put the plain layer back: the model has its original keys again."""
    for path, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            module.merge()
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, module.base)
