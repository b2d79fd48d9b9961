"""Causal-FiLM: golden sizes, golden numbers, identity at step 0, missing modalities, every option trains."""

import inspect
import math

import pytest
import torch
from torch import nn

from anomaly_lib.errors import UserError
from anomaly_lib.models.weld.causal_film import CausalFiLM
from anomaly_lib.models.weld.causal_film_loss import CausalFiLMLoss, anomaly_score, collapse_monitor
from anomaly_lib.models.weld.causal_film_parts import (
    AntiGenDecoder,
    GeM,
    ProcessEncoder,
    RobustResultEncoder,
    SensorModulator,
)
from anomaly_lib.models.weld.config import BRANCH_PRESETS, CausalFiLMConfig, LossConfig, parse_branches

SMALL = {"video_dim": 12, "audio_dim": 10, "image_dim": 16, "d_model": 16, "sensor_hidden": 8, "process_heads": 2}
SMALL_BRANCHES = "2.mean,2.gem,3.mean"


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small_batch(batch: int = 4, views: int = 3, branches: int = 3) -> dict:
    return {
        "video": torch.randn(batch, 6, 12),
        "audio": torch.randn(batch, 5, 10),
        "sensors": torch.randn(batch, 20, 6),
        "images": [torch.randn(batch, views, 4, 16) for _ in range(branches)],
        "present": torch.ones(batch, 4, dtype=torch.bool),
        "views": torch.ones(batch, views, dtype=torch.bool),
    }


@pytest.mark.parametrize(
    ("changes", "golden"),
    [
        ({"branches": "L21+L32"}, 13_508_864),
        ({"branches": "doc"}, 13_508_866),
        ({}, 18_264_385),
        ({"branches": "L21+L32", "d_model": 384, "sensor_hidden": 96}, 10_170_208),
    ],
)
def test_golden_parameter_counts(changes: dict, golden: int) -> None:
    with torch.device("meta"):
        assert size(CausalFiLM(**changes)) == golden


def test_golden_sizes_of_the_parts() -> None:
    with torch.device("meta"):
        model = CausalFiLM(branches="L21+L32")
        decoder = AntiGenDecoder()
    sizes = [size(m) for m in (model.modulator, model.video_projector, model.audio_projector, model.process, decoder)]
    assert sizes == [366_720, 788_480, 657_408, 6_309_888, 526_336]
    assert size(model.result) == 4_860_032


@pytest.mark.parity
def test_golden_total_with_the_frozen_backbones() -> None:
    """1,266,817,664: what the original prints. It includes a dead Linear(1280, 768) behind its frozen image encoder."""
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        video = transformers.VJEPA2Model(transformers.VJEPA2Config(hidden_size=1024, num_hidden_layers=24))
        audio = transformers.ASTModel(transformers.ASTConfig(frequency_stride=14, time_stride=14))
        image = transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(
                hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
                num_register_tokens=4, use_gated_mlp=True, hidden_act="silu", key_bias=False, patch_size=16,
            )
        )  # fmt: skip
        model = CausalFiLM(branches="L21+L32")
        dead = nn.Linear(1280, 768)
    assert size(audio) == 85_761_024
    assert size(video) == 325_971_328
    assert size(image) == 840_592_640
    assert sum(map(size, (video, audio, image, dead, model))) == 1_266_817_664


def test_gem_golden_values_and_limits() -> None:
    tokens = torch.tensor([[1.0], [2.0], [3.0], [-4.0]])
    for p, golden in ((1.0, 1.5), (3.0, 2.0800838), (6.0, 2.4152384)):
        assert GeM(p=p)(tokens).item() == pytest.approx(golden, abs=1e-6)
    positive = torch.rand(5, 7, 3) + 0.1
    torch.testing.assert_close(GeM(p=1.0)(positive), positive.mean(-2))
    torch.testing.assert_close(GeM(p=200.0)(positive), positive.amax(-2), rtol=0.02, atol=0)
    assert GeM(p=1.0, mode="signed")(tokens).item() == pytest.approx(0.5, abs=1e-6)
    gem = GeM(p=0.2)
    torch.testing.assert_close(gem(positive), positive.mean(-2))  # p never falls below 1


