"""Invariants of PromptAD's prompts, towers, memory and scores (the twin in tests/parity checks the values)."""

import pytest
import torch
import torch.nn.functional as F

from anomaly_lib.backbones.attention import attend, project_qkv
from anomaly_lib.backbones.clip import ClipBackbone, create_clip
from anomaly_lib.fusion import FUSIONS
from anomaly_lib.models.promptad.config import PromptADConfig, ScoreConfig
from anomaly_lib.models.promptad.model import PromptAD, TextFeatures, promptad_losses
from anomaly_lib.models.promptad.prompts import PromptLearner, PromptTree, learned_pairs
from anomaly_lib.models.promptad.scores import Branches, ImageFeatures, Scoring, textual_score, visual_score
from anomaly_lib.models.promptad.states import GENERIC_STATES, class_text, state_templates

OUTPUTS = ["pooled", "vv_tokens", "layer.0", "layer.2", "next_attn.0", "next_attn.2"]


@pytest.fixture(scope="module")
def clip() -> ClipBackbone:
    return create_clip("tiny-clip", weights="random", layers=OUTPUTS)


def _unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def _features(images: int = 3, patches: int = 4) -> ImageFeatures:
    side = int(patches**0.5)
    taps = [_unit(images, patches, 64), _unit(images, patches, 64)]
    return ImageFeatures(taps, (side, side), (side, side), _unit(images, 32), _unit(images, patches, 32))


def _model(**options: object) -> PromptAD:
    return PromptAD.from_name("tiny-clip", weights="random", class_name="screw", **options)


def test_published_states_and_names() -> None:
    assert class_text("pcb3") == "printed circuit board"
    assert class_text("my_part") == "my part"
    assert state_templates("never_seen") == list(GENERIC_STATES)
    assert state_templates("capsule")[-1] == "{} squeezed with compression"
    assert state_templates("fryum").count("{} with colour spot") == 2
    assert state_templates("x", ["dent", "torn {}"])[-2:] == ["{} with dent", "torn {}"]


@pytest.mark.parametrize(("n_pro", "n_pro_ab"), [(3, 4), (1, 4), (2, 4)])
@pytest.mark.parametrize("pairing", ["all", "modulo"])
def test_number_and_order_of_prompts(clip: ClipBackbone, n_pro: int, n_pro_ab: int, pairing: str) -> None:
    learner = PromptLearner(text=clip.text, class_name="wood", n_pro=n_pro, n_pro_ab=n_pro_ab, pairing=pairing)
    assert learner.counts == (n_pro, (8 + 4) * n_pro, n_pro * n_pro_ab)
    assert len(learner.sequences) == sum(learner.counts)
    assert learner.sequences[n_pro][1] == ("normal", 0, 0)  # state outer, context inner
    assert learner.sequences[n_pro + n_pro - 1][1] == ("normal", n_pro - 1, 0)


def test_pairings_agree_exactly_when_the_counts_are_coprime() -> None:
    assert set(learned_pairs(3, 4, "modulo")) == set(learned_pairs(3, 4, "all"))
    assert len(set(learned_pairs(2, 4, "modulo"))) == 4
    assert len(set(learned_pairs(2, 4, "all"))) == 8
    with pytest.raises(ValueError, match="pairing=some"):
        _model(pairing="some")


def test_tree_shares_beginnings_and_knows_ancestors() -> None:
    tree = PromptTree([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3]])
    assert tree.symbols == [1, 2, 3, 4, 5]
    assert tree.positions.tolist() == [0, 1, 2, 2, 3]
    assert tree.ends.tolist() == [2, 4, 2]
    assert tree.seen[4].tolist() == [True, True, False, True, True]


def test_tree_equals_every_prompt_by_itself(clip: ClipBackbone) -> None:
    learner = PromptLearner(text=clip.text, class_name="metal_nut", n_ctx=2, n_ctx_ab=3)
    tree_features = torch.cat(learner(clip.text))
    contexts = {"normal": learner.normal_ctx, "abnormal": learner.abnormal_ctx}
    for row in range(0, len(learner.sequences), 5):
        tokens = [
            clip.text.embed(torch.tensor(symbol))
            if isinstance(symbol, int)
            else contexts[symbol[0]][symbol[1], symbol[2]]
            for symbol in learner.sequences[row]
        ]
        alone = clip.text.encode(torch.stack(tokens)[None], torch.tensor([len(tokens) - 1]))[0]
        torch.testing.assert_close(tree_features[row], alone, atol=1e-5, rtol=1e-4)


def test_only_the_two_contexts_learn() -> None:
    model = _model()
    clip = model.towers.clip
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "learner.normal_ctx",
        "learner.abnormal_ctx",
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sum(model.losses(_unit(2, 32)).values()).backward()
    optimizer.step()
    assert all(float(p.grad.abs().min()) >= 0 and float(p.grad.abs().max()) > 0 for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in clip.state_dict().items())


