"""What the demo CLIP is trained for: every term by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_lib.backbones.clip_text import ClipText
from scripts.demo_backbone.model import encode_text, encode_windows
from scripts.demo_backbone.pictures import captions
from scripts.demo_backbone.pictures.batches import Batch
from scripts.demo_backbone.pictures.defects import DEFECT_NAMES
from scripts.demo_backbone.pictures.pictures import MATERIALS, PIECES, SURFACE

WEIGHTS = {
    "patch": 2.0,
    "vv": 1.0,
    "image": 1.0,
    "rank": 1.0,
    "memory": 1.5,
    "memory rank": 0.5,
    "kind": 0.3,
    "material": 0.15,
    "caption": 0.3,
}
OF_PICTURES = ("image", "rank", "memory rank")  # one answer a picture: too noisy to learn features from
WINDOW_SHARE = 0.3  # of their weight while windows are trained
EASY_SHARE = 0.3  # weight of a clean row that nobody would call damaged; one that everybody would has this plus 1
MEMORY_TAPS = (1, 3)  # blocks whose patches detectors keep
# Of the patches, that make the score of a picture. Text calls some parts of a thing unusual on every piece: the share
# has to leave room for the damage beside them. A memory knows the parts.
TEXT_SHARE, MEMORY_SHARE = 0.1, 0.02


class MemoryScale(nn.Module):
    """Where, per tapped block, a distance begins to mean damage; thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.full((len(MEMORY_TAPS),), 0.5))
        self.slope = nn.Parameter(torch.full((len(MEMORY_TAPS),), 8.0))


def weighted(parts: dict[str, Tensor], *, whole: bool) -> Tensor:
    """The total of a step on whole pictures, or on windows."""
    shares = {name: 1.0 if whole or name not in OF_PICTURES else WINDOW_SHARE for name in parts}
    return torch.stack([shares[name] * WEIGHTS[name] * part for name, part in parts.items()]).sum()