def test_golden_loss_and_score() -> None:
    f, g = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.ones(1, 4)
    assert anomaly_score(f, g).item() == pytest.approx(25.0871291, abs=1e-5)
    assert anomaly_score(f, g, kind="cosine").item() == pytest.approx(0.0871291, abs=1e-6)
    assert anomaly_score(f, g, kind="mean_abs").item() == pytest.approx(1.5)
    terms = CausalFiLMLoss(preset="doc", gram_norm="mse", d_model=4)(f, g)
    assert terms["gram"].item() == pytest.approx(2.796875)
    assert terms["loss"].item() == pytest.approx(0.0871291 + 10 * 1.5 + 2.796875, abs=1e-5)
    frobenius = CausalFiLMLoss(preset="doc", d_model=4)(f, g)["gram"]
    assert frobenius.item() == pytest.approx(6.6895442, abs=1e-5)


def test_the_text_term_trains_its_own_head() -> None:
    text = torch.randn(32)
    loss = CausalFiLMLoss(preset="doc", d_model=8, text=text).eval()
    z = torch.randn(3, 8)
    terms = loss(z, z)
    head = nn.functional.normalize(loss.text_head(z), dim=-1)
    expected = 1 - (head @ nn.functional.normalize(text, dim=0)).mean()
    assert terms["text"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert terms["loss"].item() == pytest.approx(0.1 * expected.item(), abs=1e-5)
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    assert CausalFiLMLoss(preset="best", d_model=8)(z, z)["text"] == 0  # works without CLIP


@pytest.mark.parametrize("kind", ["mamba", "gru", "transformer", "none"])
def test_modulator_is_the_identity_at_step_0(kind: str) -> None:
    gamma, beta = SensorModulator(d_model=8, modulator=kind)(torch.randn(3, 11, 6))
    assert torch.equal(gamma, torch.ones(3, 1, 8))
    assert torch.equal(beta, torch.zeros(3, 1, 8))


def test_modulator_sees_the_whole_series_and_ignores_absent_sensors() -> None:
    modulator = SensorModulator(sensor_hidden=8, d_model=8)
    nn.init.normal_(modulator.head.weight)
    early = torch.randn(2, 64, 6)
    late = early.clone()
    early[:, 0] += 3  # the very first step still reaches the last token
    assert not torch.allclose(modulator(early)[0], modulator(late)[0], atol=1e-7)
    gamma, beta = modulator(early, torch.tensor([True, False]))
    assert torch.equal(gamma[1], torch.ones(1, 8))
    assert torch.equal(beta[1], torch.zeros(1, 8))
    assert not torch.equal(gamma[0], torch.ones(1, 8))


def test_film_reaches_the_tokens_as_the_formula_says() -> None:
    model = CausalFiLM(**SMALL, branches=SMALL_BRANCHES, split_film=True).eval()
    nn.init.normal_(model.modulator.head.bias)
    batch = small_batch()
    seen: list[torch.Tensor] = []
    model.process.register_forward_pre_hook(lambda _, args: seen.extend(args[:2]))
    out = model(batch)
    for i, (tokens, net) in enumerate([("video", model.video_projector), ("audio", model.audio_projector)]):
        torch.testing.assert_close(seen[i], net(batch[tokens]) * out.gamma[:, i : i + 1] + out.beta[:, i : i + 1])
    assert not torch.equal(out.gamma[:, 0], out.gamma[:, 1])


def test_absent_modalities_do_not_leak_and_never_make_nan() -> None:
    model = CausalFiLM(**SMALL, branches=SMALL_BRANCHES).eval()
    batch = small_batch()
    batch["present"][0, 2] = False  # no audio
    batch["present"][1, 0] = False  # no video
    batch["present"][2] = torch.tensor([False, True, False, False])
    first = model(batch)
    assert all(t.isfinite().all() for t in (first.z_process, first.z_pred, first.z_result))
    batch["audio"][0], batch["video"][1], batch["sensors"][2] = 99.0, 99.0, 99.0
    second = model(batch)
    torch.testing.assert_close(first.z_process, second.z_process)
    batch["audio"][3] += 1
    assert not torch.allclose(model(batch).z_process[3], first.z_process[3])


def test_aligned_sensors_read_video_and_sound_at_their_own_time() -> None:
    torch.manual_seed(0)
    plain = CausalFiLM(**SMALL, branches=SMALL_BRANCHES)
    torch.manual_seed(0)
    model = CausalFiLM(**SMALL, branches=SMALL_BRANCHES, align=True, video_steps=3, audio_rows=1, audio_prefix=0)
    own = model.state_dict()
    assert {name.split(".")[0] for name in own.keys() - plain.state_dict().keys()} == {"align"}
    assert all(torch.equal(value, own[name]) for name, value in plain.state_dict().items())  # drawn as without it
    batch = small_batch()
    plain.eval(), model.eval()
    for net in (plain, model):
        torch.manual_seed(1)
        nn.init.normal_(net.modulator.head.weight)
    assert torch.equal(model(batch).z_pred, plain(batch).z_pred)  # the identity at step 0
    for aligner in model.align.values():
        nn.init.normal_(aligner.attention.output.weight)
    first = model(batch)
    assert not torch.allclose(first.gamma, plain(batch).gamma, atol=1e-3)  # what the sensors say has changed
    first.z_pred.sum().backward()
    assert all(abs(float(aligner.offset.grad)) > 0 for aligner in model.align.values())
    for part, place in (("video", 0), ("audio", 2)):
        lacking = {**batch, "present": batch["present"].clone()}
        lacking["present"][0, place] = False
        one = model(lacking)
        two = model({**lacking, part: torch.cat([torch.full_like(batch[part][:1], 9.0), batch[part][1:]])})
        assert torch.equal(one.gamma, two.gamma)  # an absent recording adds nothing
        assert not torch.equal(one.gamma[0], first.gamma[0])
        assert torch.equal(one.gamma[1:], first.gamma[1:])
    lacking = {**batch, "present": torch.tensor([[True, True, True, False]] * 4)}
    assert torch.equal(model(lacking).gamma, torch.ones(4, 1, 16))  # without sensors nothing is modulated
    with pytest.raises(ValueError, match="align=True needs a multiple of 4"):
        CausalFiLMConfig(align=True, sensor_hidden=6)
    with pytest.raises(ValueError, match="align=True: has no effect"):
        CausalFiLMConfig(align=True, modulator="none")


def test_view_pooling_takes_the_strongest_real_view() -> None:
    encoder = RobustResultEncoder(branches="1.mean", image_dim=8, d_model=8).eval()
    layers = [torch.randn(2, 3, 4, 8)]
    alone = torch.stack([encoder([layers[0][:, i : i + 1]]) for i in range(3)], 1)
    torch.testing.assert_close(encoder(layers), alone.amax(1))
    views = torch.tensor([[True, False, True], [False, False, False]])
    pooled = encoder(layers, views)
    torch.testing.assert_close(pooled[0], alone[0, [0, 2]].amax(0))
    assert torch.equal(pooled[1], torch.zeros(8))
    encoder.config.view_pool = "mean"
    torch.testing.assert_close(encoder(layers, views)[0], alone[0, [0, 2]].mean(0))


VARIANTS = [
    {},
    {"branches": "1.max,2.cls"},
    {"branches": "2.gem", "gem_mode": "softplus", "gate": False},
    {"branches": "2.gem", "gem_mode": "signed", "reduce": 8, "view_pool": "mean"},
    {"modulator": "gru", "decoder": "bottleneck", "decoder_activation": "silu"},
    {"modulator": "transformer", "decoder": "linear_attention"},
    {"split_film": True, "gate_activation": "relu", "decoder_dropout_position": "input"},
    {"feature_noise": 0.1, "encoder_dropout": 0.2, "projector_dropout": 0.1},
    {"align": True},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_variant_trains_every_parameter(changes: dict) -> None:
    model = CausalFiLM(**{**SMALL, "branches": SMALL_BRANCHES, **changes})
    if model.config.modulator != "none":
        nn.init.normal_(model.modulator.head.weight, std=0.1)  # zero at step 0: nothing below it would learn yet
    for aligner in model.align.values() if model.align else ():
        nn.init.normal_(aligner.attention.output.weight, std=0.1)
    out = model(small_batch(branches=len(model.result.branches)))
    CausalFiLMLoss(d_model=16)(out.z_result, out.z_pred)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A key's bias shifts a whole softmax row; the cross attention of the last layer still must learn.
        assert parameter.grad.isfinite().all(), name


def test_masking_acts_in_training_only_and_on_process_features_only() -> None:
    model = CausalFiLM(**SMALL, branches=SMALL_BRANCHES, feature_mask_ratio=0.3)
    tokens = torch.ones(1, 200, 12)
    model.train()
    masked = model._corrupt(tokens)
    assert (masked == 0).float().mean().item() == pytest.approx(0.3, abs=0.05)
    torch.testing.assert_close(masked.max(), torch.tensor(1 / 0.7))
    model.eval()
    assert torch.equal(model._corrupt(tokens), tokens)
    batch = small_batch()
    model.train()
    torch.testing.assert_close(model.encode_result(batch), model.encode_result(batch))


def test_presets_and_bad_names() -> None:
    assert [b.name for b in parse_branches("best")] == ["L21.mean", "L21.gem", "L32.mean"]
    assert [b.name for b in parse_branches("doc")] == ["L10.gem", "L21.gem"]
    assert all(parse_branches(name) for name in BRANCH_PRESETS)
    assert CausalFiLMConfig(preset="stage1").d_model == 256
    assert LossConfig(preset="doc").lambda_l1 == 10.0
    with pytest.raises(ValueError, match="mean, max, gem, cls"):
        parse_branches("21.median")
    with pytest.raises(ValueError, match="best, doc, stage1"):
        CausalFiLMConfig(preset="bset")


def test_a_width_is_written_once_and_reaches_every_part() -> None:
    for part in (SensorModulator, ProcessEncoder, RobustResultEncoder, AntiGenDecoder):
        assert "d_model" not in inspect.signature(part).parameters
        assert part().config == CausalFiLMConfig()
    config = CausalFiLMConfig(d_model=16, process_heads=2, sensor_hidden=8, branches="2.gem")
    model = CausalFiLM(config, image_dim=16)
    assert all(part.config is config for part in (model.modulator, model.process, model.result, model.decoder))
    assert inspect.signature(CausalFiLMLoss).parameters["d_model"].default == CausalFiLMConfig().d_model
    with pytest.raises(UserError, match="not both"):
        AntiGenDecoder(config, d_model=8)
    with pytest.raises(UserError, match="no option 'decoder_dropot'; did you mean decoder_dropout"):
        CausalFiLM(decoder_dropot=0.1)


def test_wrong_batches_are_refused_in_words() -> None:
    encoder = RobustResultEncoder(branches="1.mean,2.gem", image_dim=8, d_model=8)
    flat = [torch.randn(2, 4, 8), torch.randn(2, 4, 8)]  # without the axis of views
    with pytest.raises(ValueError, match=r"L1\.mean: expected tokens \[batch, views, tokens, 8\], got \[2, 4, 8\]"):
        encoder(flat)
    assert encoder([tokens.unsqueeze(1) for tokens in flat]).shape == (2, 8)
    with pytest.raises(ValueError, match=r"a list of 2 tensors of tokens, one a branch \(L1\.mean, L2\.gem\)"):
        encoder(flat[0])
    model = CausalFiLM(**SMALL, branches=SMALL_BRANCHES)
    with pytest.raises(ValueError, match=r"video: expected \[4, length, 12\], got \[4, 6, 11\]"):
        model({**small_batch(), "video": torch.randn(4, 6, 11)})
    with pytest.raises(ValueError, match="lacks sensors"):
        model({name: value for name, value in small_batch().items() if name != "sensors"})
    with pytest.raises(ValueError, match=r"images: expected 4 welds, got \[3, 3, 3\]"):
        model({**small_batch(), "images": small_batch(batch=3)["images"]})
    with pytest.raises(ValueError, match="two encodings"):
        CausalFiLMLoss()(torch.ones(2, 4), torch.ones(2, 5))


def test_the_documents_names_are_importable_and_readable() -> None:
    from anomaly_lib.models import weld

    model = weld.CausalFiLM(**SMALL, branches=SMALL_BRANCHES)
    assert weld.CausalFILMLoss is CausalFiLMLoss
    assert "branches=['L2.mean', 'L2.gem', 'L3.mean'], view_pool='max'" in repr(model)
    assert "lambda_l1=10.0, lambda_gram=1.0" in repr(weld.CausalFILMLoss(preset="doc"))
    for name in weld.PLACES:
        assert getattr(weld, name).__doc__, name


def test_collapse_monitor_tells_a_constant_encoder() -> None:
    assert collapse_monitor(torch.ones(8, 4)) == 0
    assert collapse_monitor(torch.randn(500, 64)) == pytest.approx(math.sqrt(math.pi / 2), rel=0.05)
