"""Two extensions measured on recordings: finding a time shift, and learning from damage drawn into photos."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.metrics import auroc
from anomaly_lib.models.weld.temporal_aligner import fit_offset, resample_at
from anomaly_lib.systems.weld.data.defects import PHOTO_DEFECTS, damage_photo
from anomaly_lib.systems.weld.data.demo import SENSOR_HZ, VIDEO_HZ
from anomaly_lib.systems.weld.data.manifest import CLASSES, WeldRun
from anomaly_lib.systems.weld.data.media import photo_tensor
from anomaly_lib.systems.weld.data.runs import load_raw
from anomaly_lib.systems.weld.features import WeldFeatures

SHIFTS = (-1.3, -0.5, 0.4, 1.1, 2.05)  # seconds
CURRENT = 3  # column of the sensor series


def found_shifts(features: WeldFeatures, runs: Sequence[WeldRun]) -> dict[str, float]:
    """Built-in welds: delay the current by a known time and find it from the pool's brightness alone."""
    errors = []
    for run, shift in zip(runs, SHIFTS, strict=False):
        raw = load_raw(run, features.settings, ("video", "sensors"))
        assert raw.video is not None  # built-in welds lack nothing
        assert raw.sensors is not None
        light = torch.from_numpy(raw.video.astype(np.float32)).mean((1, 2))[None]  # [1, frames]
        current = torch.from_numpy(raw.sensors[:, CURRENT]).float()[None, :, None]
        late = resample_at(current, torch.arange(current.shape[1]) / SENSOR_HZ - shift, rate=SENSOR_HZ).squeeze(-1)
        errors.append(abs(fit_offset(light, late, query_rate=VIDEO_HZ, memory_rate=SENSOR_HZ) - shift))
    return {"runs": float(len(errors)), "mean_error_s": float(np.mean(errors)), "largest_error_s": max(errors)}


def synthetic_defect_probe(
    features: WeldFeatures, train: Sequence[WeldRun], test: Sequence[WeldRun], *, seed: int = 0
) -> dict[str, float]:
    """AUROC on real defects of a linear probe that saw only good photos and the same photos damaged by drawing."""
    rng = np.random.default_rng(seed)
    good = [run for run in train if not run.label]
    clean, drawn = photo_vectors(features, good), photo_vectors(features, good, rng)
    x, y = torch.cat([clean, drawn]), torch.cat([torch.zeros(len(clean)), torch.ones(len(drawn))])
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    probe = nn.Linear(x.shape[1], 1)
    nn.init.zeros_(probe.weight)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(probe((x - mean) / std).squeeze(1), y).backward()
        optimizer.step()
    asked = photo_vectors(features, test).unflatten(0, (len(test), -1))  # [N, V, D]
    scores = probe((asked - mean) / std).squeeze(-1).amax(1).detach()
    labels = torch.tensor([run.label for run in test])
    found = {"all": auroc(scores, labels)}
    for name in CLASSES[1:]:
        chosen = torch.tensor([run.label == 0 or run.class_name == name for run in test])
        if int(labels[chosen].sum()):
            found[name] = auroc(scores[chosen], labels[chosen])
    return found


@torch.no_grad()
def photo_vectors(features: WeldFeatures, runs: Sequence[WeldRun], rng: np.random.Generator | None = None) -> Tensor:
    """One vector per photo [N V, D]; with `rng`, each photo carries one drawn defect of a random kind."""
    s, rows = features.settings, []
    for run in runs:
        photos = list(load_raw(run, s, ("images",)).photos)
        if rng is not None:
            photos = [damage_photo(rng, photo, str(rng.choice(list(PHOTO_DEFECTS))))[0] for photo in photos]
        images, views = photo_tensor(tuple(photos), s.views, s.photo_size, normalise=not s.legacy_image_norm)
        batch = {"images": images[None].to(features.device), "views": views[None].to(features.device)}
        found = features.encoders.encode_images(batch)
        branches = [found[f"branch{i}"] for i in range(len(features.encoders.branches))]
        rows.append(torch.cat([branch.mean(2) for branch in branches], dim=-1)[0].cpu())  # [V, D]
    return torch.cat(rows)
