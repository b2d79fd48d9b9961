"""CLIP's text tower: differentiable in its input embeddings, so that learned contexts can be trained through it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.attention import run_block
from anomaly_lib.backbones.tokenizer import Tokenizer
from anomaly_lib.errors import UserError


class ClipText:
    """Frozen causal text transformer over ``embeddings`` [N, L, C].

    The feature is read at the end-of-text token and attention is causal, so positions behind the last end of text in
    the batch cannot matter: they are never computed. Prompts of 10 tokens cost 10 positions, not 77.
    """

    def __init__(self, clip: Any, tokenizer: Tokenizer, *, pool: str = "argmax") -> None:
        # No module of its own: it reads the parts that belong to `clip`, wherever that has been moved to.
        self.tower = clip.text if hasattr(clip, "text") else clip
        self.context_length = int(self.tower.context_length)
        self.tokenizer = tokenizer
        self.pool = pool

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.tower.positional_embedding.shape[-1])

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.tower.transformer.resblocks)

    def tokenize(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
        """Token ids [N, context_length]; a text that does not fit is an error unless ``truncate``."""
        return self.tokenizer(texts, context_length=self.context_length, truncate=truncate).to(
            self.tower.token_embedding.weight.device
        )

    def check_words(self, text: str, remedy: str) -> None:
        """Refuse a text with words that the vocabulary lacks: every such word would read the same."""
        unknown = self.tokenizer.unknown_words(text)
        if unknown:
            raise UserError(
                f"{text!r}: this text tower's word list lacks {', '.join(map(repr, unknown))}, and all that it lacks "
                f"reads the same; give {remedy}"
            )

    def end_of_text(self, ids: Tensor) -> Tensor:
        """Position of the end-of-text token in each row of ``ids`` [N, L] -> [N]."""
        if self.pool == "argmax":
            return ids.argmax(dim=-1)
        return (ids == self.tokenizer.end).int().argmax(dim=-1)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings, positions not yet added: [N, L] -> [N, L, C]."""
        return self.tower.token_embedding(ids)

    def encode(self, embeddings: Tensor, end: Tensor) -> Tensor:
        """Text features [N, D] of ``embeddings`` [N, L, C] read at ``end`` [N]; gradients flow to the embeddings."""
        return self.encode_layers(embeddings, end, layers=())[0]

    def encode_layers(self, embeddings: Tensor, end: Tensor, *, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """`encode`, and the tokens [N, T, C] after each block in ``layers`` (T: the last end of text plus one)."""
        wanted = [layer % self.depth for layer in layers]
        x = self._positioned(embeddings[:, : int(end.max()) + 1])  # [N, T, C]
        taps: dict[int, Tensor] = {}
        for index, block in enumerate(self.tower.transformer.resblocks):
            x = run_block(block, x, causal=True)
            if index in wanted:
                taps[index] = x
        return self._read(x, end), [taps[index] for index in wanted]

    def encode_tree(self, embeddings: Tensor, positions: Tensor, seen: Tensor, ends: Tensor) -> Tensor:
        """`encode` for prompts merged into a tree of tokens: features [N, D] read at the nodes ``ends`` [N].

        ``embeddings`` [T, C] and ``positions`` [T] belong to the T nodes; node i reads node j where ``seen`` [T, T]
        (j is i or an ancestor of it). Causality makes this equal to encoding every prompt by itself.
        """
        x = (embeddings + self.tower.positional_embedding[positions].to(embeddings.dtype)).unsqueeze(0)  # [1, T, C]
        for block in self.tower.transformer.resblocks:
            x = run_block(block, x, seen=seen)
        return self._read(x.expand(len(ends), -1, -1), ends)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Features [N, D] of plain texts, each distinct text encoded once."""
        distinct = list(dict.fromkeys(texts))
        ids = self.tokenize(distinct)
        features = self.encode(self.embed(ids), self.end_of_text(ids))
        position = {text: row for row, text in enumerate(distinct)}
        return features[[position[text] for text in texts]]

    def _positioned(self, embeddings: Tensor) -> Tensor:
        length = embeddings.shape[1]
        if length > self.context_length:
            raise UserError(
                f"a prompt of {length} tokens does not fit the text tower's {self.context_length}; shorten it"
            )
        return embeddings + self.tower.positional_embedding[:length].to(embeddings.dtype)

    def _read(self, x: Tensor, end: Tensor) -> Tensor:
        pooled = self.tower.ln_final(x[torch.arange(len(x), device=x.device), end])  # [N, C]
        projection = self.tower.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
