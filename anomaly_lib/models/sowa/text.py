"""SOWA's text side: learned (DualCoOp) and plain prompts, and the text tower with taps.

Legend: M class names, K phrasings of each, L tokens of a prompt, C width of the text tower, D of the joint space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa.config import PromptConfig
from anomaly_lib.models.sowa.phrases import PLAIN_SETS, PLAIN_STATES

C = TypeVar("C")
KINDS = ("normal", "anomaly")


class TextTower(Protocol):
    """What is needed of a frozen text tower (`backbones.clip_text.ClipText` is one)."""

    context_length: int

    @property
    def width(self) -> int: ...
    def tokenize(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor: ...
    def end_of_text(self, ids: Tensor) -> Tensor: ...
    def embed(self, ids: Tensor) -> Tensor: ...
    def encode_layers(
        self, embeddings: Tensor, end: Tensor, *, layers: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]: ...
    def encode_text(self, texts: Sequence[str]) -> Tensor: ...


def configured(cls: type[C], config: C | None, options: Mapping[str, Any]) -> C:
    """`configure`, where ``state_template={"normal": [...], "anomaly": [...]}`` may stand for the two lists."""
    options = dict(options)
    for kind, phrases in options.pop("state_template", {}).items():
        options[f"{kind}_templates"] = list(phrases)
    return configure(cls, config, options)


def check_names(text: TextTower, names: Sequence[str]) -> None:
    """Refuse class names that the tower reads alike: their classes would share their text features."""
    seen: dict[tuple[int, ...], str] = {}
    for name, row in zip(names, text.tokenize(list(names), truncate=True).tolist(), strict=True):
        if (other := seen.get(tuple(row))) is not None:
            raise UserError(f"class_names: {other!r} and {name!r} are the same words to this text tower; rename one")
        seen[tuple(row)] = name


class AnomalyPromptLearner(nn.Module):
    """DualCoOp: a learned context per class and phrasing, one for normal (`ctx_pos`) and one for anomaly (`ctx_neg`).

        prompts, ids = AnomalyPromptLearner(clip.text, class_names=["cup"], prompt_length=12)()

    Prompts read ``[start] context template(class) . [end]``; `forward` answers them as embeddings [2*M*K, L, C] and
    token ids [2*M*K, L]: normal ones first, then anomalies; inside each half class outer, phrasing inner. L reaches
    only as far as the longest prompt, because nothing behind the end of text is ever read. Options: `PromptConfig`.
    """

    ids: Tensor
    embedded: Tensor

    def __init__(self, text: TextTower, config: PromptConfig | None = None, **options: Any) -> None:
        super().__init__()
        c = self.config = configured(PromptConfig, config, options)
        check_names(text, c.class_names)
        filler = " ".join(["x"] * c.prompt_length)
        texts = [
            f"{filler} {phrase.format(name)}."
            for kind in KINDS
            for name in c.class_names
            for phrase in c.templates(kind)
        ]
        ids = text.tokenize(texts, truncate=c.truncate)
        ids = ids[:, : int(text.end_of_text(ids).max()) + 1]
        with torch.no_grad():
            self.register_buffer("embedded", text.embed(ids), persistent=False)
        self.register_buffer("ids", ids, persistent=False)
        shape = (len(c.class_names), len(c.templates("normal")), c.prompt_length, text.width)
        self.ctx_pos = nn.Parameter(torch.empty(shape).normal_(std=0.02))
        self.ctx_neg = nn.Parameter(torch.empty(shape).normal_(std=0.02))
        if c.start == "zero-shot" and c.context_words:
            self._start_as(text, c.context_words)

    def __repr__(self) -> str:
        m, k, length, width = self.ctx_pos.shape
        return (
            f"AnomalyPromptLearner({', '.join(self.config.class_names)}: {2 * m * k} prompts, "
            f"contexts of {length} tokens of width {width})"
        )

    @torch.no_grad()
    def _start_as(self, text: TextTower, words: str) -> None:
        """Let every context begin as `words`, repeated to fill it and ending right before the class."""
        ids = text.tokenize([words])
        spoken = text.embed(ids)[0, 1 : int(text.end_of_text(ids)[0])]  # [n, C]
        count = -(-self.config.prompt_length // len(spoken))
        for context in (self.ctx_pos, self.ctx_neg):
            context.copy_(spoken.repeat(count, 1)[-self.config.prompt_length :].expand_as(context))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Prompt embeddings and token ids, in the order described above."""
        context = torch.cat([self.ctx_pos.flatten(0, 1), self.ctx_neg.flatten(0, 1)])  # [2*M*K, n, C]
        after = self.embedded[:, 1 + self.config.prompt_length :]
        return torch.cat([self.embedded[:, :1], context.to(after.dtype), after], dim=1), self.ids


