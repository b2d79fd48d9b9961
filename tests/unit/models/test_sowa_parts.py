"""SOWA's exchangeable parts: adapters of each stage, fusion and metrics by entry of a registry, k-shot step by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anomaly_lib.backbones.clip import ClipBackbone
from anomaly_lib.detect.scores import Scores, summary
from anomaly_lib.detect.scoring import group_metrics
from anomaly_lib.errors import UserError
from anomaly_lib.metrics import METRICS
from anomaly_lib.models.detectors.registry import load_plugin
from anomaly_lib.models.sowa import (
    ADAPTERS,
    FUSIONS,
    AdapterConfig,
    AnomalyCLIP,
    BasicLayer,
    DotProductFusion,
    VisionMapEncoder,
    build_memory,
    kshot_step,
)
from anomaly_lib.systems.sowa.options import Args
from tests.support.sowa import STAGES, images, tiny_clip


@pytest.fixture(scope="module")
def clip() -> ClipBackbone:
    return tiny_clip()


@pytest.fixture(autouse=True)
def _tables_as_they_were() -> Iterator[None]:
    tables = (ADAPTERS, FUSIONS, METRICS)
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


def adapters(clip: ClipBackbone, **options: Any) -> Any:
    return VisionMapEncoder(clip, feature_map_idx=STAGES, **options).adapters


def test_a_name_for_each_stage(clip: ClipBackbone) -> None:
    found = adapters(clip, adapter=["soldier", "soldier", "officer", "none"])
    assert [type(one) for one in found] == [BasicLayer] * 3 + [nn.Identity]
    assert [[block.window_size for block in one.blocks] for one in found[:3]] == [[2], [2], [2, 2]]
    assert [block.shift_size for block in found[2].blocks] == [0, 1]
    shared = adapters(clip, adapter=["soldier", "linear", "soldier", "linear"], share_weight=True)
    assert shared[0].blocks[0].norm1.weight is shared[2].blocks[0].norm1.weight
    assert shared[1].layers[0].weight is shared[3].layers[0].weight
    assert [type(one).__name__ for one in adapters(clip, adapter="linear")] == ["Mlp"] * 4
    large = ADAPTERS.part("soldier")(nn.MultiheadAttention(64, 8), (24, 24), AdapterConfig(adapter=["soldier"]))
    assert large.blocks[0].window_size == 6
    with pytest.raises(UserError, match=r"adapter=soldier officer: give one value, or one per stage \(4\)"):
        adapters(clip, adapter=["soldier", "officer"])
    with pytest.raises(UserError, match=r"adapter=soldir: choose from window, .* did you mean soldier\?"):
        adapters(clip, adapter=["soldir"])


def test_configurations_modules_or_a_function(clip: ClipBackbone) -> None:
    small, large = AdapterConfig(window_size=2), AdapterConfig(window_size=4, num_heads=2)
    found = adapters(clip, adapter=[small, small, large, large])
    assert [one.blocks[0].window_size for one in found] == [2, 2, 4, 4]
    assert found[3].blocks[0].attn.config.num_heads == 2
    assert found[0].blocks[0].norm1.weight is not found[1].blocks[0].norm1.weight
    one, other = nn.Linear(64, 64), nn.Identity()
    found = adapters(clip, adapter=[one, one, other, nn.Linear(64, 64)])
    assert found[0] is found[1] is one
    copies = adapters(clip, adapter=one)
    assert len({id(copy) for copy in copies}) == 4
    assert copies[2].weight.equal(one.weight)
    assert all(same is one for same in adapters(clip, adapter=one, share_weight=True))
    made: list[Any] = []

    def make(attn: nn.MultiheadAttention, grid: tuple[int, int], config: AdapterConfig) -> nn.Module:
        made.append((attn, grid, config.num_heads))
        return nn.Linear(attn.embed_dim, attn.embed_dim)

    model = AnomalyCLIP(clip, feature_map_idx=STAGES, adapter=make, num_heads=4)
    assert [attn for attn, _, _ in made] == [clip.attention(stage) for stage in STAGES]
    assert {(grid, heads) for _, grid, heads in made} == {((4, 4), 4)}
    assert model(images(2)).anomaly_maps[0].shape == (2, 2, 64, 64)
    assert "4 adapter(s) Linear" in repr(model)
    with pytest.raises(UserError, match="give one for all stages, or one for each of 4"):
        adapters(clip, adapter=[one, other])


def test_fusion_of_your_own(clip: ClipBackbone) -> None:
    class Sharper(DotProductFusion):
        def forward(self, text_features: Tensor, vision_features: Tensor) -> Tensor:
            return 3 * super().forward(text_features, vision_features)

    usual = AnomalyCLIP(clip, feature_map_idx=STAGES, start="random", map_calibration="none").eval()
    mine = AnomalyCLIP(clip, feature_map_idx=STAGES, start="random", map_calibration="none", fusion=Sharper()).eval()
    mine.load_state_dict(usual.state_dict())
    plain, sharp = usual(images(2)), mine(images(2))
    odds = [one.text_probs.log().diff(dim=1) for one in (plain, sharp)]
    torch.testing.assert_close(odds[1], 3 * odds[0], rtol=1e-4, atol=1e-4)
    odds = [one.anomaly_maps[2].log().diff(dim=1) for one in (plain, sharp)]
    torch.testing.assert_close(odds[1], 3 * odds[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="fusion=sharper: choose from dot"):
        Args(fusion="sharper")
    FUSIONS.register("sharper")(Sharper)
    named = AnomalyCLIP(clip, feature_map_idx=STAGES, fusion=Args(fusion="sharper").fusion)
    assert isinstance(named.cross_fusion.fusion_method, Sharper)
    with pytest.raises(UserError, match="there is a fusion 'dot' already"):
        FUSIONS.register("dot")(Sharper)


def test_parts_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "parts_of_mine.py"
    file.write_text(
        "from torch import nn\nfrom anomaly_lib.models.sowa import ADAPTERS\n"
        "@ADAPTERS.register('mine')\ndef mine(attn, grid, config):\n    return nn.Identity()\n"
    )
    with pytest.raises(UserError, match="adapter=mine: choose from"):
        Args(adapter=["mine"])
    args = Args(plugin=str(file), adapter=["window", "window", "mine", "mine"])
    assert args.adapter[2] == "mine"
    assert Args.from_saved({"plugin": "not/there.py", "adapter": "mine"}).adapter == ["mine"]  # its word is not run
    empty = tmp_path / "empty.py"
    empty.touch()
    with pytest.raises(UserError, match="registers no detector"):
        load_plugin(empty)


def test_metric_of_your_own_stands_beside_the_others() -> None:
    @METRICS.register("highest")
    def highest(scores: Any, labels: Any, maps: Any, masks: Any) -> float:
        assert maps.shape == (len(scores), 3, 3)
        assert masks is None
        return float(scores[labels == 1].max())

    scores = Scores(
        "x", "x", np.array([0.1, 0.5, 0.2, 0.9]), np.array([0, 1, 0, 1]), list("abcd"), ["p", "p", "q", "q"],
        averaged=True, maps=np.zeros((4, 3, 3)),
    )  # fmt: skip
    assert summary(scores)["highest"] == pytest.approx((0.5 + 0.9) / 2)
    assert group_metrics(scores, "q", None, bootstrap=0, fpr_limits=[0.3])["highest"] == pytest.approx(0.9)
    METRICS.register("broken")(lambda *_: 1 / 0)
    with pytest.raises(UserError, match="metric broken: ZeroDivisionError"):
        summary(scores)


def test_kshot_step_remembers_a_class(clip: ClipBackbone) -> None:
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, class_names=["cup"]).eval()
    found = kshot_step(model, {"image": images(3), "cls_name": "cup"})
    want = build_memory(model, model.from_taps(clip.encode(images(3))).patches)
    assert list(found) == ["cup"]
    assert found["cup"].reference == pytest.approx(want.reference)
    torch.testing.assert_close(found["cup"].patches[1], want.patches[1])
