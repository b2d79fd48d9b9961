"""SOWA's modules against loop-written twins and the published counts."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.backbones.clip import ClipBackbone, create_clip
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa import (
    AnomalyCLIP,
    AnomalyPromptLearner,
    BasicLayer,
    DotProductFusion,
    FusionModule,
    SwinTransformerBlock,
    TextMapEncoder,
    VisionMapEncoder,
    WindowAttention,
    detect,
    sowa_loss,
)
from anomaly_lib.models.sowa.phrases import LONG_TEMPLATE
from tests.support.sowa import PUBLISHED, STAGES, images, randomise, tiny_clip


@pytest.fixture(scope="module")
def clip() -> ClipBackbone:
    return tiny_clip()


# -- loop-written twins ------------------------------------------------------------------------------------------------


def attention_by_loops(module: WindowAttention, window: Tensor) -> Tensor:
    """One window [w*w, C], written out token by token from the description of the method."""
    attn, heads, side = module.frozen[0], module.config.num_heads, module.window_size
    width = window.shape[-1] // heads
    q, k, v = (window @ attn.in_proj_weight.T).chunk(3, dim=-1)
    if module.config.value_only:
        q = k = v
    mixed = torch.zeros_like(window)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scale = math.exp(min(float(module.logit_scale[head]), math.log(100.0)))
        for i in range(side * side):
            scores = torch.zeros(side * side)
            for j in range(side * side):
                offset = [
                    math.copysign(math.log2(abs(d / (side - 1) * 8) + 1), d) / math.log2(8)
                    for d in (i // side - j // side, i % side - j % side)
                ]
                bias = 16 * torch.sigmoid(module.cpb_mlp(torch.tensor(offset))[head])
                scores[j] = F.cosine_similarity(q[i, part], k[j, part], dim=0) * scale + bias
            mixed[i, part] = scores.softmax(0) @ v[:, part]
    return mixed @ attn.out_proj.weight.T + attn.out_proj.bias


@pytest.mark.parametrize("value_only", [True, False])
def test_window_attention_equals_loops(clip: ClipBackbone, value_only: bool) -> None:
    module = WindowAttention(
        clip.attention(1), window_size=3, num_heads=4, cpb_dim=8, value_only=value_only, attn_drop=0.0
    )
    randomise(module)
    x = torch.randn(2, 9, 64)
    with torch.no_grad():
        want = torch.stack([attention_by_loops(module, window) for window in x])
        torch.testing.assert_close(module(x), want, rtol=1e-5, atol=1e-5)
        weights = module.weights(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 9))


def test_block_equals_loops(clip: ClipBackbone) -> None:
    block = SwinTransformerBlock(clip.attention(2), (4, 4), window_size=2, num_heads=2, attn_drop=0.0)
    randomise(block)
    x = torch.randn(1, 16, 64)
    with torch.no_grad():
        mixed = torch.zeros(4, 4, 64)
        grid = x[0].view(4, 4, 64)
        for top in (0, 2):
            for left in (0, 2):
                window = grid[top : top + 2, left : left + 2].reshape(4, 64)
                mixed[top : top + 2, left : left + 2] = attention_by_loops(block.attn, window).view(2, 2, 64)
        want = x + F.layer_norm(mixed.view(1, 16, 64), (64,), block.norm1.weight, block.norm1.bias)
        want = want + block.norm2(want @ block.mlp.layers[0].weight.T)  # type: ignore[operator, union-attr]
        torch.testing.assert_close(block(x), want, rtol=1e-5, atol=1e-5)


def test_shifted_windows_equal_masked_dense_attention(clip: ClipBackbone) -> None:
    """A shifted window is dense attention over the grid in which only tokens of one (cut) window see each other."""
    side, window, shift = 6, 3, 1
    block = SwinTransformerBlock(
        clip.attention(0), (side, side), window_size=window, shift_size=shift, num_heads=2, attn_drop=0.0
    )
    randomise(block)
    module = block.attn
    x = torch.randn(1, side * side, 64)
    place = [(index // side, index % side) for index in range(side * side)]

    def group(row: int, column: int) -> tuple[int, int]:
        return (row - shift) // window if row >= shift else -1, (column - shift) // window if column >= shift else -1

    with torch.no_grad():
        v = (x[0] @ module.frozen[0].in_proj_weight.T).chunk(3, -1)[2]
        table = module.position_bias()
        mixed = torch.zeros(side * side, 64)
        for head in range(2):
            part = v[:, head * 32 : (head + 1) * 32]
            unit = F.normalize(part, dim=-1)
            scores = unit @ unit.T * module.logit_scale[head].exp()
            for i, (r, c) in enumerate(place):
                for j, (s, d) in enumerate(place):
                    if group(r, c) != group(s, d):
                        scores[i, j] = -torch.inf
                        continue
                    ri, ci, rj, cj = (
                        (r - shift) % window,
                        (c - shift) % window,
                        (s - shift) % window,
                        (d - shift) % window,
                    )
                    scores[i, j] += table[head, ri * window + ci, rj * window + cj]
            mixed[:, head * 32 : (head + 1) * 32] = scores.softmax(-1) @ part
        mixed = mixed @ module.frozen[0].out_proj.weight.T + module.frozen[0].out_proj.bias
        want = x + block.norm1(mixed[None])
        want = want + block.norm2(block.mlp(want))
        torch.testing.assert_close(block(x), want, rtol=1e-4, atol=1e-5)


def test_forward_equals_loops(clip: ClipBackbone) -> None:
    """The six outputs, image by image and patch by patch from the taps."""
    prompt: dict[str, Any] = {"class_names": ["cup", "lid"], "prompt_length": 2, "state_template": LONG_TEMPLATE}
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, attn_drop=0.0, **prompt, **PUBLISHED)
    randomise(model)
    names = ["lid", "unheard of", "cup"]
    taps = clip.encode(images(3))
    with torch.no_grad():
        out = model.from_taps(taps, names)
        for mine, theirs in zip(out, model(images(3), names), strict=True):
            torch.testing.assert_close(mine, theirs)
        count = len(LONG_TEMPLATE["normal"])
        text = model.cross_fusion.linear(out.text_features)
        for row, place in enumerate([1, 0, 0]):
            pair = [text[half * 2 * count + place * count :][:count].mean(0) for half in (0, 1)]
            for stage, adapter in enumerate(model.visual_encoder.adapters):
                tokens = taps[f"layer.{stage}"][row]
                adapted = adapter(tokens[None])[0] @ clip.projection
                torch.testing.assert_close(out.patches[stage][row], tokens @ clip.projection)
                torch.testing.assert_close(out.patch_features[stage][row], adapted)
                cosines = torch.stack([torch.stack([F.cosine_similarity(a, t, dim=0) for a in adapted]) for t in pair])
                large = F.interpolate(cosines.view(1, 2, 4, 4), size=(64, 64), mode="bilinear", align_corners=True)
                torch.testing.assert_close(out.anomaly_maps[stage][row], large.softmax(1)[0], rtol=1e-4, atol=1e-5)
            image = torch.stack([F.cosine_similarity(out.image_features[row], t, dim=0) for t in pair])
            torch.testing.assert_close(out.text_probs[row], (image / 0.07).softmax(0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_loss_by_hand(clip: ClipBackbone) -> None:
    model = AnomalyCLIP(clip, feature_map_idx=(1, 3), **PUBLISHED)
    randomise(model)
    model.eval()
    out = model(images())
    label, mask = torch.tensor([0, 1]), torch.zeros(2, 64, 64, dtype=torch.long)
    mask[1, 10:30, 5:20] = 1
    for paper in (False, True):
        want = {"image": 0.0, "focal": 0.0, "dice": 0.0}
        for row in range(2):
            p = out.text_probs[row]
            logits = p if paper else p.log()
            want["image"] -= float(logits.log_softmax(0)[label[row]]) / 2
        for stage in out.anomaly_maps:
            for row in range(2):
                normal, anomaly, truth = stage[row, 0].double(), stage[row, 1].double(), mask[row].double()
                p = truth * anomaly + (1 - truth) * normal
                if paper:
                    p = truth.clamp(1e-5, 1 - 1e-5) * anomaly + (1 - truth).clamp(1e-5, 1 - 1e-5) * normal + 1e-5
                want["focal"] += float((-((1 - p) ** 2) * p.log()).mean()) / 2
                for a, t in ((anomaly, truth), (normal, 1 - truth)):
                    want["dice"] += float(1 - (2 * (a * t).sum() + 1) / (a.sum() + t.sum() + 1)) / 2
        found = sowa_loss(out, label, mask, paper=paper)
        assert {k: pytest.approx(float(v), rel=1e-4) for k, v in found.items()} == want


# -- what is trained and what is not -----------------------------------------------------------------------------------


def test_zero_norms_make_the_adapter_the_identity(clip: ClipBackbone) -> None:
    layer = BasicLayer(clip.attention(0), (4, 4), window_size=2, depth=2, hidden_features=(16,))
    for block in layer.blocks:
        for norm in (block.norm1, block.norm2):
            nn.init.zeros_(norm.weight)
            nn.init.zeros_(norm.bias)
    x = torch.randn(2, 16, 64)
    assert layer(x).equal(x)


def test_frozen_projections_are_shared_and_the_input_bias_is_not_read(clip: ClipBackbone) -> None:
    attn = nn.MultiheadAttention(64, 4, batch_first=True)
    layer = BasicLayer(attn, (4, 4), window_size=2, attn_drop=0.0)
    x = torch.randn(1, 16, 64)
    before = layer(x)
    attn.in_proj_bias.data.fill_(5.0)
    assert layer(x).equal(before)
    attn.in_proj_weight.data.mul_(1.5)
    assert not torch.allclose(layer(x), before)
    assert not any(parameter.data_ptr() == attn.in_proj_weight.data_ptr() for parameter in layer.parameters())


def test_every_parameter_learns_and_the_clip_does_not(clip: ClipBackbone) -> None:
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, depth=[1, 1, 2, 2], window_size=[2], **PUBLISHED)
    sum(sowa_loss(model(images()), torch.tensor([0, 1]), (torch.rand(2, 64, 64) > 0.8).long()).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    torch.optim.AdamW(model.parameters(), lr=0.1).step()
    assert all(value.equal(before[name]) for name, value in clip.state_dict().items())


def test_full_size_parameter_count() -> None:
    attn = nn.MultiheadAttention(1024, 16, batch_first=True, device="meta")
    layer = BasicLayer(attn, (24, 24))
    assert sum(p.numel() for p in layer.parameters()) == 1_053_384
    linear, prompts = 768 * 768 + 768, 2 * 12 * 768
    assert 4 * 1_053_384 + linear + prompts == 4_822_560
    table = layer.blocks[0].attn.coordinates  # type: ignore[union-attr]
    assert table.shape == (529, 2)  # type: ignore[union-attr]
    assert float(table.abs().max()) == pytest.approx(1.0566, abs=1e-4)  # type: ignore[operator, union-attr]


def test_share_weight_is_true_sharing(clip: ClipBackbone) -> None:
    own = AnomalyCLIP(clip, feature_map_idx=STAGES, **PUBLISHED).visual_encoder
    shared = AnomalyCLIP(clip, feature_map_idx=STAGES, share_weight=True, **PUBLISHED).visual_encoder
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(own) == 4 * count(shared)
    x = torch.randn(1, 16, 64)
    shared.eval()
    assert not shared.adapters[0](x).equal(shared.adapters[3](x))  # the frozen attention stays each stage's own
    assert shared.adapters[0].blocks[0].norm1.weight is shared.adapters[3].blocks[0].norm1.weight  # type: ignore[union-attr]


def test_per_stage_adapters(clip: ClipBackbone) -> None:
    options: dict[str, Any] = {"window_size": [2, 2, 4, 4], "depth": [1, 1, 1, 2]}
    adapters: Any = AnomalyCLIP(clip, feature_map_idx=STAGES, **options).visual_encoder.adapters
    assert [adapter.blocks[0].window_size for adapter in adapters] == [2, 2, 4, 4]
    assert [len(adapter.blocks) for adapter in adapters] == [1, 1, 1, 2]
    blocks: Any = (
        AnomalyCLIP(clip, feature_map_idx=STAGES, window_size=[2], depth=[2]).visual_encoder.adapters[0].blocks
    )
    assert [block.shift_size for block in blocks] == [0, 1]
    for blocks_given in (STAGES, ()):
        with pytest.raises(UserError, match=r"window_size=2 4: give one value, or one per stage \(4\)"):
            AnomalyCLIP(clip, feature_map_idx=blocks_given, window_size=[2, 4])


# -- in a notebook -----------------------------------------------------------------------------------------------------


def test_by_name_with_the_right_taps() -> None:
    model = AnomalyCLIP.from_name("tiny-clip", weights="random", class_names=["cup", "lid"], prompt_length=4)
    assert model.visual_encoder.tap_names == ("layer.0", "layer.1", "layer.2", "layer.3")
    out = model(images(2), ["lid", "cup"])
    assert [tuple(one.shape) for one in out.anomaly_maps] == [(2, 2, 64, 64)] * 4
    assert tuple(out.text_features.shape) == (4, 32)
    wide = AnomalyCLIP.from_name("tiny-clip", weights="random", image_size=[64, 96], feature_map_idx=[1, -1])
    assert wide.visual_encoder.feature_map_idx == (1, 3)
    assert tuple(wide(torch.randn(1, 3, 64, 96)).anomaly_maps[1].shape) == (1, 2, 64, 96)
    demo = AnomalyCLIP.from_name("demo-clip", adapter="linear")
    assert not demo.frozen[0].is_random
    with pytest.raises(ValueError, match="no backbone called 'ViT-L/15'"):
        AnomalyCLIP.from_name("ViT-L/15")


def test_published_name_means_the_published_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def small(name: str, **given: Any) -> ClipBackbone:
        asked.update(given, name=name)
        return create_clip("tiny-clip", weights="random")

    monkeypatch.setattr("anomaly_lib.models.sowa.vision.create_clip", small)
    AnomalyCLIP.from_name("ViT-L/14@336px", class_names=["bottle"], weights="file.pt")
    assert asked == {"name": "ViT-L/14@336px", "weights": "file.pt", "image_size": None, "download": False}


def test_wrong_input_says_what_was_expected(clip: ClipBackbone) -> None:
    without = create_clip("tiny-clip", weights="random")
    remedy = r"create_clip\('tiny-clip', layers=\[0, 1, 2, 3, 'pooled'\]\), or let AnomalyCLIP.from_name"
    with pytest.raises(ValueError, match=remedy):
        AnomalyCLIP(without)
    with pytest.raises(ValueError, match=r"blocks 0\.\.3"):
        AnomalyCLIP(clip, feature_map_idx=[4])
    model = AnomalyCLIP(clip, class_names=["cup", "lid"])
    for names in (["cup"], ["cup"] * 3):
        with pytest.raises(ValueError, match=f"{len(names)} class names for 2 images"):
            model(images(2), names)
    with pytest.raises(ValueError, match="cls_name='cup': takes a list, one class name for each image"):
        model(images(2), "cup")
    text, tokens = model.text_features(), torch.randn(2, 16, 32)
    with pytest.raises(ValueError, match="1 class names for 2 images"):
        model.cross_fusion(text, tokens, ["cup"])
    with pytest.raises(ValueError, match="text features of 1 images"):
        DotProductFusion()(text[:2].unsqueeze(0), tokens)
    for make in (
        lambda names: AnomalyCLIP(clip, class_names=names),
        lambda names: AnomalyPromptLearner(clip.text, class_names=names),
        lambda names: FusionModule(DotProductFusion(), class_names=names),
    ):
        with pytest.raises(ValueError, match="class_names='cup': takes a list"):
            make("cup")
    with pytest.raises(ValueError, match="no option 'windowsize'; did you mean window_size"):
        AnomalyCLIP(clip, windowsize=[2])
    with pytest.raises(ValueError, match=r"stages=4: the model has stages 0 to 3"):
        detect(model, clip.encode(images(2)), ["cup"] * 2, stages=[4])


def test_documented_parts_by_name(clip: ClipBackbone) -> None:
    """The table of the user's document: each part with the arguments it gives there."""
    features = BasicLayer(clip.attention(0), (4, 4), window_size=2, depth=2, num_heads=2)(torch.randn(2, 16, 64))
    assert tuple(features.shape) == (2, 16, 64)
    template = {"normal": ["{}", "a brand new {}"], "anomaly": ["damaged {}", "broken {}"]}
    prompts, ids = AnomalyPromptLearner(clip.text, class_names=["cup"], prompt_length=12, state_template=template)()
    assert len(prompts) == len(ids) == 4
    text = TextMapEncoder(clip.text)(prompts, ids)[0]
    image, raw, adapted = VisionMapEncoder(clip, adapter="window", share_weight=True)(images(2))
    assert [len(raw), len(adapted), tuple(image.shape)] == [4, 4, (2, 32)]
    fusion = FusionModule(DotProductFusion(), class_names=["cup"], embedding_dim=32)
    assert tuple(fusion(text, adapted[0], ["cup", "cup"]).shape) == (2, 16, 2)


def test_what_a_model_says_of_itself(clip: ClipBackbone) -> None:
    model = AnomalyCLIP(clip, class_names=["cup"], window_size=[2])
    said = repr(model)
    trained = sum(p.numel() for p in model.parameters())
    assert said.startswith(f"AnomalyCLIP(frozen tiny-clip at 64x64 (random), {trained:,} trained values\n")
    assert "VisionMapEncoder(tiny-clip, blocks 0 1 2 3, 4 adapter(s) BasicLayer, " in said
    assert "AnomalyPromptLearner(cup: 2 prompts, contexts of 12 tokens of width 32)" in said
    attention = "WindowAttention(2x2, 8 heads of 8, values with values, frozen projections)"
    assert repr(model.visual_encoder.adapters[0]).startswith(f"BasicLayer(1 x {attention} on 4x4 patches, ")
