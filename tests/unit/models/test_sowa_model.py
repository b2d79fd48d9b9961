"""SOWA's modules against loop-written twins and the published counts."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.backbones.clip import ClipBackbone, create_clip
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa.model import AdapterOptions, AnomalyCLIP, PromptOptions, logistic_fit
from anomaly_lib.models.sowa.scores import Memory, build_memory, detect, scale_transductively, sowa_loss
from anomaly_lib.models.sowa.text import (
    ENSEMBLE_TEMPLATES,
    LONG_TEMPLATE,
    AnomalyPromptLearner,
    PromptEncoder,
    PromptTextEncoder,
    TextMapEncoder,
    check_templates,
    pick_classes,
    pool_text_features,
)
from anomaly_lib.models.sowa.vision import VisionMapEncoder, VisionResidualEncoder
from anomaly_lib.models.sowa.window_adapter import BasicLayer, SwinTransformerBlock, WindowAttention

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def clip() -> ClipBackbone:
    return create_clip("tiny-clip", weights="random", layers=(*STAGES, "pooled"))


def randomise(module: nn.Module) -> None:
    """Nothing may stay at a value that hides a mistake (unit norms, zero biases)."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


# -- loop-written twins ------------------------------------------------------------------------------------------------


def attention_by_loops(module: WindowAttention, window: Tensor) -> Tensor:
    """One window [w*w, C], written out token by token from the description of the method."""
    attn, heads, side = module.frozen[0], module.num_heads, module.window_size
    width = window.shape[-1] // heads
    q, k, v = (window @ attn.in_proj_weight.T).chunk(3, dim=-1)
    if module.value_only:
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
    module = WindowAttention(clip.attention(1), window_size=3, num_heads=4, cpb_dim=8, value_only=value_only)
    randomise(module)
    x = torch.randn(2, 9, 64)
    with torch.no_grad():
        want = torch.stack([attention_by_loops(module, window) for window in x])
        torch.testing.assert_close(module(x), want, rtol=1e-5, atol=1e-5)
        weights = module.weights(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 9))


def test_block_equals_loops(clip: ClipBackbone) -> None:
    block = SwinTransformerBlock(clip.attention(2), input_resolution=(4, 4), window_size=2, num_heads=2)
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
        clip.attention(0), input_resolution=(side, side), window_size=window, shift_size=shift, num_heads=2
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
    prompt = PromptOptions(class_names=("cup", "lid"), prompt_length=2, state_template=LONG_TEMPLATE)
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, prompt=prompt, adapter=AdapterOptions(attn_drop=0.0))
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
    model = AnomalyCLIP(clip, feature_map_idx=(1, 3))
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
    layer = BasicLayer(clip.attention(0), input_resolution=(4, 4), window_size=2, depth=2, hidden_features=(16,))
    for block in layer.blocks:
        for norm in (block.norm1, block.norm2):
            nn.init.zeros_(norm.weight)
            nn.init.zeros_(norm.bias)
    x = torch.randn(2, 16, 64)
    assert layer(x).equal(x)


def test_frozen_projections_are_shared_and_the_input_bias_is_not_read(clip: ClipBackbone) -> None:
    attn = nn.MultiheadAttention(64, 4, batch_first=True)
    layer = BasicLayer(attn, input_resolution=(4, 4), window_size=2, attn_drop=0.0)
    x = torch.randn(1, 16, 64)
    before = layer(x)
    attn.in_proj_bias.data.fill_(5.0)
    assert layer(x).equal(before)
    attn.in_proj_weight.data.mul_(1.5)
    assert not torch.allclose(layer(x), before)
    assert not any(parameter.data_ptr() == attn.in_proj_weight.data_ptr() for parameter in layer.parameters())


