"""Class-balanced batches."""

from collections import Counter

import numpy as np
import pytest

from anomaly_lib.data.samplers import BalancedBatchSampler, StratifiedBatchSampler
from anomaly_lib.errors import UserError

LABELS = [0] * 30 + [1] * 20 + [2] * 10 + [3] * 4


def test_each_sample_once_an_epoch_and_early_batches_hold_every_class():
    sampler = StratifiedBatchSampler(LABELS, 16, seed=1)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 4
    assert [len(b) for b in batches] == [16] * 4
    assert sorted(i for b in batches for i in b) == list(range(64))
    best = max(batches, key=lambda b: len({LABELS[i] for i in b}))
    assert Counter(LABELS[i] for i in best) == {0: 4, 1: 4, 2: 4, 3: 4}


def test_small_batches_take_two_of_a_class():
    sampler = StratifiedBatchSampler(list(range(12)) * 6, 8, seed=0)
    counts = [Counter(i % 12 for i in batch) for batch in sampler]
    assert np.mean([set(c.values()) == {2} for c in counts]) > 0.8  # 4 classes x 2, not 8 lonely anchors


def test_epochs_differ_and_repeat():
    sampler = StratifiedBatchSampler(LABELS, 8, seed=5)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize(("drop", "sizes"), [(True, [10] * 6), (False, [4, *[10] * 6])])
def test_drop_last(drop, sizes):
    sampler = StratifiedBatchSampler(LABELS, 10, drop_last=drop)
    assert sorted(map(len, sampler)) == sizes
    assert len(sampler) == len(sizes)


def test_batch_of_one_is_refused():
    with pytest.raises(UserError, match="at least 2"):
        StratifiedBatchSampler(LABELS, 1)


def test_balanced_batches():
    sampler = BalancedBatchSampler(LABELS, classes_per_batch=3, per_class=5, batches=7)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 7
    assert all(sorted(Counter(LABELS[i] for i in b).values()) == [5, 5, 5] for b in batches)
    with pytest.raises(UserError, match="only 4"):
        BalancedBatchSampler(LABELS, classes_per_batch=5, per_class=1, batches=1)
