"""Batches with several samples of each class, as contrastive learning needs."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from anomaly_lib.errors import UserError


class StratifiedBatchSampler(Sampler[list[int]]):
    """Each batch takes max(2, batch // classes) of every class in random order until full, then fills up from the rest.

    Every sample is used at most once an epoch. The order follows from (seed, epoch): call `set_epoch` before each.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, *, seed: int = 0, drop_last: bool = False) -> None:
        if batch_size < 2:
            raise UserError(f"batch_size={batch_size}: a contrastive batch needs at least 2 samples")
        self.labels = np.asarray(labels)
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        classes = np.unique(self.labels)
        pools = {int(c): list(rng.permutation(np.flatnonzero(self.labels == c))) for c in classes}
        share = max(2, self.batch_size // len(classes))
        batches: list[list[int]] = []
        while left := sum(map(len, pools.values())):
            if left < self.batch_size and self.drop_last:
                break
            batch: list[int] = []
            for c in rng.permutation([c for c, pool in pools.items() if pool]):
                batch += _take(pools[int(c)], min(share, self.batch_size - len(batch)))
            while len(batch) < min(self.batch_size, left):  # rare classes are used up: the common ones fill the batch
                largest = max(pools.values(), key=len)
                batch += _take(largest, self.batch_size - len(batch))
            batches.append([int(i) for i in rng.permutation(batch)])
        return iter([batches[i] for i in rng.permutation(len(batches))])


class BalancedBatchSampler(Sampler[list[int]]):
    """`batches` batches of `classes_per_batch` random classes with `per_class` samples each, drawn with replacement."""

    def __init__(
        self, labels: Sequence[int], *, classes_per_batch: int, per_class: int, batches: int, seed: int = 0
    ) -> None:
        self.labels = np.asarray(labels)
        known = len(np.unique(self.labels))
        if classes_per_batch > known:
            raise UserError(f"{classes_per_batch} classes a batch, but the data has only {known}")
        self.classes_per_batch, self.per_class, self.batches, self.seed = classes_per_batch, per_class, batches, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        members = {int(c): np.flatnonzero(self.labels == c) for c in np.unique(self.labels)}
        for _ in range(self.batches):
            chosen = rng.choice(list(members), self.classes_per_batch, replace=False)
            groups = [rng.choice(members[c], self.per_class, replace=len(members[c]) < self.per_class) for c in chosen]
            yield [int(i) for i in np.concatenate(groups)]


def _take(pool: list[int], count: int) -> list[int]:
    taken, pool[:] = pool[:count], pool[count:]
    return taken
