"""SOWA's prompts, scores and variants: invariants, hand-computed values, scikit-learn's fit."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from anomaly_lib.backbones.clip import ClipBackbone
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa import (
    AnomalyCLIP,
    AnomalyPromptLearner,
    Memory,
    PromptConfig,
    PromptEncoder,
    PromptTextEncoder,
    TextMapEncoder,
    VisionMapEncoder,
    VisionResidualEncoder,
    build_memory,
    detect,
    sowa_loss,
)
from anomaly_lib.models.sowa.model import logistic_fit
from anomaly_lib.models.sowa.phrases import ENSEMBLE_TEMPLATES, LONG_TEMPLATE
from anomaly_lib.models.sowa.scores import scale_transductively
from anomaly_lib.models.sowa.text import pick_classes, pool_text_features
from tests.support.sowa import PUBLISHED, STAGES, images, randomise, tiny_clip

TEXT: dict[str, Any] = {"image_score": "text"}


@pytest.fixture(scope="module")
def clip() -> ClipBackbone:
    return tiny_clip()


# -- text --------------------------------------------------------------------------------------------------------------


def test_prompt_order_and_context(clip: ClipBackbone) -> None:
    template = {"normal": ("{}", "good {}"), "anomaly": ("damaged {}", "broken {}")}
    learner = AnomalyPromptLearner(
        clip.text, class_names=("cup", "lid"), prompt_length=3, state_template=template, start="random"
    )
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
        PromptConfig(normal_templates=["{}"], anomaly_templates=["bad {}", "broken {}", "cut {}"])
    with pytest.raises(UserError, match=r"no \{\}"):
        PromptConfig(normal_templates=["good"], anomaly_templates=["bad {}"])


# -- scores ------------------------------------------------------------------------------------------------------------


def test_map_bounds_and_sum(clip: ClipBackbone) -> None:
    out = AnomalyCLIP(clip, feature_map_idx=STAGES, **PUBLISHED)(images())
    for stage in out.anomaly_maps:
        torch.testing.assert_close(stage.sum(1), torch.ones(2, 64, 64))
        assert 0.119 < float(stage.min()) < float(stage.max()) < 0.881


def test_memory_knows_its_own_images(clip: ClipBackbone) -> None:
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, **PUBLISHED).eval()
    taps = clip.encode(images(5))
    support = {name: value[:2] for name, value in taps.items()}
    memory = build_memory(model, model.from_taps(support).patches)
    plain = detect(model, taps, ["cup"] * 5, **TEXT)
    found = detect(model, taps, ["cup"] * 5, {"cup": memory})
    added = found.map - plain.map  # type: ignore[operator]
    assert float(added[:2].abs().max()) < 1e-4
    assert float(added[2:].amax((1, 2)).min()) > 0.01
    # by hand: one patch of one stage
    bank = F.normalize(model.from_taps(support).patches[2].flatten(0, 1), dim=-1)
    patch = F.normalize(model.from_taps(taps).patches[2][4, 0], dim=0)
    nearest = 1 - (bank @ patch).max()
    only = Memory([memory.patches[2]], 1.0)
    one = AnomalyCLIP(clip, feature_map_idx=(2,), **PUBLISHED).eval()
    corner = detect(one, taps, ["cup"] * 5, {"cup": only}).map[4, 0, 0] - detect(one, taps, ["cup"] * 5).map[4, 0, 0]  # type: ignore[index]
    assert float(corner) == pytest.approx(float(nearest), abs=1e-4)
    scaled = found.parts["memory"]
    assert float(scaled[:2].max()) < 0.05 < float(scaled[2:].min())
    torch.testing.assert_close(found.score, (plain.score + scaled) / 2)


def test_support_scaled_score_needs_no_other_image(clip: ClipBackbone) -> None:
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, **PUBLISHED).eval()
    taps = clip.encode(images(6))
    memories = {"cup": build_memory(model, model.from_taps({k: v[:1] for k, v in taps.items()}).patches)}
    together = detect(model, taps, ["cup"] * 6, memories)
    alone = detect(model, {k: v[4:5] for k, v in taps.items()}, ["cup"], memories)
    torch.testing.assert_close(together.score[4:5], alone.score)
    raw = detect(model, taps, ["cup"] * 6, memories, score_scaling="transductive")
    scaled = scale_transductively(raw)
    peak = raw.map.flatten(1).amax(1)  # type: ignore[union-attr]
    want = (raw.parts["text"] + (peak - peak.min()) / (peak.max() - peak.min())) / 2
    torch.testing.assert_close(scaled.score, want)
    with pytest.raises(UserError, match="no support images of class 'lid'"):
        detect(model, taps, ["lid"] * 6, memories)


@pytest.mark.parametrize("options", [{}, PUBLISHED])
def test_maps_are_blurred_as_scipy_does_it(options: dict[str, Any], clip: ClipBackbone) -> None:
    """B4: SciPy's default border ("reflect" there, "symmetric" here), the memory's map added behind it, unblurred."""
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, **options).eval()
    taps = clip.encode(images(2))
    memories = {"cup": build_memory(model, model.from_taps(taps).patches)}
    for memory in ({}, memories):
        sharp = detect(model, taps, ["cup"] * 2, memory, sigma=0.0).map
        found = detect(model, taps, ["cup"] * 2, memory, sigma=4.0).map
        distance = sharp - detect(model, taps, ["cup"] * 2, {}, sigma=0.0).map  # 0 without a memory
        want = [ndimage.gaussian_filter(one, sigma=4) for one in (sharp - distance).double().numpy()]
        torch.testing.assert_close((found - distance).double(), torch.from_numpy(np.stack(want)), rtol=0, atol=1e-6)


def test_memory_survives_a_checkpoint(clip: ClipBackbone) -> None:
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, **PUBLISHED).eval()
    memory = build_memory(model, model.from_taps(clip.encode(images(2))).patches)
    again = Memory.restore(memory.state())
    assert again.reference == memory.reference
    for mine, theirs in zip(memory.patches, again.patches, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3)


def test_stage_attention_averages_to_one(clip: ClipBackbone) -> None:
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, **PUBLISHED)
    for stage in model.stage_attention(clip.encode(images())):
        torch.testing.assert_close(stage.mean((1, 2)), torch.ones(2))


def test_training_can_start_at_the_zero_shot_answer(clip: ClipBackbone) -> None:
    """Adapters and linear map are the identity and contexts speak: the model answers what plain CLIP answers."""
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, prompt_length=4, start="zero-shot").eval()
    taps = clip.encode(images())
    out = model.from_taps(taps)
    torch.testing.assert_close(out.patch_features, out.patches)
    plain = clip.text.encode_text(["a photo of a object.", "a photo of a damaged object."])
    cosines = F.normalize(taps["pooled"], dim=-1) @ F.normalize(plain, dim=-1).T
    torch.testing.assert_close(out.text_probs, (cosines / 0.07).softmax(-1), rtol=1e-4, atol=1e-5)
    context = AnomalyCLIP(clip, feature_map_idx=STAGES, prompt_length=6).prompt_learner.ctx_neg[0, 0]  # type: ignore[union-attr]
    words = clip.text.embed(clip.text.tokenize(["of a a photo of a"]))[0, 1:7]
    torch.testing.assert_close(context, words)


# -- variants ----------------------------------------------------------------------------------------------------------


def test_residual_encoder_feeds_adapted_tokens_back(clip: ClipBackbone) -> None:
    encoder = VisionResidualEncoder(clip, feature_map_idx=(0, 2), attn_drop=0.0, gamma=0.3)
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
        encoder.config.gamma = 0.0
        plain = VisionMapEncoder(clip, feature_map_idx=(0, 2), attn_drop=0.0)
        plain.load_state_dict(encoder.state_dict())
        for mine, theirs in zip(encoder(images()), plain(images()), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(pooled, plain(images())[0], atol=1e-3)
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, vision="residual", **PUBLISHED)
    sum(sowa_loss(model(images()), torch.tensor([0, 1]), torch.rand(2, 64, 64) > 0.8).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_sparc_differs_only_in_where_the_linear_map_stands(clip: ClipBackbone) -> None:
    """sparc_* average a class's phrasings before the map, sowa_* after it: the same, because both are linear."""
    prompt: dict[str, Any] = {"class_names": ["cup", "lid"], "prompt_length": 2, "state_template": LONG_TEMPLATE}
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, **prompt, **PUBLISHED)
    randomise(model)
    names = ["lid", "cup", "other"]
    with torch.no_grad():
        text = model.text_features()
        after = model.cross_fusion.pairs(text, names)
        before = model.cross_fusion.linear(pick_classes(pool_text_features(text, 2), names, ("cup", "lid")))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert len(set(ENSEMBLE_TEMPLATES)) == 35
    assert all(text.count("{}") == 1 and text.endswith(".") for text in ENSEMBLE_TEMPLATES)


