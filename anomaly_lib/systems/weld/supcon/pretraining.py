"""What V4 learns before its training, without labels: contrast of noisy views, or hidden parts rebuilt.

What is rebuilt are tokens (`masked`), or what was recorded (`pixels`), by encoders that learn.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.patches import PatchGrid
from anomaly_lib.data.samplers import BalancedBatchSampler, StratifiedBatchSampler
from anomaly_lib.engine.amp import autocast_for, make_scaler
from anomaly_lib.engine.checkpoint import Stateful
from anomaly_lib.engine.optim import step
from anomaly_lib.engine.seed import rng_state, set_rng_state
from anomaly_lib.losses.contrastive import supcon_loss
from anomaly_lib.models.weld.masked_patches import MaskedPatches
from anomaly_lib.models.weld.quad_config import MODALITIES
from anomaly_lib.models.weld.tasks import MaskedSensors, MaskedTokens, two_views
from anomaly_lib.systems.weld.costs import in_time
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.supcon.options import Args
from anomaly_lib.systems.weld.supcon.task import QuadTask, fit_scale, quad_batch


class Contrast(nn.Module):
    """SimCLR on two noisy views of the tokens of each run; blocks of encoders that learn receive its gradients."""

    def __init__(self, args: Args, task: QuadTask, features: WeldFeatures, names: Sequence[str]) -> None:
        super().__init__()
        self.args, self.model, self.features, self.names = args, task.model, features, names

    def forward(self, runs: Sequence[WeldRun]) -> Tensor:
        views = two_views(quad_batch(self.features, runs, training=True), self.names)
        seen = torch.stack([self.model(view)["features"] for view in views], dim=1)  # [B, 2, D]
        return supcon_loss(seen, temperature=self.args.temperature)


class Masked(nn.Module):
    """Masked auto-encoding of tokens and sensor steps; blocks of encoders that learn are left as they are: the tokens
    they make are the target.
    """

    def __init__(self, task: QuadTask, features: WeldFeatures, names: Sequence[str]) -> None:
        super().__init__()
        self.features, self.tasks = features, masked_tasks(task, names)

    def forward(self, runs: Sequence[WeldRun]) -> Tensor:
        with torch.no_grad():
            batch = quad_batch(self.features, runs, training=True)
        return torch.stack([part(batch) for part in self.tasks]).mean()


class Pixels(nn.Module):
    """Masked auto-encoding of recorded values, each modality by its own encoder; of the sensors by theirs."""

    def __init__(self, args: Args, task: QuadTask, features: WeldFeatures, names: Sequence[str]) -> None:
        super().__init__()
        self.features = features
        self.sensors = MaskedSensors(task.model.sensor) if "sensors" in names else None
        self.parts = nn.ModuleDict({n: self._task(n, args.pretrain_ratio) for n in names if n != "sensors"})

    def _task(self, name: str, ratio: float) -> MaskedPatches:
        encoders, settings = self.features.encoders, self.features.settings
        net, grey = encoders.nets[name], name == "audio" or (name == "video" and settings.video_norm == "half")
        grid = PatchGrid.of(net)

        def read(clips: Tensor) -> Tensor:
            with autocast_for(clips.device, self.features.precision):
                return encoders.patch_tokens(name, clips).float()

        values = grid.values(settings.video_frames if name == "video" else 1, 1 if grey else 3)
        return MaskedPatches(read, grid, width=net.width, values=values, ratio=ratio)

    def forward(self, runs: Sequence[WeldRun]) -> Tensor:
        losses = [part(self.features.clips(runs, name)) for name, part in self.parts.items()]
        if self.sensors is not None:
            losses.append(self.sensors({"sensors": self.features.clips(runs, "sensors")}))
        return torch.stack(losses).mean()


def pretrain(
    args: Args,
    task: QuadTask,
    features: WeldFeatures,
    runs: Sequence[WeldRun],
    sampler: StratifiedBatchSampler | BalancedBatchSampler,
    say: Callable[[str], object],
    *,
    done: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], object] = lambda _: None,
) -> None:
    """Epochs of what ``pretrain`` says, from the modalities of ``pretrain_on``.

    `keep` is given what a run needs to go on from here, beside `task`: every ``save_every`` epochs, and at the end.
    `done` is what it was given last by the run that is gone on with.
    """
    done = done or {"epochs": 0}
    if done["epochs"] == args.pretrain_epochs:
        set_rng_state(done["rng"])
        return
    names = [name for name in MODALITIES if name in args.pretrain_on]
    learner = learner_of(args, task, features, names).to(features.device)
    if isinstance(learner, Pixels):
        say(pixel_words(args, learner, runs))
    optimizer = optimizer_of(args, task, learner)
    scaler = make_scaler(features.device, args.precision)
    parts: dict[str, Stateful] = {"learner": learner, "optimizer": optimizer, "scaler": scaler}
    if done["epochs"]:
        for name, part in parts.items():
            part.load_state_dict(done[name])
        set_rng_state(done["rng"])
        say(f"{args.pretrain}: continuing after epoch {done['epochs']}")
    learner.train()
    for epoch in range(done["epochs"], args.pretrain_epochs):
        sampler.set_epoch(epoch)
        total, count = 0.0, 0
        for indices in sampler:
            loss = learner([runs[i] for i in indices])
            step(loss, optimizer, scaler=scaler, clip=args.grad_clip)
            total, count = total + float(loss.detach()), count + 1
        say(f"{args.pretrain} ({', '.join(names)}) epoch {epoch + 1}: loss {total / count:.4f}")
        if epoch + 1 < args.pretrain_epochs and (epoch + 1) % args.save_every == 0:
            states = {name: dict(part.state_dict()) for name, part in parts.items()}
            keep({"epochs": epoch + 1, "rng": rng_state(), **states})
    if isinstance(learner, Pixels) and args.scale_tokens:
        fit_scale(task, features, runs)  # the encoders' tokens are others now
    keep({"epochs": args.pretrain_epochs, "rng": rng_state()})


def learner_of(args: Args, task: QuadTask, features: WeldFeatures, names: Sequence[str]) -> nn.Module:
    """The module that makes a loss of runs."""
    if args.pretrain == "pixels":
        return Pixels(args, task, features, names)
    return Masked(task, features, names) if args.pretrain == "masked" else Contrast(args, task, features, names)


def optimizer_of(args: Args, task: QuadTask, learner: nn.Module) -> torch.optim.Optimizer:
    """AdamW; blocks of encoders at their own rate, where the learner passes gradients into them."""
    groups = [{"params": list(learner.parameters()), "lr": args.learning_rate}]
    if task.tops is not None and not isinstance(learner, Masked):
        low = [p for part, top in task.tops.items() if part in args.pretrain_on for p in top.parameters()]
        groups.append({"params": [p for p in low if p.requires_grad], "lr": args.encoder_lr})
    return torch.optim.AdamW(groups)


@torch.no_grad()
def pixel_words(args: Args, learner: Pixels, runs: Sequence[WeldRun]) -> str:
    """What the pre-training will take, by one run through it; random numbers to come stay what they are."""
    with torch.random.fork_rng():
        started = time.monotonic()
        learner(runs[:1])
        seconds = time.monotonic() - started
    epochs = args.pretrain_epochs
    return (
        f"cost: pretrain=pixels decodes and encodes {len(runs)} runs anew in each of {epochs} epochs: about "
        f"{in_time(epochs * len(runs) * seconds)}, and backward through the blocks that learn; nothing of it is stored"
    )


def masked_tasks(task: QuadTask, names: Sequence[str]) -> nn.ModuleList:
    """One task for the sensors' own steps, one for the tokens of the other modalities."""
    tokens = [name for name in names if name != "sensors"]
    tasks = nn.ModuleList()
    if "sensors" in names:
        tasks.append(MaskedSensors(task.model.sensor))
    if tokens:
        tasks.append(MaskedTokens(task.model, tokens))
    return tasks
