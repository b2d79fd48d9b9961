"""What Causal-FiLM trains, as one module, and its answers for runs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.engine.amp import autocast_for
from anomaly_lib.models.weld.causal_film import CausalFiLM, Encodings
from anomaly_lib.models.weld.causal_film_loss import CausalFiLMLoss, anomaly_score, collapse_monitor
from anomaly_lib.models.weld.config import CausalScoreArgs
from anomaly_lib.systems.weld.causal_film.options import Args
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.features import WeldFeatures

TERMS = ("loss", "cos", "l1", "gram", "text")


class CausalFiLMTask(nn.Module):
    """Model, loss and learning blocks as one module: what is trained, averaged, wrapped by DDP and saved."""

    def __init__(
        self, model: CausalFiLM, criterion: CausalFiLMLoss, config: CausalScoreArgs, tops: nn.ModuleDict | None = None
    ) -> None:
        super().__init__()
        self.model, self.criterion, self.config = model, criterion, config
        self.tops = tops  # the encoders' blocks that learn; `features.seen_by(task.tops)` is what the model reads

    def forward(self, batch: dict[str, Any], slow: Encodings | None = None) -> dict[str, Tensor]:
        """Every loss term; `slow` are the averaged model's encodings, the targets of ``ema_target``."""
        out = self.model(batch)
        mode = self.config.target_mode
        if mode == "ema_target" and slow is not None:
            pulled = self.criterion(slow.z_result, out.z_pred)
            pulling = self.criterion(out.z_result, slow.z_pred)
            terms = {name: (pulled[name] + pulling[name]) / 2 for name in pulled}
        else:
            terms = self.criterion(out.z_result if mode == "joint" else out.z_result.detach(), out.z_pred)
        return {**terms, "score": self.score(out).detach(), "z_result": out.z_result.detach()}

    @property
    def fixed(self) -> nn.Module | None:
        """The part that no gradient reaches: with a fixed target the result encoder, GeM's exponents included."""
        return self.model.result if self.config.target_mode == "stopgrad" else None

    def score(self, out: Encodings) -> Tensor:
        """The anomaly score [B]."""
        c = self.config
        return anomaly_score(out.z_result, out.z_pred, kind=c.score_kind, topk_ratio=c.score_topk)


def build(args: Args, features: WeldFeatures, *, text: Tensor | None) -> CausalFiLMTask:
    """The trainable part for these encoders; `text` [T] is the CLIP embedding of "a normal weld"."""
    criterion = CausalFiLMLoss(args, d_model=args.d_model, text=text)
    encoders = features.encoders
    model = CausalFiLM(args, **features.dims(), **encoders.clocks)
    return CausalFiLMTask(model, criterion, args, encoders.learning_copy(args)).to(features.device)


@torch.no_grad()
def measure_runs(
    task: CausalFiLMTask, features: WeldFeatures, runs: Sequence[WeldRun], *, batch_size: int, precision: str
) -> dict[str, Tensor]:
    """Scores [N], mean loss terms [] and the collapse figure [] of runs, in eval mode."""
    was_training, features = task.training, features.seen_by(task.tops)
    task.eval()
    parts = []
    for start in range(0, len(runs), batch_size):
        batch = features.batch(runs[start : start + batch_size])
        with autocast_for(features.device, precision):
            parts.append({name: value.float().cpu() for name, value in task(batch).items()})
    task.train(was_training)
    sizes = torch.tensor([float(len(part["score"])) for part in parts])
    out = {name: (torch.stack([part[name] for part in parts]) * sizes).sum() / sizes.sum() for name in TERMS}
    out["score"] = torch.cat([part["score"] for part in parts])
    out["collapse"] = torch.tensor(collapse_monitor(torch.cat([part["z_result"] for part in parts])))
    return out


@torch.no_grad()
def score_runs(
    task: CausalFiLMTask, features: WeldFeatures, runs: Sequence[WeldRun], *, batch_size: int, precision: str
) -> Tensor:
    """Anomaly scores [N] of runs on the CPU; `task` is in eval mode."""
    found, features = [], features.seen_by(task.tops)
    for start in range(0, len(runs), batch_size):
        batch = features.batch(runs[start : start + batch_size])
        with autocast_for(features.device, precision):
            found.append(task.score(task.model(batch)).float().cpu())
    return torch.cat(found)
