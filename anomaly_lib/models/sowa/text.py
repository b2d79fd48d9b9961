"""SOWA's text side: learned (DualCoOp) and plain prompts, and the text tower with taps."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.errors import UserError

STATE_TEMPLATE: Mapping[str, Sequence[str]] = {"normal": ("{}",), "anomaly": ("damaged {}",)}

# Eleven ways to speak of a photo, each with four states: the long lists of SOWA's configuration.
_PHOTOS = (
    "a photo of the {}",
    "a bright photo of the {}",
    "a dark photo of the {}",
    "a close-up photo of the {}",
    "a black and white photo of the {}",
    "a blurry photo of the {}",
    "a blurry photo of a {}",
    "a photo of the small {}",
    "a photo of the large {}",
    "there is the {} in the scene",
    "this is one {} in the scene",
)
LONG_TEMPLATE: Mapping[str, Sequence[str]] = {
    "normal": tuple(
        photo.format(state)
        for photo in _PHOTOS
        for state in ("{}", "flawless {}", "{} without flaw", "{} without defect")
    ),
    "anomaly": tuple(
        photo.format(state)
        for photo in _PHOTOS
        for state in ("damaged {}", "broken {}", "{} with flaw", "{} with defect")
    ),
}
PLAIN_STATES: Mapping[str, Sequence[str]] = {
    "normal": (
        "{}",
        "flawless {}",
        "perfect {}",
        "unblemished {}",
        "{} without flaw",
        "{} without defect",
        "{} without damage",
    ),
    "anomaly": ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage"),
}
PLAIN_TEMPLATES: Sequence[str] = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a cropped photo of the {}.",
    "{}",
)
# The 35 phrasings of CLIP-AC (WinCLIP's and APRIL-GAN's ensemble), for plain prompts.
_ENSEMBLE = (
    "bad photo of", "low resolution photo of", "cropped photo of", "bright photo of", "dark photo of",
    "close-up photo of", "black and white photo of", "jpeg corrupted photo of", "blurry photo of", "good photo of",
)  # fmt: skip
ENSEMBLE_TEMPLATES: Sequence[str] = (
    *(f"a {kind} {article} {{}}." for kind in _ENSEMBLE for article in ("a", "the")),
    *(f"a photo of {which} {{}}." for which in ("a", "the", "my", "one", "a cool", "the cool")),
    *(f"a photo of {which} {{}}." for which in ("a small", "the small", "a large", "the large")),
    *(f"there is {which} {{}} in the scene." for which in ("a", "the")),
    *(f"this is {which} {{}} in the scene." for which in ("a", "the", "one")),
)
PLAIN_SETS: Mapping[str, Sequence[str]] = {"short": PLAIN_TEMPLATES, "ensemble": ENSEMBLE_TEMPLATES}


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


def check_templates(template: Mapping[str, Sequence[str]]) -> None:
    """As many anomaly as normal phrasings: with 1 against 3 the original silently mixes the two."""
    normal, anomaly = template["normal"], template["anomaly"]
    if not normal or len(normal) != len(anomaly):
        raise UserError(
            f"prompt templates: {len(normal)} normal against {len(anomaly)} anomaly ones; give equal numbers"
        )
    for phrase in [*normal, *anomaly]:
        if "{}" not in phrase:
            raise UserError(f"prompt template {phrase!r} has no {{}} for the name of the object")


class AnomalyPromptLearner(nn.Module):
    """DualCoOp: a learned context per class and phrasing, one for normal and one for anomaly.

    Prompts read ``[start] context template(class) . [end]``; `forward` answers them as embeddings [2*M*K, L, C] and
    token ids [2*M*K, L]: normal ones first, then anomalies; inside each half class outer, phrasing inner. L reaches
    only as far as the longest prompt, because nothing behind the end of text is ever read.
    """

    ids: Tensor
    embedded: Tensor

    def __init__(
        self,
        text: TextTower,
        *,
        class_names: Sequence[str] = ("object",),
        prompt_length: int = 12,
        state_template: Mapping[str, Sequence[str]] = STATE_TEMPLATE,
        truncate: bool = False,
        initial_words: str = "",
    ) -> None:
        super().__init__()
        check_templates(state_template)
        self.class_names, self.prompt_length = tuple(class_names), prompt_length
        filler = " ".join(["x"] * prompt_length)
        texts = [
            f"{filler} {phrase.format(name)}."
            for kind in ("normal", "anomaly")
            for name in class_names
            for phrase in state_template[kind]
        ]
        ids = text.tokenize(texts, truncate=truncate)
        ids = ids[:, : int(text.end_of_text(ids).max()) + 1]
        with torch.no_grad():
            self.register_buffer("embedded", text.embed(ids), persistent=False)
        self.register_buffer("ids", ids, persistent=False)
        shape = (len(class_names), len(state_template["normal"]), prompt_length, text.width)
        self.ctx_pos = nn.Parameter(torch.empty(shape).normal_(std=0.02))
        self.ctx_neg = nn.Parameter(torch.empty(shape).normal_(std=0.02))
        if initial_words:
            self._start_as(text, initial_words)

    @torch.no_grad()
    def _start_as(self, text: TextTower, words: str) -> None:
        """Let every context begin as ``words``, repeated to fill it and ending right before the class."""
        ids = text.tokenize([words])
        spoken = text.embed(ids)[0, 1 : int(text.end_of_text(ids)[0])]  # [n, C]
        count = -(-self.prompt_length // len(spoken))
        for context in (self.ctx_pos, self.ctx_neg):
            context.copy_(spoken.repeat(count, 1)[-self.prompt_length :].expand_as(context))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Prompt embeddings and token ids, in the order described above."""
        context = torch.cat([self.ctx_pos.flatten(0, 1), self.ctx_neg.flatten(0, 1)])  # [2*M*K, n, C]
        after = self.embedded[:, 1 + self.prompt_length :]
        return torch.cat([self.embedded[:, :1], context.to(after.dtype), after], dim=1), self.ids


