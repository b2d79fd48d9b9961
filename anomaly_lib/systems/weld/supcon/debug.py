"""What --debug says about the first batch."""

from collections import Counter

import torch
from torch import Tensor

from anomaly_lib.systems.weld.data.manifest import CLASSES
from anomaly_lib.systems.weld.supcon.task import QuadTask


def describe_batch(
    task: QuadTask, batch: dict[str, Tensor], labels: Tensor, loss: Tensor, *, temperature: float
) -> list[str]:
    """Labels, features, similarities, positive pairs, the loss's inside and the gradients, as lines."""
    counts = Counter(CLASSES[int(c)] for c in labels)
    lines = ["labels: " + ", ".join(f"{name} {n}" for name, n in counts.items())]
    if len(counts) == 1:
        lines.append("warning: one class only, the contrastive loss has no negatives")
    with torch.no_grad():
        features = task.model(batch)["features"].float()
    finite = torch.isfinite(features)
    lines.append(
        f"features {list(features.shape)}: mean {features.mean():.4f}, std {features.std():.4f}, "
        f"min {features.min():.4f}, max {features.max():.4f}, not finite {int((~finite).sum())}"
    )
    cosine, distance = features[:5] @ features[:5].T, torch.cdist(features[:5], features[:5])
    for name, matrix in (("cosine", cosine), ("L2", distance)):
        lines += [f"{name}:", *("  " + " ".join(f"{v:6.3f}" for v in row) for row in matrix.tolist())]
    pairs = (labels[:, None] == labels[None, :]).sum() - len(labels)
    lonely = ((labels[:, None] == labels[None, :]).sum(1) == 1).sum()
    lines.append(f"positive pairs {int(pairs)}, anchors without a positive {int(lonely)}")
    logits = features @ features.T / temperature
    lines.append(
        f"logits / temperature: max {logits.max():.3f}, min {logits.min():.3f}; loss {float(loss.detach()):.4f}"
    )
    learning = [p for p in task.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True)
    found = [g for g in gradients if g is not None]
    norm = float(torch.stack([g.detach().float().norm() for g in found]).norm()) if found else 0.0
    lines.append(f"{len(found)} of {len(learning)} parameters have a gradient, total norm {norm:.4f}")
    return lines