def test_training_lowers_the_loss() -> None:
    model, features = _model(logit_scale="exp"), _unit(2, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    values = []
    for _ in range(12):
        loss = sum(model.losses(features).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]


def test_value_value_stream_is_the_sum_of_its_attentions(clip: ClipBackbone) -> None:
    images = torch.randn(2, 3, 64, 64)
    visual = clip.clip.visual
    with torch.no_grad():
        x = start = visual._embeds(images)
        total = torch.zeros_like(x)
        for block in visual.transformer.resblocks:
            _, _, v = project_qkv(block.attn, block.ln_1(x))
            total = total + attend(block.attn, v, v, v)
            x = block(x)
        want = visual.ln_post((start + total)[:, 1:]) @ visual.proj
        out = clip.encode(images)
        torch.testing.assert_close(out["vv_tokens"], want, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(out["pooled"], clip.clip.encode_image(images), atol=1e-5, rtol=1e-5)


def test_paper_tap_is_the_next_blocks_attention_state(clip: ClipBackbone) -> None:
    out = clip.encode(torch.randn(1, 3, 64, 64))
    assert not torch.allclose(out["layer.2"], out["next_attn.2"], atol=1e-3)


def test_memory_of_itself_is_zero_and_never_negative() -> None:
    taps = [_unit(3, 4, 8), _unit(3, 4, 8)]
    score, margin = visual_score(taps, [tap.flatten(0, 1) for tap in taps], k=2)
    assert float(score.abs().max()) <= 1e-6
    assert float(score.min()) >= 0
    assert float(margin.min()) > 0


def test_visual_score_by_hand() -> None:
    taps, galleries = [_unit(2, 3, 8), _unit(2, 3, 8)], [_unit(5, 8), _unit(5, 8)]
    score, _ = visual_score(taps, galleries)
    for n in range(2):
        for p in range(3):
            nearest = [
                min((1 - float(tap[n, p] @ row)) / 2 for row in bank) for tap, bank in zip(taps, galleries, strict=True)
            ]
            assert float(score[n, p]) == pytest.approx(sum(nearest) / 2, abs=1e-6)


def test_textual_score_is_a_softmax() -> None:
    f, prototypes = _unit(5, 6), _unit(2, 6)
    want = torch.softmax(4.6 * f @ prototypes.T, dim=-1)[:, 1]
    torch.testing.assert_close(textual_score(f, prototypes, 4.6), want)


def test_triplet_axis_changes_segmentation_only() -> None:
    text = TextFeatures(torch.randn(3, 6), torch.randn(8, 6), torch.randn(4, 6))
    f_cls, f_seg = _unit(4, 6), _unit(2, 9, 6)
    common = {"scale": 4.6, "alignment_weight": 0.001}
    a, b = (promptad_losses(f_cls, text, triplet_axis=axis, **common)["margin"] for axis in ("channel", "patch"))
    torch.testing.assert_close(a, b)
    a, b = (promptad_losses(f_seg, text, triplet_axis=axis, **common)["margin"] for axis in ("channel", "patch"))
    assert abs(float(a - b)) > 1e-4


@pytest.mark.parametrize("task", ["cls", "seg"])
def test_every_fusion_scores_and_orders(task: str) -> None:
    model = _model()
    model.remember([_unit(8, 64), _unit(8, 64)])
    model.keep_text_features()
    features = _features()
    normal = Branches(torch.rand(5), torch.rand(5), torch.rand(5, 2, 2), torch.rand(5))
    seen = set()
    for mode in FUSIONS:
        config = ScoreConfig(task=task, fusion_mode=mode, fusion_weights=[1.0, 2.0], resolution=16)
        prediction = Scoring(config, normal).predict(model.branches(features, config))
        assert prediction.score.shape == (3,)
        assert prediction.map.shape == (3, 16, 16)
        assert torch.isfinite(prediction.score).all()
        seen.add(round(float(prediction.score[0]), 6))
    assert len(seen) == len(FUSIONS)


def test_scoring_many_images_equals_one_by_one() -> None:
    model = _model(task="seg", resolution=16)
    model.remember([_unit(8, 64), _unit(8, 64)])
    model.keep_text_features()
    features, scoring = _features(), Scoring(model.config)
    together = scoring.predict(model.branches(features))
    for n in range(3):
        alone = scoring.predict(model.branches(features[[n]]))
        torch.testing.assert_close(alone.map[0], together.map[n])


def test_defaults_of_the_class_are_those_of_the_options() -> None:
    """A3: the class said "exp" where the options said "raw"."""
    model = _model()
    assert model.config == PromptADConfig()
    assert model.config.logit_scale == "raw"
    assert float(model.logit_scale) == float(model.towers.logit_scale)
    assert float(_model(logit_scale="exp").logit_scale) == pytest.approx(float(model.towers.logit_scale.exp()))
    with pytest.raises(ValueError, match="not both"):
        PromptAD(PromptADConfig(), towers=model.towers, fusion_mode="max")


@pytest.mark.parametrize("task", ["cls", "seg"])
@pytest.mark.parametrize("mode", ["max", "harmonic", "mean"])
def test_forward_is_what_document_000_writes(task: str, mode: str) -> None:
    """B10: PromptAD(..., fusion_mode=...) and forward(images, task), against the document's formulas by hand."""
    model = _model(fusion_mode=mode, resolution=64, sigma=0.0)
    support, images = torch.randn(2, 3, 64, 64), torch.randn(3, 3, 64, 64)
    model.remember(support)
    found = model(images, task)
    text = model.encode_prompts()
    normal, abnormal = (F.normalize(group.mean(0), dim=0) for group in (text.normal, text.abnormal))
    out = model.towers.clip.encode(images)
    feature = F.normalize(out["pooled" if task == "cls" else "vv_tokens"], dim=-1)
    both = torch.stack([feature @ normal, feature @ abnormal], -1) * model.towers.logit_scale
    textual = both.softmax(-1)[..., 1]
    visual = torch.zeros(3, 16)
    for tap, stored in zip(model.towers.taps, model.galleries, strict=True):
        rows = F.normalize(out[tap], dim=-1)
        visual += (1 - (rows @ stored.T).amax(-1)) / 4
    grid = F.interpolate(visual.view(3, 1, 4, 4), (64, 64), mode="bilinear").squeeze(1)
    if task == "cls":
        a, b = textual, grid.amax((1, 2))
    else:
        a, b = textual.view(3, 4, 4), visual.view(3, 4, 4)
    fused = {"max": torch.maximum(a, b), "harmonic": 1 / (1 / a + 1 / b), "mean": 0.5 * (a + b)}[mode]
    if task == "cls":
        torch.testing.assert_close(found.score, fused, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.map, grid, atol=1e-5, rtol=1e-4)
    else:
        want = F.interpolate(fused[:, None], (64, 64), mode="bilinear").squeeze(1)
        torch.testing.assert_close(found.map, want, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.score, found.map.amax((1, 2)))
    assert torch.equal(model(images, task).score, found.score)


def test_forward_follows_the_contexts_in_training_and_the_kept_prototypes_in_eval() -> None:
    model, images = _model(resolution=16), torch.randn(1, 3, 64, 64)
    model.remember(torch.randn(1, 3, 64, 64))
    before = model(images).parts["textual"]
    model.eval()
    with torch.no_grad():
        model.learner.normal_ctx.normal_()
    assert torch.equal(model(images).parts["textual"], before)
    model.train()
    assert not torch.equal(model(images).parts["textual"], before)


def test_wrong_inputs_say_what_was_expected() -> None:
    model = _model()
    images = torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match="remember"):
        model(images)
    model.remember(images)
    with pytest.raises(ValueError, match=r"expected images \[B, 3, 64, 64\] for tiny-clip, got \[1, 3, 32, 32\]"):
        model(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="task=segm: choose from cls, seg"):
        model(images, "segm")
    with pytest.raises(ValueError, match=r"expected rows of widths \[64, 64\]"):
        model.remember([torch.zeros(4, 8), torch.zeros(4, 8)])
    with pytest.raises(ValueError, match="memory_layers"):
        _model(memory_layers=[0, 4])
    for mode in ("rank", "z-score"):
        with pytest.raises(ValueError, match="support images"):
            _model_remembering(images, fusion_mode=mode)(images)


def _model_remembering(images: torch.Tensor, **options: object) -> PromptAD:
    model = _model(**options)
    model.remember(images)
    return model


def test_towers_are_shown_but_not_stored() -> None:
    model = _model_remembering(torch.randn(2, 3, 64, 64), class_text="hex nut")
    assert set(model.state_dict()) == {
        "logit_scale", "text_features", "feature_gallery1", "feature_gallery2", "learner.normal_ctx",
        "learner.abnormal_ctx",
    }  # fmt: skip
    shown = repr(model)
    assert "'screw', task=cls, fusion_mode=harmonic" in shown
    assert "tiny-clip at (64, 64), taps layer.0, layer.2" in shown
    assert "prompts on 'hex nut': 3 normal, 33 manual, 12 learned" in shown
    assert "memory: [32, 64], [32, 64]" in shown
    model.double()
    assert model.towers.logit_scale.dtype == torch.float64
    assert model.galleries[0].dtype == torch.float64
