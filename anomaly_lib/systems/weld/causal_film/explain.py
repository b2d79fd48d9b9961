"""What `predict` says beside the score: how unusual each part of a weld is by itself, and where the networks look."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.engine.amp import autocast_for
from anomaly_lib.models.weld.causal_film import Encodings
from anomaly_lib.models.weld.causal_film_loss import anomaly_score
from anomaly_lib.systems.weld.causal_film.task import CausalFiLMTask
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.encoders import WeldEncoders
from anomaly_lib.systems.weld.features import WeldFeatures

Normal = Mapping[str, Mapping[str, Tensor]]
"""Mean and std [D] of each part's vector over the normal training runs."""
CHUNK = 16
PARTS = ("cosine", "l1")  # kinds of the score shown beside it


def vectors_of(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """One vector [B, D] for each modality: the mean token (photos: mean over branches' tokens and views)."""
    return {
        "video": batch["video"].mean(1),
        "audio": batch["audio"].mean(1),
        "sensors": batch["sensors"].flatten(1),
        "images": torch.cat([tokens.mean((1, 2)) for tokens in batch["images"]], dim=1),
    }


def parts_of(batch: Mapping[str, Any], out: Encodings) -> dict[str, Tensor]:
    """The vectors whose unusualness is told: of each modality, of the process and of the result."""
    return {**vectors_of(batch), "process": out.z_process, "result": out.z_result}


@torch.no_grad()
def fit_normal(task: CausalFiLMTask, features: WeldFeatures, runs: Sequence[WeldRun]) -> dict[str, dict[str, Tensor]]:
    """`Normal` of the runs a model was trained on."""
    found: dict[str, list[Tensor]] = {}
    features = features.seen_by(task.tops)
    for start in range(0, len(runs), CHUNK):
        batch = features.batch(runs[start : start + CHUNK])
        for name, vectors in parts_of(batch, task.model(batch)).items():
            found.setdefault(name, []).append(vectors.float().cpu())
    whole = {name: torch.cat(vectors) for name, vectors in found.items()}
    return {name: {"mean": v.mean(0), "std": v.std(0, unbiased=False)} for name, v in whole.items()}


def unusual(vectors: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """[B]: root mean square of the z-scores of vectors [B, D]; about 1 for a normal weld."""
    z = (vectors.float().cpu() - mean) / torch.where(std < 1e-6, torch.ones_like(std), std)
    return z.square().mean(1).sqrt()


@torch.no_grad()
def explain_runs(
    task: CausalFiLMTask, features: WeldFeatures, runs: Sequence[WeldRun], normal: Normal, *, precision: str
) -> dict[str, Tensor]:
    """`score`, `photos` (is there one?), each of `PARTS` and of `normal` [N], `attention.video|audio|view` [N, L]."""
    found: list[dict[str, Tensor]] = []
    features = features.seen_by(task.tops)
    for start in range(0, len(runs), CHUNK):
        batch = features.batch(runs[start : start + CHUNK])
        with autocast_for(features.device, precision):
            out = task.model(batch)
            looked = task.model.attention(batch)
        row = {kind: anomaly_score(out.z_result, out.z_pred, kind=kind) for kind in PARTS}
        row |= {"score": task.score(out), "photos": batch["views"].any(1)}
        row |= {name: unusual(v, **normal[name]) for name, v in parts_of(batch, out).items() if name in normal}
        row |= over_time(features.encoders, looked)
        found.append({name: value.float().cpu() for name, value in row.items()})
    return {name: torch.cat([row[name] for row in found]) for name in found[0]}


def over_time(encoders: WeldEncoders, looked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Attention to tokens [B, N] summed over what is not time, and to the views as it is."""
    return {
        "attention.video": encoders.video_over_time(looked["video"]),
        "attention.audio": encoders.audio_over_time(looked["audio"]),
        "attention.view": looked["view"],
    }