class PromptEncoder(nn.Module):
    """Plain prompts, nothing learned: states x templates, normalised, averaged to one vector per class and kind.

    `forward` answers [2*M, C], normal ones first.
    """

    features: Tensor

    def __init__(
        self,
        text: TextTower,
        *,
        class_names: Sequence[str] = ("object",),
        states: Mapping[str, Sequence[str]] = PLAIN_STATES,
        templates: Sequence[str] = PLAIN_TEMPLATES,
    ) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        rows = []
        for kind in ("normal", "anomaly"):
            for name in class_names:
                texts = [template.format(state.format(name)) for state in states[kind] for template in templates]
                rows.append(F.normalize(F.normalize(text.encode_text(texts), dim=-1).mean(0), dim=0))
        self.register_buffer("features", torch.stack(rows), persistent=False)

    def forward(self) -> Tensor:
        """Text features [2*M, C]."""
        return self.features


class TextMapEncoder(nn.Module):
    """The frozen text tower with taps: (features [N, C], tokens of the blocks in ``feature_map_idx``)."""

    def __init__(self, text: TextTower, *, feature_map_idx: Sequence[int] = (-1,)) -> None:
        super().__init__()
        self.text, self.feature_map_idx = text, tuple(feature_map_idx)

    def forward(self, prompts: Tensor, tokenized_prompts: Tensor) -> tuple[Tensor, list[Tensor]]:
        """prompts [N, L, C], tokenized_prompts [N, L]; gradients flow to the prompts."""
        end = self.text.end_of_text(tokenized_prompts)
        return self.text.encode_layers(prompts, end, layers=self.feature_map_idx)


class PromptTextEncoder(nn.Module):
    """Text features by class name: [B, 2, C] from learned prompts (with a text encoder) or plain ones (zero tuning)."""

    def __init__(
        self, prompts: AnomalyPromptLearner | PromptEncoder, text_encoder: TextMapEncoder | None = None
    ) -> None:
        super().__init__()
        if isinstance(prompts, AnomalyPromptLearner) and text_encoder is None:
            raise ValueError("learned prompts need a text_encoder")
        self.prompts, self.text_encoder = prompts, text_encoder

    def text_features(self) -> Tensor:
        """[2*M*K, C], normal ones first."""
        if isinstance(self.prompts, PromptEncoder):
            return self.prompts()
        assert self.text_encoder is not None
        return self.text_encoder(*self.prompts())[0]

    def forward(self, cls_names: Sequence[str]) -> Tensor:
        """The (normal, anomaly) pair of each name; an unknown name reads class 0."""
        return pick_classes(
            pool_text_features(self.text_features(), len(self.prompts.class_names)), cls_names, self.prompts.class_names
        )


def pool_text_features(features: Tensor, classes: int) -> Tensor:
    """[2*M*K, C] -> mean over the K phrasings [M, 2, C]."""
    return features.view(2, classes, -1, features.shape[-1]).mean(2).transpose(0, 1)


def pick_classes(pooled: Tensor, cls_names: Sequence[str], class_names: Sequence[str]) -> Tensor:
    """Rows [B, 2, C] of ``pooled`` [M, 2, C] for the names of a batch; class-agnostic prompts know one name only."""
    place = {name: index for index, name in enumerate(class_names)}
    return pooled[[place.get(name, 0) for name in cls_names]]
