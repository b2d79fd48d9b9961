"""An epoch of SOWA, and how many of them transfer: measured on training classes that are left out in turn."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.backbones.clip import ClipBackbone
from anomaly_lib.data import Item, class_names
from anomaly_lib.engine.amp import autocast_for, make_scaler
from anomaly_lib.engine.distributed import epoch_batches
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups, step
from anomaly_lib.metrics import auroc, pixel_auroc
from anomaly_lib.models.sowa.model import AnomalyCLIP
from anomaly_lib.models.sowa.scores import sowa_loss
from anomaly_lib.systems.sowa.data import Taps
from anomaly_lib.systems.sowa.eval import make_model, score_items
from anomaly_lib.systems.sowa.options import Args

FOLDS = 3


@dataclass
class TrainingSet:
    """The images to learn from, their keys in the store and their truth."""

    items: Sequence[Item]
    keys: Sequence[str]
    labels: Tensor  # [N]
    masks: Tensor  # [N, H, W] bool

    @classmethod
    def of(cls, items: Sequence[Item], keys: Sequence[str], taps: Taps) -> "TrainingSet":
        """Read the truth of ``items``."""
        labels = torch.tensor([item.label for item in items])
        return cls(items, keys, labels, torch.stack([taps.mask(item) for item in items]))

    def rows_of(self, *names: str) -> Tensor:
        """Rows of the classes ``names``."""
        return torch.tensor([item.class_name in names for item in self.items]).nonzero().flatten()


def optimized(model: AnomalyCLIP, args: Args) -> list[dict[str, Any]]:
    """Parameter groups; the original also decays norms, biases and temperatures, and has one learning rate."""
    slow = args.learning_rate * float(1.0 if args.text_rate is None else args.text_rate)
    groups = param_groups(model, args.weight_decay, lr_of={"prompt_learner.": slow, "cross_fusion.": slow})
    return [{**group, "weight_decay": args.weight_decay} for group in groups] if args.decay == "all" else groups


def make_optimizer(model: AnomalyCLIP, args: Args) -> torch.optim.Optimizer:
    """AdamW over what is trained."""
    groups = optimized(model, args) or [{"params": [torch.zeros(1)]}]  # nothing trained: an optimizer of nothing
    return torch.optim.AdamW(groups, lr=args.learning_rate)


@dataclass
class Fitter:
    """What one epoch needs besides the data."""

    model: AnomalyCLIP
    taps: Taps
    optimizer: torch.optim.Optimizer
    args: Args

    def __post_init__(self) -> None:
        self.device = next(self.taps.clip.parameters()).device
        self.scaler, self.guard = make_scaler(self.device, self.args.precision), NonFiniteGuard()
        self.forward = torch.compile(self.model.from_taps) if self.args.compile else self.model.from_taps

    def epoch(self, data: TrainingSet, rows: Tensor, number: int) -> dict[str, float]:
        """One pass over ``rows`` of ``data``; mean losses, learning rate, seconds."""
        args, device = self.args, self.device
        self.model.train()
        started, sums = time.monotonic(), dict.fromkeys(("loss", "image", "focal", "dice"), 0.0)
        batches = epoch_batches(len(rows), args.batch_size, seed=args.seed, epoch=number)
        for places, _ in batches[: 1 if args.fast_dev_run else None]:
            here = rows[places]
            names = [data.items[int(row)].class_name for row in here]
            with autocast_for(device, args.precision):
                output = self.forward(self.taps.rows([data.keys[int(row)] for row in here]), names)
            losses = sowa_loss(
                output, data.labels[here].to(device), data.masks[here].to(device), paper=args.loss == "paper"
            )
            total = torch.stack(list(losses.values())).sum()
            step(total, self.optimizer, scaler=self.scaler, clip=args.grad_clip, guard=self.guard)
            for name, value in {**losses, "loss": total}.items():
                sums[name] += value.item() * len(here) / len(rows)
        rate = self.optimizer.param_groups[0]["lr"]
        return {**sums, "lr": rate, "seconds": time.monotonic() - started}


@torch.no_grad()
def calibrate(model: AnomalyCLIP, taps: Taps, data: TrainingSet, rows: Tensor, args: Args) -> None:
    """Fit the maps' scales and offsets and the stages' weights to the untrained model's answers on images ``rows``."""
    if args.map_calibration != "logistic":
        return
    model.eval()
    found, truth = [], []
    for here in rows.split(args.batch_size):
        names = [data.items[int(row)].class_name for row in here]
        found.append(model.patch_differences(taps.rows([data.keys[int(row)] for row in here]), names).flatten(1))
        share = F.adaptive_avg_pool2d(data.masks[here].float().unsqueeze(1), model.grid)  # [B, 1, h, w]
        truth.append(share.flatten())
    differences = torch.cat(found, dim=1)
    model.fit_calibration(differences, torch.cat(truth).to(differences.device))


# -- how long to train -------------------------------------------------------------------------------------------------


def transfer_curves(clip: ClipBackbone, taps: Taps, data: TrainingSet, args: Args) -> dict[str, list[float]]:
    """For every training class: how well it is told apart after 0, 1, ... epochs without it.

    Classes are left out one by one, or in three groups where there are more. The value is the mean of image and pixel
    AUROC. Nothing of the test classes is read, and no random number of the training that follows is used up.
    """
    names = class_names(data.items)
    groups = [names[start::FOLDS] for start in range(min(FOLDS, len(names)))]
    curves: dict[str, list[float]] = {}
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        for group in groups:
            model = make_model(args, clip)
            fitter = Fitter(model, taps, make_optimizer(model, args), args)
            learn = data.rows_of(*(name for name in names if name not in group))
            calibrate(model, taps, data, learn, args)
            curves |= {name: [class_value(model, taps, data, name, args)] for name in group}
            for number in range(args.epochs):
                fitter.epoch(data, learn, number)
                for name in group:
                    curves[name].append(class_value(model, taps, data, name, args))
    return curves


def class_value(model: AnomalyCLIP, taps: Taps, data: TrainingSet, name: str, args: Args) -> float:
    """Mean of image and pixel AUROC on the images of one class, zero-shot."""
    rows = data.rows_of(name)
    prediction = score_items(model, taps, [data.items[int(row)] for row in rows], {}, args)
    assert prediction.map is not None
    return (auroc(prediction.score, data.labels[rows]) + pixel_auroc(prediction.map, data.masks[rows])) / 2


def best_epochs(curves: Mapping[str, Sequence[float]]) -> int:
    """The number of epochs with the highest mean over the left-out classes; of equal ones the fewest."""
    means = torch.tensor(list(curves.values())).mean(0)
    return int((means >= means.max() - 1e-12).nonzero()[0])
