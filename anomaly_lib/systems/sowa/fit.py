"""What an epoch of SOWA works with: images with truth, a model with its optimizer, the calibration of its maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.data import Item
from anomaly_lib.engine.amp import autocast_for, make_scaler
from anomaly_lib.engine.optim import NonFiniteGuard, param_groups
from anomaly_lib.errors import UserError
from anomaly_lib.metrics import auroc
from anomaly_lib.models.sowa.model import AnomalyCLIP
from anomaly_lib.models.sowa.scores import sowa_loss
from anomaly_lib.systems.sowa.options import Args
from anomaly_lib.systems.sowa.taps import Taps


@dataclass
class TrainingSet:
    """The images (or tiles, those of an image beside one another) to learn from, their keys and their truth."""

    items: Sequence[Item]  # the image of each
    keys: Sequence[str]
    labels: Tensor  # [N]
    masks: Tensor  # [N, H, W] bool
    each: int = 1  # tiles of an image

    @classmethod
    def of(cls, items: Sequence[Item], keys: Sequence[str], taps: Taps) -> "TrainingSet":
        """Read the truth of `items`."""
        masks, each = torch.cat([taps.tile_masks(item) for item in items]), len(taps.tiles)
        labels = torch.tensor([item.label for item in items])
        if each > 1:  # a tile without a defect is a normal one
            labels = masks.flatten(1).any(1).long()
        return cls([item for item in items for _ in range(each)], keys, labels, masks, each)

    def at(self, rows: Tensor) -> "TrainingSet":
        """These images alone."""
        places = rows.tolist()
        items, keys = ([values[place] for place in places] for values in (self.items, self.keys))
        return TrainingSet(items, keys, self.labels[rows], self.masks[rows], self.each)

    def divided(self, share: float, seed: int) -> tuple[Tensor, Tensor]:
        """Rows to learn from and rows that are kept from it: `share` of the images of each class and label."""
        generator, images = torch.Generator().manual_seed(seed), self.items[:: self.each]
        kinds: dict[tuple[str, int], list[int]] = {}
        for row, item in enumerate(images):
            kinds.setdefault((item.class_name, item.label), []).append(row)
        kept = torch.zeros(len(images), dtype=torch.bool)
        for rows in kinds.values():
            order = torch.randperm(len(rows), generator=generator)
            kept[torch.tensor(rows)[order[: round(share * len(rows))]]] = True
        if share and (kept.all() or not kept.any()):
            raise UserError(f"validation_share={share:g}: of {len(images)} images {int(kept.sum())} would be kept")
        kept = kept.repeat_interleave(self.each)
        return (~kept).nonzero().flatten(), kept.nonzero().flatten()

    def rows_of(self, *names: str) -> Tensor:
        """Rows of the classes `names`."""
        return torch.tensor([item.class_name in names for item in self.items]).nonzero().flatten()

    def batch(self, taps: Taps, rows: Tensor) -> tuple[dict[str, Tensor], list[str]]:
        """Stored taps [B, ...] and class names of `rows` [B]."""
        places = rows.tolist()
        return taps.rows([self.keys[place] for place in places]), [self.items[place].class_name for place in places]


class Learner:
    """A model with what changes it: optimizer, loss scaler, guard against losses that are not finite."""

    def __init__(self, model: AnomalyCLIP, taps: Taps, args: Args) -> None:
        self.model, self.taps, self.args = model, taps, args
        groups = parameter_groups(model, args) or [{"params": [torch.zeros(1)]}]  # nothing trained: of nothing
        self.optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)
        self.scaler, self.guard = make_scaler(taps.device, args.precision), NonFiniteGuard()
        self.forward = torch.compile(model.from_taps) if args.compile else model.from_taps


class Seen:
    """What the batches of one epoch have said: losses, and P(anomaly) of every image with its label."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.scores: list[Tensor] = []
        self.labels: list[Tensor] = []

    def batch(self, learner: Learner, data: TrainingSet, rows: Tensor) -> dict[str, Tensor]:
        """The losses of the images `rows`, noted."""
        device, args = learner.taps.device, learner.args
        taps, names = data.batch(learner.taps, rows)
        with autocast_for(device, args.precision):
            output = learner.forward(taps, names)
        labels, masks = data.labels[rows].to(device), data.masks[rows].to(device)
        losses = sowa_loss(output, labels, masks, paper=args.loss == "paper")
        for name, value in {"loss": torch.stack(list(losses.values())).sum(), **losses}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item() * len(rows)
        self.scores.append(output.text_probs[:, 1].detach().float().cpu())
        self.labels.append(labels.cpu())
        return losses

    def means(self, count: int, kind: str) -> dict[str, float]:
        """Mean losses over `count` images, accuracy and, where both labels were met, AUROC of the image score."""
        scores, labels = torch.cat(self.scores), torch.cat(self.labels)
        plain = kind == "train_"
        found = {name if plain else f"{kind}{name}": value / count for name, value in self.sums.items()}
        found[f"{kind}acc"] = float(((scores > 0.5) == labels.bool()).float().mean())
        if 0 < int(labels.sum()) < len(labels):
            found[f"{kind}auroc"] = auroc(scores, labels)
        return found


def parameter_groups(model: AnomalyCLIP, args: Args) -> list[dict[str, Any]]:
    """What is trained; the original also decays norms, biases and temperatures, and has one learning rate."""
    slow = args.learning_rate * args.text_rate
    groups = param_groups(model, args.weight_decay, lr_of={"prompt_learner.": slow, "cross_fusion.": slow})
    return [{**group, "weight_decay": args.weight_decay} for group in groups] if args.decay == "all" else groups


@torch.no_grad()
def calibrate(learner: Learner, data: TrainingSet, rows: Tensor) -> None:
    """Fit the maps' scales and offsets and the stages' weights to the untrained model's answers on images `rows`."""
    model, args = learner.model, learner.args
    if args.map_calibration != "logistic":
        return
    model.eval()
    found, truth = [], []
    for here in rows.split(args.batch_size):
        found.append(model.patch_differences(*data.batch(learner.taps, here)).flatten(1))
        share = F.adaptive_avg_pool2d(data.masks[here].float().unsqueeze(1), model.grid)  # [B, 1, h, w]
        truth.append(share.flatten())
    differences = torch.cat(found, dim=1)
    model.fit_calibration(differences, torch.cat(truth).to(differences.device))