def balanced_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy over labels 0/1 (others ignored), both of equal weight in total.

    Clean rows count more the more they look damaged: most are plain background, few are the parts that mislead.
    """
    each = F.binary_cross_entropy_with_logits(logits, labels.clamp_min(0).float(), reduction="none")
    damaged, clean = (labels == 1).float(), (labels == 0) * (EASY_SHARE + logits.detach().sigmoid())
    rate = [(each * part).sum() / part.sum().clamp_min(EASY_SHARE) for part in (damaged, clean)]
    return (rate[0] + rate[1]) / 2


def strongest(scores: Tensor, share: float = MEMORY_SHARE) -> Tensor:
    """Mean of the highest `share` of patch scores [..., N] -> [...]."""
    return scores.topk(max(1, int(scores.shape[-1] * share)), dim=-1).values.mean(-1)


def rank_loss(scores: Tensor) -> Tensor:
    """Scores [C, K] of the pieces of products, the damaged one last: it should be above each of the others."""
    return F.softplus(scores[:, :-1] - scores[:, -1:]).mean()


def losses(
    clip: Any, text: ClipText, memory: MemoryScale, batch: Batch, *, value_value: bool, precision: str
) -> dict[str, Tensor]:
    """Every term of the objective by name."""
    products = len(batch.material)
    kinds = [captions.DEFECT_STATES[name][1].format("object") for name in DEFECT_NAMES]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        out = encode_windows(clip, batch.images, batch.offsets, value_value=value_value, taps=MEMORY_TAPS)
        words = encode_text(text, [*batch.texts, *kinds, *MATERIALS])
    out = {name: x.float().unflatten(0, (products, PIECES)) for name, x in out.items()}  # [C, K, ...]
    said, kind_words, material_words = words.split([2 * products, len(kinds), len(MATERIALS)])
    scale = clip.logit_scale.exp().clamp(max=100)
    # Nobody sees at one piece alone that a print is missing: such damage is left to the memory.
    seen = torch.where(batch.compared[:, None] & (batch.patches == 1), -1, batch.patches)  # [C, N]
    labels = torch.cat([torch.zeros_like(seen)[:, None].expand(-1, PIECES - 1, -1), seen[:, None]], 1)  # [C, K, N]
    label = torch.where((labels == 1).any(2), 1, torch.where((labels == 0).all(2), 0, -1))  # [C, K]
    # A third of the products borrow another one's noun: "damaged" has to mean the same whatever the noun.
    order = torch.where(torch.rand(products) < 0.33, torch.randperm(products), torch.arange(products))
    direction = (said[products:] - said[:products])[order]  # [C, D] from "clean" to "damaged"
    direction = (direction + direction.mean(0)) / 2  # one caption's template and noun say little about damage
    of_image = scale * torch.einsum("ckd,cd->ck", out["pooled"], direction)
    of_patch = scale * torch.einsum("cknd,cd->ckn", out["patches"], direction)
    result = {"patch": balanced_bce(of_patch, labels), "image": balanced_bce(of_image, label)}
    known = label[:, -1] == 1
    if known.any():
        result["rank"] = rank_loss(of_image[known]) + rank_loss(strongest(of_patch[known], TEXT_SHARE))
    if value_value:
        result["vv"] = balanced_bce(scale * torch.einsum("cknd,cd->ckn", out["vv"], direction), labels)
    result |= memory_losses(out, memory, batch.patches)
    damaged = seen == 1  # [C, N]
    if damaged.any():
        defect = batch.defect[:, None].expand_as(damaged)[damaged]
        result["kind"] = F.cross_entropy(scale * out["patches"][:, -1][damaged] @ kind_words.T, defect)
    surface = batch.object == SURFACE
    if surface.any():
        shown = out["patches"][surface, 0].mean(1)  # [C', D] of the first normal piece
        result["material"] = F.cross_entropy(scale * shown @ material_words.T, batch.material[surface])
    pair = out["pooled"][:, -2:].transpose(0, 1).flatten(0, 1)  # [2C, D], clean first
    result["caption"] = caption_loss(scale * pair @ said.T, batch, label[:, -2:].T.flatten())
    return result


def memory_distance(rows: Tensor) -> Tensor:
    """[C, K, N, D] -> [C, K - 1, N]: from each patch to the nearest one of the product's first, normal piece."""
    unit = F.normalize(rows, dim=-1)
    nearest = (unit[:, 1:].flatten(1, 2) @ unit[:, 0].transpose(1, 2)).amax(2)  # cosine
    return (2 - 2 * nearest).clamp_min(1e-6).sqrt().unflatten(1, (rows.shape[1] - 1, -1))


def memory_losses(out: dict[str, Tensor], memory: MemoryScale, patches: Tensor) -> dict[str, Tensor]:
    """Distances to the nearest patch of a normal piece: small for another normal one, large where it is damaged."""
    labels = torch.stack([torch.zeros_like(patches), patches], 1)  # [C, 2, N]
    seen = (patches == 1).any(1)
    each, rank = [], []
    for row, block in enumerate(MEMORY_TAPS):
        distance = memory_distance(out[f"layer.{block}"])
        logits = memory.slope[row] * (distance - memory.threshold[row])
        each.append(balanced_bce(logits, labels))
        if seen.any():
            rank.append(rank_loss(strongest(logits[seen])))
    result = {"memory": torch.stack(each).mean()}
    return result | ({"memory rank": torch.stack(rank).mean()} if rank else {})


def caption_loss(logits: Tensor, batch: Batch, label: Tensor) -> Tensor:
    """Picture to caption and back, [2C, 2C]; every caption that is true of a picture is a right answer."""
    products = len(batch.material)
    state = torch.arange(2).repeat_interleave(products)
    defect = torch.where(state == 1, batch.defect.repeat(2), -2)
    truth = torch.stack([batch.material.repeat(2), batch.object.repeat(2), state, defect], 1)  # [2C, 4]
    said = batch.text_attributes
    fits = ((truth[:, None] == said[None]) | (said[None] == -1)).all(-1).float()  # [picture, caption]
    seen = (label == state).float()  # a picture that does not show its damage is no picture of damage
    rows = -(fits / fits.sum(1, keepdim=True).clamp_min(1) * logits.log_softmax(1)).sum(1)
    down = -(fits / fits.sum(0, keepdim=True).clamp_min(1) * logits.log_softmax(0)).sum(0)
    return ((rows + down) * seen).sum() / (2 * seen.sum().clamp_min(1))
