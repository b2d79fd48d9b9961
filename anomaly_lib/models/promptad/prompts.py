"""PromptAD's prompts: learned contexts in front of a class name and its anomalous states, encoded as one token tree.

Token order: start | normal context | [abnormal context] | words | "." | end. Three groups:
normal  [n_pro]             N-context, class
manual  [n_states * n_pro]  N-context, state phrase filled with the class; state outer, N-context inner
learned [n_pro * n_pro_ab]  N-context, A-context, class

All prompts share beginnings (start, context, "bottle with ..."). The text tower is causal, so every distinct beginning
is computed once: see docs/manual/promptad.md for the token counts.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.models.promptad.config import PromptConfig
from anomaly_lib.models.promptad.states import class_text, state_templates


class TextTower(Protocol):
    """What is needed of a frozen text encoder (`anomaly_lib.backbones.clip_text.ClipText`)."""

    @property
    def width(self) -> int: ...
    @property
    def context_length(self) -> int: ...
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
    if pairing == "modulo":
        return [(i % n_pro, i % n_pro_ab) for i in range(n_pro * n_pro_ab)]
    return [(i, j) for j in range(n_pro_ab) for i in range(n_pro)]


def context_symbols(config: PromptConfig) -> list[Hashable]:
    """Every token of the learned contexts, row by row of [normal [n_pro, n_ctx]; abnormal [n_pro_ab, n_ctx_ab]]."""
    normal = [("normal", i, t) for i in range(config.n_pro) for t in range(config.n_ctx)]
    return [*normal, *(("abnormal", j, t) for j in range(config.n_pro_ab) for t in range(config.n_ctx_ab))]


def prompt_sequences(
    start: int, tails: Sequence[Sequence[int]], pairs: Sequence[tuple[int, int]], config: PromptConfig
) -> list[list[Hashable]]:
    """All prompts as symbols, in the order normal, manual, learned. `tails`: words of the class, then of its states."""

    def sequence(i: int, tail: Sequence[int], j: int | None = None) -> list[Hashable]:
        normal = [("normal", i, t) for t in range(config.n_ctx)]
        abnormal = [] if j is None else [("abnormal", j, t) for t in range(config.n_ctx_ab)]
        return [start, *normal, *abnormal, *tail]

    return [
        *(sequence(i, tails[0]) for i in range(config.n_pro)),
        *(sequence(i, tail) for tail in tails[1:] for i in range(config.n_pro)),
        *(sequence(i, tails[0], j) for i, j in pairs),
    ]


class PromptLearner(nn.Module):
    """The two learned contexts (the only trainable parameters of PromptAD) and the tree of prompts around them.

    ``learner(text)`` -> raw text features of the normal [n_pro, D], manual [n_states * n_pro, D] and learned
    [n_pro * n_pro_ab, D] prompts. Made from a `PromptConfig` or from its options as keywords.
    """

    base: Tensor
    node_row: Tensor
    positions: Tensor
    seen: Tensor
    ends: Tensor

    def __init__(
        self, config: PromptConfig | None = None, *, text: TextTower, class_name: str = "object", **options: Any
    ) -> None:
        super().__init__()
        config = configure(PromptConfig, config, options)
        self.words = class_text(class_name) if config.class_text is None else config.class_text
        self.normal_ctx = nn.Parameter(0.02 * torch.randn(config.n_pro, config.n_ctx, text.width))
        self.abnormal_ctx = nn.Parameter(0.02 * torch.randn(config.n_pro_ab, config.n_ctx_ab, text.width))
        states = state_templates(class_name, config.states)
        pairs = learned_pairs(config.n_pro, config.n_pro_ab, config.pairing)
        self.counts = (config.n_pro, len(states) * config.n_pro, len(pairs))

        ids = text.tokenize([f"{self.words}.", *(f"{state.format(self.words)}." for state in states)])
        ends = text.end_of_text(ids)
        tails = [row[1 : int(end) + 1].tolist() for row, end in zip(ids, ends, strict=True)]  # end token included
        self.sequences = prompt_sequences(int(ids[0, 0]), tails, pairs, config)
        if (longest := max(map(len, self.sequences))) > text.context_length:
            raise UserError(
                f"n_ctx={config.n_ctx}, n_ctx_ab={config.n_ctx_ab}: make a prompt of {longest} tokens, and the text "
                f"tower reads {text.context_length}"
            )
        tree = PromptTree(self.sequences)
        vocabulary = sorted({symbol for symbol in tree.symbols if isinstance(symbol, int)})
        # Rows of [vocabulary; normal contexts; abnormal contexts], as `forward` stacks them.
        rows = {symbol: row for row, symbol in enumerate([*vocabulary, *context_symbols(config)])}
        base = text.embed(torch.tensor(vocabulary, device=ids.device)).detach()  # [V, C]
        # Everything below follows from the texts: it is rebuilt, not stored in checkpoints.
        self.register_buffer("base", base, persistent=False)
        self.register_buffer("node_row", torch.tensor([rows[symbol] for symbol in tree.symbols]), persistent=False)
        self.register_buffer("positions", tree.positions, persistent=False)
        self.register_buffer("seen", tree.seen, persistent=False)
        self.register_buffer("ends", tree.ends, persistent=False)

    def forward(self, text: TextTower) -> tuple[Tensor, Tensor, Tensor]:
        """Raw text features of the normal [n_pro, D], manual and learned anomaly prompts."""
        rows = torch.cat([self.base, self.normal_ctx.flatten(0, 1), self.abnormal_ctx.flatten(0, 1)])
        features = text.encode_tree(rows[self.node_row], self.positions, self.seen, self.ends)
        normal, manual, learned = features.split(self.counts)
        return normal, manual, learned
