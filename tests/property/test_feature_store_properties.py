"""Whatever is put comes back: any shapes, types, order of keys and interruptions between batches."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_lib.features import FeatureSpec, FeatureStore, array_key

SPEC = FeatureSpec(backbone="b", weights="00", outputs=("a", "b"), transform="")
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
TYPES = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool])


@settings(deadline=None, max_examples=25)
@given(
    shapes=st.tuples(SHAPES, SHAPES),
    types=st.tuples(TYPES, TYPES),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    dtype=st.sampled_from(["fp32", "fp16", "bf16"]),
    cache=st.sampled_from(["disk", "ram"]),
    reopen=st.booleans(),
    seed=st.integers(0, 99),
)
def test_round_trip(
    shapes: tuple[tuple[int, ...], ...],
    types: tuple[torch.dtype, ...],
    sizes: list[int],
    dtype: str,
    cache: str,
    reopen: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kept = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    spec, count = replace(SPEC, dtype=dtype), sum(sizes)
    whole = {
        name: (torch.randn(count, *shape, generator=generator) * 50).to(kind)
        for name, shape, kind in zip("ab", shapes, types, strict=True)
    }
    keys = [array_key(np.array(i)) for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(spec, root=Path(folder), cache=cache)
        start = 0
        for size in sizes:
            store.put(keys[start : start + size], {name: rows[start : start + size] for name, rows in whole.items()})
            start += size
            if reopen and cache == "disk":
                store.close()
                store = FeatureStore(spec, root=Path(folder), cache=cache)
        order = torch.randperm(count, generator=generator)
        found = store.rows([keys[i] for i in order])
        for name, rows in whole.items():
            expected = rows[order].to(kept) if rows.is_floating_point() else rows[order]
            assert torch.equal(found[name], expected)
        assert store.missing(keys, verify=True) == []
        store.close()
