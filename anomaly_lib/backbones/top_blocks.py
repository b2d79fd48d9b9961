"""The last blocks of a transformers encoder by themselves, so that they can learn while the rest stays frozen."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anomaly_lib.backbones.base import FrozenBackbone
from anomaly_lib.backbones.huggingface import FINAL_NORMS, HuggingFaceBackbone, block_list
from anomaly_lib.errors import UserError


class TopBlocks(nn.Module):
    """What `cut_top` takes off an encoder: its last blocks and, where an output needs it, the final norm.

    ``top(state)`` answers the encoder's outputs of the state [B, prefix + P, C] below these blocks. Eval mode always:
    published encoders are trained on without dropout, and a first step starts from the frozen outputs. `recompute`
    keeps only each block's input for backward.
    """

    def __init__(
        self, blocks: nn.ModuleList, norm: nn.Module, rope: nn.Module | None, *, first: int, prefix: int,
        outputs: Sequence[str],
    ) -> None:  # fmt: skip
        super().__init__()
        self.blocks, self.norm, self.rope = blocks, norm, rope
        self.first, self.prefix, self.outputs = first, prefix, tuple(outputs)
        self.recompute = False
        self.eval()

    def __repr__(self) -> str:
        return f"TopBlocks({self.first}..{self.first + len(self.blocks) - 1} -> {', '.join(self.outputs)})"

    def train(self, mode: bool = True) -> "TopBlocks":  # noqa: ARG002 - nn.Module's signature
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, state: Tensor, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """The asked outputs by name; `size`: height and width of the images, for encoders with rotary positions."""
        more: dict[str, Any] = {}
        if self.rope is not None:
            assert size is not None
            more["position_embeddings"] = self.rope(torch.empty(1, 3, *size, device=state.device))
        found: dict[str, Tensor] = {}
        for index, block in enumerate(self.blocks, start=self.first):
            state = self._run(block, state, more)
            found |= {f"layer.{index}": state[:, self.prefix :], f"prefix.{index}": state[:, : self.prefix]}
        tokens = self.norm(state)
        found |= {"tokens": tokens, "patch_tokens": tokens[:, self.prefix :]}
        return {name: found[name] for name in self.outputs}

    def _run(self, block: nn.Module, state: Tensor, more: dict[str, Any]) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            answer = checkpoint(block, state, use_reentrant=False, **more)
        else:
            answer = block(state, **more)
        return answer if isinstance(answer, Tensor) else answer[0]  # type: ignore[no-any-return]


def cut_top(backbone: FrozenBackbone, blocks: int) -> TopBlocks:
    """Take the last `blocks` blocks that `backbone` runs and its final norm off it.

    The backbone answers from now on the state below them as `tokens`, and what it was asked of lower blocks.
    """
    if not isinstance(backbone, HuggingFaceBackbone):
        raise UserError("its blocks cannot be trained: choose an encoder of transformers, e.g. dinov2-base")
    layers = block_list(backbone.net)
    if blocks > len(layers):
        raise UserError(f"encoder_blocks={blocks}: it runs {len(layers)} blocks for what is asked of it")
    first = len(layers) - blocks
    above = [name for name in backbone.outputs if _last_block(name, len(layers)) >= first]
    owner, _, name = FINAL_NORMS[backbone.family].rpartition(".")
    norm: nn.Module = nn.Identity()
    if {"tokens", "patch_tokens"} & set(above):
        norm = backbone.net.get_submodule(FINAL_NORMS[backbone.family])
    setattr(backbone.net.get_submodule(owner), name, nn.Identity())
    top = TopBlocks(
        layers[first:], norm, getattr(backbone.net, "rope_embeddings", None), first=first,
        prefix=backbone.prefix_tokens, outputs=above,
    )  # fmt: skip
    del layers[first:]
    backbone.ask(["tokens", *(name for name in backbone.outputs if name not in above)])
    return top


def _last_block(output: str, depth: int) -> int:
    """The block that ``layer.N`` or ``prefix.N`` ends behind; `depth` for outputs of the whole network."""
    number = output.rpartition(".")[2]
    return int(number) if number.isdigit() else depth