def test_every_parameter_learns_and_the_clip_does_not(clip: ClipBackbone) -> None:
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, adapter=AdapterOptions(depth=(1, 1, 2, 2), window_size=(2,)))
    sum(sowa_loss(model(images()), torch.tensor([0, 1]), (torch.rand(2, 64, 64) > 0.8).long()).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    torch.optim.AdamW(model.parameters(), lr=0.1).step()
    assert all(value.equal(before[name]) for name, value in clip.state_dict().items())


def test_full_size_parameter_count() -> None:
    attn = nn.MultiheadAttention(1024, 16, batch_first=True, device="meta")
    layer = BasicLayer(attn, input_resolution=(24, 24))
    assert sum(p.numel() for p in layer.parameters()) == 1_053_384
    linear, prompts = 768 * 768 + 768, 2 * 12 * 768
    assert 4 * 1_053_384 + linear + prompts == 4_822_560
    table = layer.blocks[0].attn.coordinates  # type: ignore[union-attr]
    assert table.shape == (529, 2)  # type: ignore[union-attr]
    assert float(table.abs().max()) == pytest.approx(1.0566, abs=1e-4)  # type: ignore[operator, union-attr]


def test_share_weight_is_true_sharing(clip: ClipBackbone) -> None:
    own = AnomalyCLIP(clip, feature_map_idx=STAGES).visual_encoder
    shared = AnomalyCLIP(clip, feature_map_idx=STAGES, adapter=AdapterOptions(share_weight=True)).visual_encoder
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(own) == 4 * count(shared)
    x = torch.randn(1, 16, 64)
    shared.eval()
    assert not shared.adapters[0](x).equal(shared.adapters[3](x))  # the frozen attention stays each stage's own
    assert shared.adapters[0].blocks[0].norm1.weight is shared.adapters[3].blocks[0].norm1.weight  # type: ignore[union-attr]


def test_per_stage_adapters(clip: ClipBackbone) -> None:
    options = AdapterOptions(window_size=(2, 2, 4, 4), depth=(1, 1, 1, 2))
    adapters: Any = AnomalyCLIP(clip, feature_map_idx=STAGES, adapter=options).visual_encoder.adapters
    assert [adapter.blocks[0].window_size for adapter in adapters] == [2, 2, 4, 4]
    assert [len(adapter.blocks) for adapter in adapters] == [1, 1, 1, 2]
    shifted = AdapterOptions(window_size=(2,), depth=(2,))
    blocks: Any = AnomalyCLIP(clip, feature_map_idx=STAGES, adapter=shifted).visual_encoder.adapters[0].blocks
    assert [block.shift_size for block in blocks] == [0, 1]
    with pytest.raises(UserError, match="--window-size"):
        AnomalyCLIP(clip, feature_map_idx=STAGES, adapter=AdapterOptions(window_size=(2, 4)))


# -- text --------------------------------------------------------------------------------------------------------------


def test_prompt_order_and_context(clip: ClipBackbone) -> None:
    template = {"normal": ("{}", "good {}"), "anomaly": ("damaged {}", "broken {}")}
    learner = AnomalyPromptLearner(clip.text, class_names=("cup", "lid"), prompt_length=3, state_template=template)
    prompts, ids = learner()
    said = ["cup", "good cup", "lid", "good lid", "damaged cup", "broken cup", "damaged lid", "broken lid"]
    plain = clip.text.tokenize([f"x x x {text}." for text in said])
    assert ids.equal(plain[:, : ids.shape[1]])
    torch.testing.assert_close(prompts[3, 1:4], learner.ctx_pos[1, 1])
    torch.testing.assert_close(prompts[6, 1:4], learner.ctx_neg[1, 0])
    torch.testing.assert_close(prompts[:, 4:], clip.text.embed(ids)[:, 4:])
    features, maps = TextMapEncoder(clip.text, feature_map_idx=(0, -1))(prompts, ids)
    assert features.shape == (8, 32)
    assert [m.shape for m in maps] == [prompts.shape] * 2


def test_zero_tuning_encoder_picks_classes(clip: ClipBackbone) -> None:
    plain = PromptEncoder(clip.text, class_names=("cup", "lid"))
    found = PromptTextEncoder(plain)(["lid", "cup", "other"])
    torch.testing.assert_close(found, plain()[[1, 3, 0, 2, 0, 2]].view(3, 2, -1))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3, 2))
    learned = AnomalyPromptLearner(clip.text, class_names=("cup",))
    assert PromptTextEncoder(learned, TextMapEncoder(clip.text))(["cup"]).requires_grad


def test_templates_must_come_in_pairs() -> None:
    assert len(LONG_TEMPLATE["normal"]) == len(LONG_TEMPLATE["anomaly"]) == 44
    with pytest.raises(UserError, match="1 normal against 3"):
        check_templates({"normal": ["{}"], "anomaly": ["bad {}", "broken {}", "cut {}"]})
    with pytest.raises(UserError, match=r"no \{\}"):
        check_templates({"normal": ["good"], "anomaly": ["bad {}"]})


# -- scores ------------------------------------------------------------------------------------------------------------


def test_map_bounds_and_sum(clip: ClipBackbone) -> None:
    out = AnomalyCLIP(clip, feature_map_idx=STAGES)(images())
    for stage in out.anomaly_maps:
        torch.testing.assert_close(stage.sum(1), torch.ones(2, 64, 64))
        assert 0.119 < float(stage.min()) < float(stage.max()) < 0.881


