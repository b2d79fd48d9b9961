"""Tokenisers of the text towers: CLIP's byte-pair encoding (vocabulary inside open_clip) and a small word list."""

import re
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from anomaly_lib.errors import UserError


class Tokenizer(Protocol):
    """Texts in, padded token ids out."""

    end: int

    def __call__(self, texts: Sequence[str], *, context_length: int, truncate: bool = False) -> Tensor:
        """Token ids [N, context_length]."""
        ...

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that it cannot tell from one another."""
        ...


def pad_tokens(rows: Sequence[list[int]], texts: Sequence[str], *, context_length: int, truncate: bool) -> Tensor:
    """Zero-padded ids [N, context_length]; a cut row keeps its end-of-text token at the last place."""
    ids = torch.zeros(len(rows), context_length, dtype=torch.long)
    for index, row in enumerate(rows):
        if len(row) > context_length:
            if not truncate:
                raise UserError(f"text of {len(row)} tokens does not fit into {context_length}: {texts[index][:60]!r}")
            row = [*row[: context_length - 1], row[-1]]
        ids[index, : len(row)] = torch.tensor(row)
    return ids


class ClipTokenizer:
    """The byte-pair encoding of every CLIP; its vocabulary comes with open_clip, so no network is needed."""

    def __init__(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._bpe = SimpleTokenizer()
        self.start: int = self._bpe.sot_token_id
        self.end: int = self._bpe.eot_token_id

    def __call__(self, texts: Sequence[str], *, context_length: int, truncate: bool = False) -> Tensor:
        """Token ids [N, context_length]: start, text, end, zeros."""
        rows = [[self.start, *self._bpe.encode(text), self.end] for text in texts]
        return pad_tokens(rows, texts, context_length=context_length, truncate=truncate)

    def unknown_words(self, text: str) -> list[str]:  # noqa: ARG002  (byte pairs spell every word)
        """None."""
        return []


class WordTokenizer:
    """Whole words and punctuation marks from a fixed list; anything else becomes the unknown word.

    Id 0 pads, 1..len(words) are the words, then unknown, start and end of text (the largest, so that CLIP's arg-max
    pooling finds it).
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._ids = {word: index for index, word in enumerate(words, start=1)}
        self.unknown = len(words) + 1
        self.start = len(words) + 2
        self.end = len(words) + 3

    @property
    def vocab_size(self) -> int:
        """Rows the token embedding needs."""
        return self.end + 1

    def __call__(self, texts: Sequence[str], *, context_length: int, truncate: bool = False) -> Tensor:
        """Token ids [N, context_length]: start, words, end, zeros."""
        rows = []
        for text in texts:
            rows.append([self.start, *(self._ids.get(word, self.unknown) for word in _words(text)), self.end])
        return pad_tokens(rows, texts, context_length=context_length, truncate=truncate)

    def unknown_words(self, text: str) -> list[str]:
        """Words that are not in the list: all of them become one token."""
        return [word for word in _words(text) if word not in self._ids]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower())
