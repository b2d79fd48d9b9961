"""PromptAD's prompts: learned contexts in front of a class name and its anomalous states, encoded as one token tree.

Token order: start | normal context | [abnormal context] | words | "." | end. Three groups:
normal  [n_pro]             N-context, class
manual  [n_states * n_pro]  N-context, state phrase filled with the class; state outer, N-context inner
learned [n_pro * n_pro_ab]  N-context, A-context, class

All prompts share beginnings (start, context, "bottle with ..."). The text tower is causal, so every distinct beginning
is computed once: see docs/manual/promptad.md for the token counts.
"""

from collections.abc import Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

PAIRINGS = ("all", "modulo")


class TextTower(Protocol):
    """What is needed of a frozen text encoder (`anomaly_lib.backbones.clip_text.ClipText`)."""

    @property
    def width(self) -> int: ...
    def tokenize(self, texts: Sequence[str]) -> Tensor: ...
    def end_of_text(self, ids: Tensor) -> Tensor: ...
    def embed(self, ids: Tensor) -> Tensor: ...
    def encode_tree(self, embeddings: Tensor, positions: Tensor, seen: Tensor, ends: Tensor) -> Tensor: ...


class PromptTree:
    """Sequences of symbols merged at their common beginnings."""

    def __init__(self, sequences: Sequence[Sequence[Hashable]]) -> None:
        self.symbols: list[Hashable] = []
        parents: list[int] = []
        depths: list[int] = []
        children: dict[tuple[int, Hashable], int] = {}
        ends = []
        for sequence in sequences:
            node = -1
            for symbol in sequence:
                key = (node, symbol)
                if key not in children:
                    children[key] = len(self.symbols)
                    depths.append(depths[node] + 1 if node >= 0 else 0)
                    parents.append(node)
                    self.symbols.append(symbol)
                node = children[key]
            ends.append(node)
        self.ends = torch.tensor(ends)  # [N]
        self.positions = torch.tensor(depths)  # [T]
        self.seen = torch.eye(len(parents), dtype=torch.bool)  # [T, T]
        for node, parent in enumerate(parents):
            if parent >= 0:
                self.seen[node] |= self.seen[parent]


def learned_pairs(n_pro: int, n_pro_ab: int, pairing: str) -> list[tuple[int, int]]:
    """(N-context, A-context) of every learned anomaly prompt, A-context outer.

    ``modulo`` is the original's expansion: row i pairs i mod n_pro with i mod n_pro_ab, which repeats pairs and misses
    others unless the two numbers are coprime; ``all`` makes every pair once.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing must be one of {PAIRINGS}, got {pairing!r}")
    if pairing == "modulo":
        return [(i % n_pro, i % n_pro_ab) for i in range(n_pro * n_pro_ab)]
    return [(i, j) for j in range(n_pro_ab) for i in range(n_pro)]


class PromptLearner(nn.Module):
    """The two learned contexts (the only trainable parameters of PromptAD) and the tree of prompts around them."""

    base: Tensor
    node_row: Tensor
    positions: Tensor
    seen: Tensor
    ends: Tensor

    def __init__(
        self,
        text: TextTower,
        *,
        class_text: str,
        states: Sequence[str],
        n_ctx: int = 4,
        n_ctx_ab: int = 1,
        n_pro: int = 3,
        n_pro_ab: int = 4,
        pairing: str = "all",
    ) -> None:
        super().__init__()
        if min(n_ctx, n_ctx_ab, n_pro, n_pro_ab) < 1:
            raise ValueError("n_ctx, n_ctx_ab, n_pro and n_pro_ab must be at least 1")
        self.normal_ctx = nn.Parameter(0.02 * torch.randn(n_pro, n_ctx, text.width))
        self.abnormal_ctx = nn.Parameter(0.02 * torch.randn(n_pro_ab, n_ctx_ab, text.width))
        pairs = learned_pairs(n_pro, n_pro_ab, pairing)
        self.counts = (n_pro, len(states) * n_pro, len(pairs))

        phrases = [f"{class_text}.", *(f"{state.format(class_text)}." for state in states)]
        ids = text.tokenize(phrases)
        ends = text.end_of_text(ids)
        words = [row[1 : int(end) + 1].tolist() for row, end in zip(ids, ends, strict=True)]  # end token included
        start = int(ids[0, 0])

        def sequence(i: int, tail: Sequence[int], j: int | None = None) -> list[Hashable]:
            normal = [("normal", i, t) for t in range(n_ctx)]
            abnormal = [] if j is None else [("abnormal", j, t) for t in range(n_ctx_ab)]
            return [start, *normal, *abnormal, *tail]

        self.sequences = (
            [sequence(i, words[0]) for i in range(n_pro)]
            + [sequence(i, tail) for tail in words[1:] for i in range(n_pro)]
            + [sequence(i, words[0], j) for i, j in pairs]
        )
        tree = PromptTree(self.sequences)
        vocabulary = sorted({symbol for symbol in tree.symbols if isinstance(symbol, int)})
        row: dict[Hashable, int] = {symbol: index for index, symbol in enumerate(vocabulary)}
        learned = len(vocabulary)
        for i in range(n_pro):
            row |= {("normal", i, t): learned + i * n_ctx + t for t in range(n_ctx)}
        learned += n_pro * n_ctx
        for j in range(n_pro_ab):
            row |= {("abnormal", j, t): learned + j * n_ctx_ab + t for t in range(n_ctx_ab)}
        base = text.embed(torch.tensor(vocabulary, device=ids.device)).detach()  # [V, C]
        # Everything below follows from the texts: it is rebuilt, not stored in checkpoints.
        self.register_buffer("base", base, persistent=False)
        self.register_buffer("node_row", torch.tensor([row[symbol] for symbol in tree.symbols]), persistent=False)
        self.register_buffer("positions", tree.positions, persistent=False)
        self.register_buffer("seen", tree.seen, persistent=False)
        self.register_buffer("ends", tree.ends, persistent=False)

    def forward(self, text: TextTower) -> tuple[Tensor, Tensor, Tensor]:
        """Raw text features of the normal [n_pro, D], manual and learned anomaly prompts."""
        rows = torch.cat([self.base, self.normal_ctx.flatten(0, 1), self.abnormal_ctx.flatten(0, 1)])
        features = text.encode_tree(rows[self.node_row], self.positions, self.seen, self.ends)
        normal, manual, learned = features.split(self.counts)
        return normal, manual, learned