def test_memory_knows_its_own_images(clip: ClipBackbone) -> None:
    model = AnomalyCLIP(clip, feature_map_idx=STAGES).eval()
    taps = clip.encode(images(5))
    support = {name: value[:2] for name, value in taps.items()}
    memory = build_memory(model, model.from_taps(support).patches)
    plain = detect(model, taps, ["cup"] * 5)
    found = detect(model, taps, ["cup"] * 5, {"cup": memory})
    added = found.map - plain.map  # type: ignore[operator]
    assert float(added[:2].abs().max()) < 1e-4
    assert float(added[2:].amax((1, 2)).min()) > 0.01
    # by hand: one patch of one stage
    bank = F.normalize(model.from_taps(support).patches[2].flatten(0, 1), dim=-1)
    patch = F.normalize(model.from_taps(taps).patches[2][4, 0], dim=0)
    nearest = 1 - (bank @ patch).max()
    only = Memory([memory.patches[2]], 1.0)
    one = AnomalyCLIP(clip, feature_map_idx=(2,)).eval()
    corner = detect(one, taps, ["cup"] * 5, {"cup": only}).map[4, 0, 0] - detect(one, taps, ["cup"] * 5).map[4, 0, 0]  # type: ignore[index]
    assert float(corner) == pytest.approx(float(nearest), abs=1e-4)
    scaled = found.parts["memory"]
    assert float(scaled[:2].max()) < 0.05 < float(scaled[2:].min())
    torch.testing.assert_close(found.score, (plain.score + scaled) / 2)


def test_support_scaled_score_needs_no_other_image(clip: ClipBackbone) -> None:
    model = AnomalyCLIP(clip, feature_map_idx=STAGES).eval()
    taps = clip.encode(images(6))
    memories = {"cup": build_memory(model, model.from_taps({k: v[:1] for k, v in taps.items()}).patches)}
    together = detect(model, taps, ["cup"] * 6, memories)
    alone = detect(model, {k: v[4:5] for k, v in taps.items()}, ["cup"], memories)
    torch.testing.assert_close(together.score[4:5], alone.score)
    raw = detect(model, taps, ["cup"] * 6, memories, scaling="transductive")
    scaled = scale_transductively(raw)
    peak = raw.map.flatten(1).amax(1)  # type: ignore[union-attr]
    want = (raw.parts["text"] + (peak - peak.min()) / (peak.max() - peak.min())) / 2
    torch.testing.assert_close(scaled.score, want)
    with pytest.raises(UserError, match="no support images of class 'lid'"):
        detect(model, taps, ["lid"] * 6, memories)


def test_memory_survives_a_checkpoint(clip: ClipBackbone) -> None:
    model = AnomalyCLIP(clip, feature_map_idx=STAGES).eval()
    memory = build_memory(model, model.from_taps(clip.encode(images(2))).patches)
    again = Memory.restore(memory.state())
    assert again.reference == memory.reference
    for mine, theirs in zip(memory.patches, again.patches, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3)


def test_stage_attention_averages_to_one(clip: ClipBackbone) -> None:
    model = AnomalyCLIP(clip, feature_map_idx=STAGES)
    for stage in model.stage_attention(clip.encode(images())):
        torch.testing.assert_close(stage.mean((1, 2)), torch.ones(2))


def test_training_can_start_at_the_zero_shot_answer(clip: ClipBackbone) -> None:
    """Adapters and linear map are the identity and contexts speak: the model answers what plain CLIP answers."""
    prompt = PromptOptions(prompt_length=4, initial_words="a photo of a")
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, prompt=prompt).eval()
    model.start_from_zero_shot()
    taps = clip.encode(images())
    out = model.from_taps(taps)
    torch.testing.assert_close(out.patch_features, out.patches)
    plain = clip.text.encode_text(["a photo of a object.", "a photo of a damaged object."])
    cosines = F.normalize(taps["pooled"], dim=-1) @ F.normalize(plain, dim=-1).T
    torch.testing.assert_close(out.text_probs, (cosines / 0.07).softmax(-1), rtol=1e-4, atol=1e-5)
    long = PromptOptions(prompt_length=6, initial_words="a photo of a")
    context = AnomalyCLIP(clip, feature_map_idx=STAGES, prompt=long).prompt_learner.ctx_neg[0, 0]  # type: ignore[union-attr]
    words = clip.text.embed(clip.text.tokenize(["of a a photo of a"]))[0, 1:7]
    torch.testing.assert_close(context, words)


# -- variants ----------------------------------------------------------------------------------------------------------


