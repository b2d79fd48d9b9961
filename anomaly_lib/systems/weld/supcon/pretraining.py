"""What V4 learns before its training, without labels: contrast of noisy views, or hidden tokens and sensor steps."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from anomaly_lib.data.samplers import BalancedBatchSampler, StratifiedBatchSampler
from anomaly_lib.engine.optim import step
from anomaly_lib.losses.contrastive import supcon_loss
from anomaly_lib.models.weld.quad_config import MODALITIES
from anomaly_lib.models.weld.tasks import MaskedSensors, MaskedTokens, two_views
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.supcon.options import Args
from anomaly_lib.systems.weld.supcon.task import QuadTask, quad_batch


def pretrain(
    args: Args,
    task: QuadTask,
    features: WeldFeatures,
    runs: Sequence[WeldRun],
    sampler: StratifiedBatchSampler | BalancedBatchSampler,
    say: Callable[[str], object],
) -> None:
    """SimCLR on two noisy views of each run, or masked auto-encoding, from the modalities of ``pretrain_on``."""
    names = [name for name in MODALITIES if name in args.pretrain_on]
    masked = masked_tasks(task, names if args.pretrain == "masked" else []).to(features.device)
    learner: nn.Module = masked if args.pretrain == "masked" else task.model
    optimizer = torch.optim.AdamW(learner.parameters(), lr=args.learning_rate)
    learner.train()
    for epoch in range(args.pretrain_epochs):
        sampler.set_epoch(epoch)
        total, count = 0.0, 0
        for indices in sampler:
            with torch.no_grad():  # blocks of an encoder that learn are left to the main training
                batch = quad_batch(features, [runs[i] for i in indices], training=True)
            if args.pretrain == "masked":
                loss = torch.stack([part(batch) for part in masked]).mean()
            else:
                seen = [task.model(view)["features"] for view in two_views(batch, names)]
                loss = supcon_loss(torch.stack(seen, dim=1), temperature=args.temperature)  # of [B, 2, D]
            step(loss, optimizer, clip=args.grad_clip)
            total, count = total + float(loss.detach()), count + 1
        say(f"{args.pretrain} ({', '.join(names)}) epoch {epoch + 1}: loss {total / count:.4f}")


def masked_tasks(task: QuadTask, names: Sequence[str]) -> nn.ModuleList:
    """One task for the sensors' own steps, one for the tokens of the other modalities."""
    tokens = [name for name in names if name != "sensors"]
    tasks = nn.ModuleList()
    if "sensors" in names:
        tasks.append(MaskedSensors(task.model.sensor))
    if tokens:
        tasks.append(MaskedTokens(task.model, tokens))
    return tasks
