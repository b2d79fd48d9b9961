"""The packaged demo backbone holds what docs/notebook/demo_backbone.md says, well above the same network untrained."""

import pytest

from anomaly_lib.backbones import create_backbone
from scripts.demo_backbone.measure import Args
from scripts.demo_backbone.measurement import measure
from scripts.demo_backbone.objective import MEMORY_TAPS


@pytest.mark.slow
def test_packaged_weights_reach_the_documented_figures() -> None:
    outputs = [*MEMORY_TAPS, "pooled", "patch_tokens", "vv_tokens"]
    trained, random = (
        measure(create_backbone("demo-clip", weights=weights, layers=outputs), Args()) for weights in (None, "random")
    )
    assert trained["all"]["memory image"] > 0.90
    assert trained["all"]["memory pixel"] > 0.92
    assert trained["all"]["zero-shot image"] > 0.82
    assert trained["seen"]["zero-shot image"] > 0.96
    assert trained["held out"]["zero-shot image"] > 0.61
    for name in ("woven", "brushed_metal", "grid", "capsule", "circuit_board"):
        assert trained[name]["memory image"] > random[name]["memory image"] + 0.07, name
        assert trained[name]["memory pixel"] > random[name]["memory pixel"] + 0.03, name