def test_residual_encoder_feeds_adapted_tokens_back(clip: ClipBackbone) -> None:
    encoder = VisionResidualEncoder(clip, feature_map_idx=(0, 2), adapter=AdapterOptions(attn_drop=0.0), gamma=0.3)
    randomise(encoder)
    visual = clip.clip.visual
    with torch.no_grad():
        pooled, raw, adapted = encoder(images())
        x = visual._embeds(images())
        for index, block in enumerate(visual.transformer.resblocks):
            x = block(x)
            if index in (0, 2):
                stage = index // 2
                changed = encoder.adapters[stage](x[:, 1:])
                torch.testing.assert_close(raw[stage], x[:, 1:] @ visual.proj)
                torch.testing.assert_close(adapted[stage], changed @ visual.proj)
                x = torch.cat([x[:, :1], 0.7 * x[:, 1:] + 0.3 * changed], dim=1)
        torch.testing.assert_close(pooled, visual.ln_post(x[:, 0]) @ visual.proj)
        # Without a share of it flowing back nothing in the tower changes: the ordinary encoder's answers.
        encoder.gamma = 0.0
        plain = VisionMapEncoder(clip, feature_map_idx=(0, 2), adapter=AdapterOptions(attn_drop=0.0))
        plain.load_state_dict(encoder.state_dict())
        for mine, theirs in zip(encoder(images()), plain(images()), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(pooled, plain(images())[0], atol=1e-3)
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, vision="residual")
    sum(sowa_loss(model(images()), torch.tensor([0, 1]), torch.rand(2, 64, 64) > 0.8).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_sparc_differs_only_in_where_the_linear_map_stands(clip: ClipBackbone) -> None:
    """sparc_* average a class's phrasings before the map, sowa_* after it: the same, because both are linear."""
    prompt = PromptOptions(class_names=("cup", "lid"), prompt_length=2, state_template=LONG_TEMPLATE)
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, prompt=prompt)
    randomise(model)
    names = ["lid", "cup", "other"]
    with torch.no_grad():
        text = model.text_features()
        after = model.cross_fusion.pairs(text, names)
        before = model.cross_fusion.linear(pick_classes(pool_text_features(text, 2), names, ("cup", "lid")))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert len(set(ENSEMBLE_TEMPLATES)) == 35
    assert all(text.count("{}") == 1 and text.endswith(".") for text in ENSEMBLE_TEMPLATES)


def test_logistic_fit_equals_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    x = torch.randn(400)
    y = (torch.rand(400) < torch.sigmoid(3 * x - 2)).float()
    peer = LogisticRegression(C=1e6, tol=1e-8).fit(x[:, None].numpy(), y.numpy())
    slope, offset = logistic_fit(x[:, None], y).tolist()
    assert slope == pytest.approx(float(peer.coef_[0, 0]), rel=1e-3)
    assert offset == pytest.approx(float(peer.intercept_[0]), rel=1e-3)
    constant = float(logistic_fit(x.new_zeros(400, 0), y, fixed=5 * x)[0])
    assert float(torch.sigmoid(5 * x + constant).mean()) == pytest.approx(float(y.mean()), abs=1e-4)


def test_calibration_meets_the_base_rate_and_keeps_the_order(clip: ClipBackbone) -> None:
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, calibrated=True).eval()
    taps = clip.encode(images(4))
    with torch.no_grad():
        bare = model.from_taps(taps).anomaly_maps
    differences = model.patch_differences(taps, [""] * 4).flatten(1)  # [stages, B * L]
    truth = torch.sigmoid(4 * (differences[1] - differences[1].quantile(0.9)) / differences[1].std())
    plain_sum = AnomalyCLIP(clip, feature_map_idx=STAGES).fused_map(bare)
    torch.testing.assert_close(plain_sum, sum(one[:, 1] for one in bare))
    model.fit_calibration(differences, truth)
    assert model.map_scale is not None
    assert model.map_offset is not None
    weights = model.stage_weights[:-1] * model.map_scale * differences.std(dim=1)
    assert int(weights.argmax()) == 1
    assert float(model.stage_weights[:-1].min()) >= 0
    for stage in range(4):
        p = torch.sigmoid(differences[stage] * model.map_scale[stage] + model.map_offset[stage])
        assert float(p.mean()) == pytest.approx(float(truth.mean()), abs=1e-3)
    with torch.no_grad():
        found = model.from_taps(taps).anomaly_maps
    for stage in range(4):
        old, new = bare[stage][:, 1].flatten(), found[stage][:, 1].flatten()
        assert (
            float(torch.corrcoef(torch.stack([old.argsort().argsort(), new.argsort().argsort()]).double())[0, 1]) > 0.99
        )
        torch.testing.assert_close(found[stage].sum(1), torch.ones(4, 64, 64))
    state = model.state_dict()
    assert {"map_scale", "map_offset", "stage_weights"} <= set(state)
    fused = model.fused_map(found)
    by_hand = sum(w * torch.logit(one[:, 1].double()) for w, one in zip(model.stage_weights[:-1], found, strict=True))
    torch.testing.assert_close(
        fused.double(), 4 * torch.sigmoid(by_hand + model.stage_weights[-1]), rtol=1e-3, atol=1e-4
    )
    plain = detect(model, taps, [""] * 4)
    mixed = detect(model, taps, [""] * 4, image_score="mean")
    assert plain.map is not None
    torch.testing.assert_close(mixed.score, (plain.score + plain.map.flatten(1).amax(1) / 4) / 2)