class PromptEncoder(nn.Module):
    """Plain prompts, nothing learned: states x templates, normalised, averaged to one vector per class and kind.

    `forward` answers [2*M, D], normal ones first. Options: `PromptConfig`.
    """

    features: Tensor

    def __init__(self, text: TextTower, config: PromptConfig | None = None, **options: Any) -> None:
        super().__init__()
        c = self.config = configured(PromptConfig, config, options)
        check_names(text, c.class_names)
        templates = PLAIN_SETS[c.plain_templates]
        rows = []
        for kind in KINDS:
            for name in c.class_names:
                texts = [template.format(state.format(name)) for state in PLAIN_STATES[kind] for template in templates]
                rows.append(F.normalize(F.normalize(text.encode_text(texts), dim=-1).mean(0), dim=0))
        self.register_buffer("features", torch.stack(rows), persistent=False)

    def __repr__(self) -> str:
        return f"PromptEncoder({', '.join(self.config.class_names)}: fixed {self.config.plain_templates} phrases)"

    def forward(self) -> Tensor:
        """Text features [2*M, D]."""
        return self.features


class TextMapEncoder(nn.Module):
    """The frozen text tower with taps: (features [N, D], tokens [N, L, C] of the blocks in `feature_map_idx`)."""

    def __init__(self, text: TextTower, *, feature_map_idx: Sequence[int] = (-1,)) -> None:
        super().__init__()
        self.text, self.feature_map_idx = text, tuple(feature_map_idx)

    def __repr__(self) -> str:
        return f"TextMapEncoder(frozen, width {self.text.width}, taps {list(self.feature_map_idx)})"

    def forward(self, prompts: Tensor, tokenized_prompts: Tensor) -> tuple[Tensor, list[Tensor]]:
        """prompts [N, L, C], tokenized_prompts [N, L]; gradients flow to the prompts."""
        end = self.text.end_of_text(tokenized_prompts)
        return self.text.encode_layers(prompts, end, layers=self.feature_map_idx)


class PromptTextEncoder(nn.Module):
    """Text features by class name: [B, 2, D] from learned prompts (with a text encoder) or plain ones (zero tuning)."""

    def __init__(
        self, prompts: AnomalyPromptLearner | PromptEncoder, text_encoder: TextMapEncoder | None = None
    ) -> None:
        super().__init__()
        if isinstance(prompts, AnomalyPromptLearner) and text_encoder is None:
            raise ValueError("learned prompts need a text_encoder")
        self.prompts, self.text_encoder = prompts, text_encoder

    def text_features(self) -> Tensor:
        """[2*M*K, D], normal ones first."""
        if isinstance(self.prompts, PromptEncoder):
            return self.prompts()
        assert self.text_encoder is not None
        return self.text_encoder(*self.prompts())[0]

    def forward(self, cls_names: Sequence[str]) -> Tensor:
        """The (normal, anomaly) pair of each name; an unknown name reads class 0."""
        names = self.prompts.config.class_names
        return pick_classes(pool_text_features(self.text_features(), len(names)), cls_names, names)


@dataclass(frozen=True)
class OneClass:
    """One class name for all images of a batch, however many."""

    name: str


def pool_text_features(features: Tensor, classes: int) -> Tensor:
    """[2*M*K, D] -> mean over the K phrasings [M, 2, D]."""
    return features.view(2, classes, -1, features.shape[-1]).mean(2).transpose(0, 1)


def pick_classes(pooled: Tensor, cls_names: Sequence[str], class_names: Sequence[str]) -> Tensor:
    """Rows [B, 2, D] of `pooled` [M, 2, D] for the names of a batch; class-agnostic prompts know one name only."""
    place = {name: index for index, name in enumerate(class_names)}
    return pooled[[place.get(name, 0) for name in _listed(cls_names)]]


def names_of_batch(cls_names: Sequence[str] | OneClass | None, batch: int) -> list[str]:
    """A class name for each of `batch` images; None stands for images of no known class."""
    if isinstance(cls_names, OneClass):
        return [cls_names.name]
    names = [""] * batch if cls_names is None else _listed(cls_names)
    if len(names) != batch:
        raise UserError(f"cls_name={names}: {len(names)} class names for {batch} images; give one for each image")
    return names


def _listed(cls_names: Sequence[str]) -> list[str]:
    if isinstance(cls_names, str):
        raise UserError(f"cls_name={cls_names!r}: takes a list, one class name for each image")
    return list(cls_names)
