"""A text encoder without weights: hashed words, word pairs and character triples. Offline stand-in for BERT.

Deterministic on every machine, thousands of texts a second, and honest about what it is: a bag of n-grams. It answers
the same named tensors as the BERT encoder (`encode_texts`), so either serves the crystal system.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

EMBED_DIM = 768
_NORM = 16.0  # about the length of a BERT CLS vector
_WORD = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*|\d+(?:\.\d+)?|[^\sA-Za-z\d]")
_STOP = frozenset(
    ["a", "an", "and", "are", "by", "in", "is", "of", "on", "the", "there", "to", "with", ".", ",", "(", ")"]
)


def words_of(text: str) -> list[str]:
    """Lower-cased words, numbers and signs."""
    return _WORD.findall(text.lower())


def _grams(words: Sequence[str]) -> Iterable[str]:
    kept = [word for word in words if word not in _STOP]
    yield from kept
    yield from (f"{a} {b}" for a, b in pairwise(kept))
    for word in kept:
        padded = f"<{word}>"
        yield from (padded[i : i + 3] for i in range(len(padded) - 2))


def _hashed(grams: Iterable[str]) -> Tensor:
    vector = [0.0] * EMBED_DIM
    for gram, count in Counter(grams).items():
        code = zlib.crc32(gram.encode())
        vector[code % EMBED_DIM] += (1.0 if code & 0x80000000 else -1.0) * (1.0 + math.log(count))
    out = torch.tensor(vector)
    return out * (_NORM / out.norm().clamp_min(1e-6))


@lru_cache(maxsize=65536)
def _word_vector(word: str) -> Tensor:
    return _hashed(_grams([word]) if word not in _STOP else [word])


class HashedTextEncoder:
    """``encode_texts`` as the BERT encoder has it: ``pooled`` [B, 768], ``tokens`` [B, L, 768], ``attention_mask``."""

    name = "hashed-text"
    weights_id = "hashed-text-1"  # changes when a vector would change
    embed_dim = EMBED_DIM

    def __init__(self, outputs: Sequence[str] = ("pooled",)) -> None:
        self.outputs = tuple(outputs)

    def encode_texts(self, texts: Sequence[str], *, max_length: int = 512) -> dict[str, Tensor]:
        """Position 0 of ``tokens`` is the whole text (the CLS of this encoder), then one row a word."""
        split = [words_of(text) for text in texts]
        found = {"pooled": torch.stack([_hashed(_grams(words)) for words in split])}
        lengths = torch.tensor([min(len(words) + 1, max_length) for words in split])
        found["attention_mask"] = (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).long()
        if "tokens" in self.outputs:
            tokens = torch.zeros(len(split), int(lengths.max()), EMBED_DIM)
            for row, words in enumerate(split):
                rows = [found["pooled"][row], *(_word_vector(word) for word in words[: max_length - 1])]
                tokens[row, : len(rows)] = torch.stack(rows)
            found["tokens"] = tokens
        return {name: found[name] for name in (*self.outputs, "attention_mask")}
