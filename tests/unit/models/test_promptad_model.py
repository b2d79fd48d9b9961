"""Invariants of PromptAD's prompts, towers, memory and scores (the twin in tests/parity checks the values)."""

import pytest
import torch
import torch.nn.functional as F

from anomaly_lib.backbones.attention import attend, project_qkv
from anomaly_lib.backbones.clip import ClipBackbone, create_clip
from anomaly_lib.fusion import FUSIONS
from anomaly_lib.models.promptad.model import PromptAD, TextFeatures, promptad_losses, textual_score, visual_score
from anomaly_lib.models.promptad.prompts import PromptLearner, PromptTree, learned_pairs
from anomaly_lib.models.promptad.scores import ImageFeatures, ScoreSettings, branch_scores, combine
from anomaly_lib.models.promptad.states import GENERIC_STATES, class_text, state_templates

OUTPUTS = ["pooled", "vv_tokens", "layer.0", "layer.2", "next_attn.0", "next_attn.2"]


@pytest.fixture(scope="module")
def clip() -> ClipBackbone:
    return create_clip("tiny-clip", weights="random", layers=OUTPUTS)


def _unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def _features(images: int = 3, patches: int = 4) -> ImageFeatures:
    side = int(patches**0.5)
    taps = [_unit(images, patches, 8), _unit(images, patches, 8)]
    return ImageFeatures(taps, (side, side), (side, side), _unit(images, 32), _unit(images, patches, 32))


def _model(clip: ClipBackbone, images: int = 2, patches: int = 4, **options: str) -> PromptAD:
    learner = PromptLearner(clip.text, class_text="screw", states=state_templates("screw"))
    shape = [(images * patches, 8)] * 2
    return PromptAD(learner, stored_logit_scale=clip.logit_scale, joint_dim=32, memory_shape=shape, **options)


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
    states = state_templates("wood")
    learner = PromptLearner(
        clip.text, class_text="wood", states=states, n_pro=n_pro, n_pro_ab=n_pro_ab, pairing=pairing
    )
    assert learner.counts == (n_pro, (8 + 4) * n_pro, n_pro * n_pro_ab)
    assert len(learner.sequences) == sum(learner.counts)
    assert learner.sequences[n_pro][1] == ("normal", 0, 0)  # state outer, context inner
    assert learner.sequences[n_pro + n_pro - 1][1] == ("normal", n_pro - 1, 0)


def test_pairings_agree_exactly_when_the_counts_are_coprime() -> None:
    assert set(learned_pairs(3, 4, "modulo")) == set(learned_pairs(3, 4, "all"))
    assert len(set(learned_pairs(2, 4, "modulo"))) == 4
    assert len(set(learned_pairs(2, 4, "all"))) == 8
    with pytest.raises(ValueError, match="pairing"):
        learned_pairs(1, 1, "some")


def test_tree_shares_beginnings_and_knows_ancestors() -> None:
    tree = PromptTree([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3]])
    assert tree.symbols == [1, 2, 3, 4, 5]
    assert tree.positions.tolist() == [0, 1, 2, 2, 3]
    assert tree.ends.tolist() == [2, 4, 2]
    assert tree.seen[4].tolist() == [True, True, False, True, True]


def test_tree_equals_every_prompt_by_itself(clip: ClipBackbone) -> None:
    learner = PromptLearner(clip.text, class_text="metal nut", states=state_templates("metal_nut"), n_ctx=2, n_ctx_ab=3)
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


def test_only_the_two_contexts_learn(clip: ClipBackbone) -> None:
    model = _model(clip)
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "learner.normal_ctx",
        "learner.abnormal_ctx",
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sum(model.losses(_unit(2, 32), clip.text).values()).backward()
    optimizer.step()
    assert all(float(p.grad.abs().min()) >= 0 and float(p.grad.abs().max()) > 0 for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in clip.state_dict().items())


def test_training_lowers_the_loss(clip: ClipBackbone) -> None:
    model, features = _model(clip), _unit(2, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    values = []
    for _ in range(12):
        loss = sum(model.losses(features, clip.text).values())
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
def test_every_fusion_scores_and_orders(clip: ClipBackbone, task: str) -> None:
    model = _model(clip)
    model.remember([_unit(8, 8), _unit(8, 8)])
    model.keep_text_features(clip.text)
    features = _features()
    seen = set()
    for mode in FUSIONS:
        settings = ScoreSettings(
            task=task,
            fusion=mode,
            weights=(1.0, 2.0),
            map_size=(16, 16),
            references={"textual": torch.rand(5), "visual": torch.rand(5)},
        )
        prediction = combine(branch_scores(model, features, settings), settings, branch_maps=True)
        assert prediction.score.shape == (3,)
        assert prediction.map.shape == (3, 16, 16)
        assert torch.isfinite(prediction.score).all()
        seen.add(round(float(prediction.score[0]), 6))
    assert len(seen) == len(FUSIONS)


def test_scoring_many_images_equals_one_by_one(clip: ClipBackbone) -> None:
    model = _model(clip)
    model.remember([_unit(8, 8), _unit(8, 8)])
    model.keep_text_features(clip.text)
    features, settings = _features(), ScoreSettings(task="seg", map_size=(16, 16))
    together = combine(branch_scores(model, features, settings), settings)
    for n in range(3):
        alone = combine(branch_scores(model, features[[n]], settings), settings)
        torch.testing.assert_close(alone.map[0], together.map[n])
