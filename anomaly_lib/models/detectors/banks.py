"""A detector that compares patches with banks of normal ones: how they are filled, searched and cut by one image."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from anomaly_lib.models.detectors.contract import FeatureDetector, Features, Size
from anomaly_lib.models.detectors.memory_bank import MemoryBank
from anomaly_lib.models.detectors.shapes import maps_of
from anomaly_lib.ops import turned, unit_rows
from anomaly_lib.types import Prediction


class BankDetector(FeatureDetector):
    """What detectors on banks of unit rows share. One supplies `rows_of` (what is learnt) and `judge` (a score)."""

    least_images = 2

    def __init__(self, extractor: nn.Module, count: int = 1) -> None:
        super().__init__()
        self.extractor = extractor
        self.banks = nn.ModuleList(MemoryBank() for _ in range(count))

    def rows_of(self, features: Features) -> Sequence[Iterable[Tensor]]:
        """For each bank and each of the B images its rows [M, C], at length 1."""
        raise NotImplementedError

    def judge(self, features: Features, size: Size, numbers: Tensor | None) -> Prediction:
        """Scores [B] and maps [B, *size]; images of the fit with `numbers` [B] are compared with the others alone."""
        raise NotImplementedError

    @torch.no_grad()
    def fit_features(self, batches: Iterable[Features]) -> "BankDetector":
        """Fill the banks with the rows of normal images; each row knows its image."""
        held: list[list[Tensor]] = [[] for _ in self.banks]
        for features in batches:
            for images, rows in zip(held, self.rows_of(features), strict=True):
                images += rows
        if not held[0]:
            raise ValueError("no normal images to learn from")
        self.banks = nn.ModuleList(_bank(images) for images in held)
        return self

    @torch.no_grad()
    def score_features(self, features: Features, size: Size) -> Prediction:
        """Scores [B] and maps [B, *size] of images whose features are known."""
        return self.judge(features, size, None)

    @torch.no_grad()
    def left_out_features(self, features: Features, numbers: Sequence[int], size: Size) -> Prediction:
        """The same of images of the fit (in their query views), each compared with the others alone. Exact."""
        return self.judge(features, size, torch.tensor(list(numbers)))

    def memory_in_words(self, features: Features, count: int) -> str | None:
        """What `count` images take when they are learnt, judged by the features of one."""
        rows = [next(iter(some)) for some in self.rows_of(features)]
        patches, size = sum(map(len, rows)), sum(map(Tensor.numel, rows))
        return f"{count * patches} patches of {rows[0].shape[1]} numbers, {4 * count * size / 2**30:.2f} GiB of memory"

    @property
    def memories(self) -> list[MemoryBank]:
        """The banks."""
        return [bank for bank in self.banks if isinstance(bank, MemoryBank)]

    def shape_of_banks(self) -> str:
        """In words, for a repr."""
        return "banks " + ", ".join(str(list(bank.rows.shape)) for bank in self.memories)


class TurnedBankDetector(BankDetector):
    """A bank detector that learns every normal image in ``config.rotations`` evenly spread turns."""

    def support_views(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, rotations, 3, H, W]: the images turned about their centres."""
        count = self.config.rotations
        return turned(images, [360 * n / count for n in range(count)])

    @property
    def view_names(self) -> tuple[str, str]:
        return f"{self.config.rotations} turns" if self.config.rotations > 1 else "", ""


def _bank(images: Sequence[Tensor]) -> MemoryBank:
    counts = torch.tensor([len(rows) for rows in images])
    owners = torch.arange(len(images)).repeat_interleave(counts)
    return MemoryBank(torch.cat(list(images)), owners.to(images[0].device))


def cosine_grid(maps: Tensor, bank: MemoryBank, numbers: Tensor | None, neighbours: int = 1) -> Tensor:
    """Mean of 1 - cos to the nearest bank rows for each position of maps [B, C, h, w] -> [B, h, w].

    Images of the bank with `numbers` [B] are compared with the others alone.
    """
    rows = unit_rows(maps).flatten(0, 1)  # [B * P, C]
    if numbers is None:
        distances, _ = bank.search(rows, neighbours)
    else:
        distances, _ = bank.search_others(rows, numbers.repeat_interleave(len(rows) // len(maps)), neighbours)
    grid = distances.square().mean(1) / 2  # for unit vectors 1 - cos is |x - y|^2 / 2
    return grid.reshape(maps.shape[0], *maps.shape[-2:])


def mean_maps(features: Features, layers: Sequence[str]) -> Tensor:
    """Mean of the named outputs of an extractor, [B, V, C, h, w]."""
    maps = maps_of(features, layers)
    if any(x.ndim != 5 or x.shape != maps[0].shape for x in maps):
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in zip(layers, maps, strict=True))
        raise ValueError(f"layers={' '.join(layers)}: maps [B, V, C, h, w] of one shape expected, got {shapes}")
    total = maps[0]
    for x in maps[1:]:  # a stack of fifteen outputs would take their memory once more
        total = total + x
    return total / len(maps) if len(maps) > 1 else total


def one_of(features: Mapping[str, Tensor], place: int) -> Features:
    """The features of one of the images."""
    return {name: x[place : place + 1] for name, x in features.items()}