def test_logistic_fit_does_not_leave_for_infinity() -> None:
    """Sixty-four patches of which four are a little defective: the offset is the logit of their mean share."""
    share = torch.zeros(64)
    share[:4] = torch.tensor([0.01, 0.6, 0.02, 0.05])
    values = torch.linspace(0.2, 0.4, 64)  # all far on one side: the curve is flat there
    offset = float(logistic_fit(values.new_zeros(64, 0), share, fixed=47 * values)[0])
    assert abs(float(torch.sigmoid(47 * values.double() + offset).mean()) - float(share.mean())) < 1e-4


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
    model = AnomalyCLIP(clip, feature_map_idx=STAGES, start="random").eval()
    taps = clip.encode(images(4))
    with torch.no_grad():
        bare = model.from_taps(taps).anomaly_maps
    differences = model.patch_differences(taps, [""] * 4).flatten(1)  # [stages, B * L]
    truth = torch.sigmoid(4 * (differences[1] - differences[1].quantile(0.9)) / differences[1].std())
    plain_sum = AnomalyCLIP(clip, feature_map_idx=STAGES, **PUBLISHED).fused_map(bare)
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
    plain = detect(model, taps, [""] * 4, **TEXT)
    mixed = detect(model, taps, [""] * 4)
    assert plain.map is not None
    torch.testing.assert_close(mixed.score, (plain.score + plain.map.flatten(1).amax(1) / 4) / 2)
