"""What the demo CLIP is trained for: every term by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anomaly_lib.backbones.clip_text import ClipText
from anomaly_lib.data.procedural import captions
from anomaly_lib.data.procedural.batches import Batch
from anomaly_lib.data.procedural.defects import DEFECT_NAMES
from anomaly_lib.data.procedural.pictures import MATERIALS, SURFACE
from anomaly_lib.recipes.demo_clip.model import encode_text, encode_windows

WEIGHTS = {"state": 1.0, "patch": 2.0, "vv": 1.5, "kind": 0.4, "material": 0.3, "caption": 0.5}


def balanced_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy over labels 0/1 (others ignored), damaged and clean weighted 1 : 2 in total."""
    each = F.binary_cross_entropy_with_logits(logits, labels.clamp_min(0).float(), reduction="none")
    damaged, clean = (labels == 1).float(), (labels == 0).float()
    return (each * damaged).sum() / damaged.sum().clamp_min(1) / 3 + (each * clean).sum() / clean.sum().clamp_min(
        1
    ) * 2 / 3


def losses(clip: Any, text: ClipText, batch: Batch, *, value_value: bool, precision: str) -> dict[str, Tensor]:
    """Every term of the objective by name."""
    pairs = len(batch.material)
    names = [captions.DEFECT_STATES[name][1].format("object") for name in DEFECT_NAMES]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        out = encode_windows(clip, batch.images, batch.offsets, value_value=value_value)
        words = encode_text(text, [*batch.texts, *names, *MATERIALS])
    scale = clip.logit_scale.exp().clamp(max=100)
    said, kinds, materials = words.split([2 * pairs, len(names), len(MATERIALS)])
    label = torch.where((batch.patches == 1).any(1), 1, torch.where((batch.patches == 0).all(1), 0, -1))  # [2P]
    # A third of the pairs borrow another pair's noun: "damaged" has to mean the same whatever the noun.
    order = torch.where(torch.rand(pairs) < 0.33, torch.randperm(pairs), torch.arange(pairs))
    direction = (said[pairs:] - said[:pairs])[order].repeat(2, 1)  # [2P, D] from "clean" to "damaged"
    result = {
        "state": balanced_bce(scale * (out["pooled"] * direction).sum(-1), label),
        "patch": balanced_bce(scale * torch.einsum("bnd,bd->bn", out["patches"], direction), batch.patches),
    }
    if value_value:
        result["vv"] = balanced_bce(scale * torch.einsum("bnd,bd->bn", out["vv"], direction), batch.patches)
    damaged = batch.patches == 1
    defect = batch.defect.repeat(2)[:, None].expand_as(damaged)[damaged]
    if len(defect):
        result["kind"] = F.cross_entropy(scale * out["patches"][damaged] @ kinds.T, defect)
    surface = (batch.object.repeat(2) == SURFACE)[:, None] & (batch.patches == 0)
    material = batch.material.repeat(2)[:, None].expand_as(surface)[surface]
    if len(material):
        result["material"] = F.cross_entropy(scale * out["patches"][surface] @ materials.T, material)
    result["caption"] = caption_loss(scale * out["pooled"] @ said.T, batch, label)
    return result


def caption_loss(logits: Tensor, batch: Batch, label: Tensor) -> Tensor:
    """Picture to caption and back; every caption that is true of a picture is a right answer."""
    pairs = len(batch.material)
    state = torch.cat([torch.zeros(pairs, dtype=torch.long), torch.ones(pairs, dtype=torch.long)])
    defect = torch.where(state == 1, batch.defect.repeat(2), -2)
    truth = torch.stack([batch.material.repeat(2), batch.object.repeat(2), state, defect], 1)  # [2P, 4]
    said = batch.text_attributes
    fits = ((truth[:, None] == said[None]) | (said[None] == -1)).all(-1).float()  # [picture, caption]
    seen = (label == state).float()  # a window without the damage is no picture of damage
    rows = -(fits / fits.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1)
    down = -(fits / fits.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0)
    return ((rows + down) * seen).sum() / (2 * seen.sum().clamp_min(1))
