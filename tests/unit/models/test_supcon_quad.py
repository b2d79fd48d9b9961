"""QuadModal: published sizes, any subset of modalities, attention, freezing."""

import itertools

import pytest
import torch

from anomaly_lib.errors import UserError
from anomaly_lib.models import weld
from anomaly_lib.models.weld.quad_config import MODALITIES, QuadConfig, heads_of
from anomaly_lib.models.weld.supcon_quad import (
    CrossAttentionFusion,
    QuadModal,
    SensorEncoder,
    check_quad_batch,
    freeze,
)
from anomaly_lib.models.weld.token_scale import TokenScale

WIDTHS = {"video_dim": 12, "image_dim": 10, "audio_dim": 8, "num_classes": 3}
SMALL = {"sensor_dim": 16, "sensor_layers": 1, "hidden_dim": 16, "modality_dropout": 0.0}


def quad(**options):
    return QuadModal(**SMALL | WIDTHS | options)


def count(module):
    return sum(p.numel() for p in module.parameters())


def batch_of(size=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"video": (6, 12), "images": (5, 10), "audio": (7, 8), "sensors": (16, 6)}
    return {name: torch.randn(size, *shape, generator=g) for name, shape in shapes.items()}


def test_published_parameter_counts():
    fusion = CrossAttentionFusion({"video": 1024, "images": 768, "audio": 768, "sensors": 256})
    sensor = SensorEncoder()
    assert count(fusion) == 14_831_616
    assert count(sensor) == 3_161_344
    assert count(fusion) + count(sensor) + count(torch.nn.LayerNorm(512)) == 17_993_984


def test_outputs_are_unit_vectors_and_differ_between_samples():
    torch.manual_seed(0)
    out = quad().eval()(batch_of())
    assert out["features"].shape == (4, 16)
    assert out["logits"].shape == (4, 3)
    assert out["anomaly_score"].shape == (4,)
    torch.testing.assert_close(out["features"].norm(dim=1), torch.ones(4))
    assert (out["features"][0] - out["features"][1]).abs().max() > 1e-3


@pytest.mark.parametrize("missing", ["skip", "embedding"])
def test_every_subset_of_modalities_is_finite_and_absent_data_is_never_read(missing):
    torch.manual_seed(0)
    model = quad(missing=missing).train()
    for keep in itertools.product([False, True], repeat=4):
        batch = batch_of(3)
        present = torch.tensor([keep] * 3)
        for name, there in zip(MODALITIES, keep, strict=True):
            if not there:
                batch[name] = torch.full_like(batch[name], float("nan"))
        out = model({**batch, "present": present})
        assert all(bool(torch.isfinite(value).all()) for value in out.values()), keep
        out["features"].sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    model.eval()
    a, b = batch_of(2), batch_of(2)
    b["audio"] = b["audio"] + 5
    present = torch.tensor([[True, True, False, True]] * 2)
    torch.testing.assert_close(
        model({**a, "present": present})["features"], model({**b, "present": present})["features"]
    )
    assert (model(a)["features"] - model(b)["features"]).abs().max() > 1e-4


def test_a_modality_left_out_of_the_batch_equals_one_marked_absent():
    torch.manual_seed(0)
    model = quad().eval()
    batch = batch_of(2)
    marked = model({**batch, "present": torch.tensor([[True, True, True, False]] * 2)})["features"]
    batch.pop("sensors")
    torch.testing.assert_close(model(batch)["features"], marked)


def test_padding_masks_hide_tokens_and_attention_sums_to_one():
    torch.manual_seed(0)
    model = quad().eval()
    batch = batch_of(2)
    mask = torch.tensor([[True] * 4 + [False] * 3] * 2)
    short = model({**batch, "audio": batch["audio"][:, :4]})["features"]
    out = model({**batch, "audio_mask": mask}, need_weights=True)
    torch.testing.assert_close(out["features"], short, rtol=1e-4, atol=1e-5)
    weights = out["attention.audio"]  # [B, Q, L]
    assert weights.shape == (2, 4, 7)
    assert float(weights[..., 4:].detach().abs().max()) == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4))


def test_modality_dropout_never_removes_everything_and_only_acts_in_training():
    torch.manual_seed(0)
    model = quad(modality_dropout=0.9)
    like = torch.zeros(500, 1, 1)
    kept = model.train()._drop_modalities(None, like)
    assert bool(kept.any(1).all())
    assert 0.1 < float(kept.float().mean()) < 1.0 - 0.2
    assert model.eval()._drop_modalities(None, like) is None


def test_token_stride_averages_steps():
    torch.manual_seed(0)
    fine = SensorEncoder(sensor_dim=16, sensor_layers=1, sensor_stride=4).eval()
    assert fine(torch.randn(2, 128, 6)).shape == (2, 32, 16)
    assert fine(torch.randn(2, 127, 6)).shape == (2, 32, 16)
    with pytest.raises(UserError, match="512 positions"):
        fine(torch.randn(1, 600, 6))


def test_activation_checkpointing_changes_no_gradient():
    grads = []
    for on in (False, True):
        torch.manual_seed(0)
        model = quad(activation_checkpointing=on, dropout=0.0).train()
        model(batch_of())["logits"].square().sum().backward()
        grads.append(model.sensor.embed.weight.grad)
    torch.testing.assert_close(*grads)


def test_freeze_policies():
    model = quad()
    learning = freeze(model, "heads")
    assert "fusion.queries" in learning
    assert not any("fusion.attend" in name for name in learning)
    assert any(name.startswith("sensor.") for name in learning)
    opened = freeze(model, "sensor", unfreeze=["fusion.project.audio"])
    assert {name for name in opened if name.startswith("fusion")} == {
        "fusion.project.audio.weight",
        "fusion.project.audio.bias",
    }
    assert len(freeze(model, "none")) == len(list(model.parameters()))
    with pytest.raises(UserError, match="freeze policy"):
        freeze(model, "all")


def test_bad_batches_get_one_clear_line():
    good = batch_of()
    renamed = {"video": good["video"], "post_weld_images": good["images"], "sensor": good["sensors"]}
    model = quad().eval()
    assert set(check_quad_batch(renamed, model.widths)) == {"video", "images", "sensors"}
    ours = {name: good[name] for name in ("video", "images", "sensors")}
    assert torch.equal(model(renamed)["features"], model(ours)["features"])
    with pytest.raises(UserError, match=r"audio: expected \[batch, tokens, 8\], got \[4, 7, 9\]"):
        model({"audio": torch.zeros(4, 7, 9)})
    with pytest.raises(UserError, match="different batch sizes"):
        model({**good, "audio": torch.zeros(3, 7, 8)})
    with pytest.raises(UserError, match="present"):
        model({**good, "present": torch.ones(4, 3)})
    with pytest.raises(UserError, match="at least one"):
        model({})


def test_options_and_a_configuration_make_the_same_model():
    torch.manual_seed(0)
    named = QuadModal(**SMALL, **WIDTHS)
    torch.manual_seed(0)
    given = QuadModal(QuadConfig(**SMALL), **WIDTHS)
    assert all(torch.equal(a, b) for a, b in zip(named.parameters(), given.parameters(), strict=True))
    assert named.config.dropout == QuadConfig().dropout
    with pytest.raises(ValueError, match="missing=skipp: choose from skip, embedding; did you mean skip"):
        QuadModal(missing="skipp")
    with pytest.raises(ValueError, match="not both"):
        QuadModal(QuadConfig(), hidden_dim=16)


def test_narrow_models_get_fewer_heads_and_what_heads_do_not_divide_is_refused():
    assert [heads_of(width) for width in (8, 16, 60, 512)] == [1, 2, 7, 8]
    with pytest.raises(ValueError, match="sensor_dim=60: its 7 attention heads do not divide it"):
        QuadConfig(sensor_dim=60)


def test_the_documents_names_are_offered():
    assert weld.QuadModalSOTAModel is weld.QuadModal is QuadModal
    assert weld.CrossAttentionFusionModule is CrossAttentionFusion
    assert weld.SensorEncoder is SensorEncoder
    assert sorted(weld.PLACES) == sorted(weld.__all__)


def test_the_representation_fits_a_line():
    size = f"{count(quad()):,} parameters"
    assert repr(quad()) == f"QuadModal(video 12, images 10, audio 8, sensors 6 -> [B, 16], {size})"
    fusion = CrossAttentionFusion({"video": 12}, hidden_dim=16)
    assert repr(fusion) == "CrossAttentionFusion(4 queries read video 12 -> [B, 16])"
    assert repr(SensorEncoder(sensor_dim=16, sensor_stride=4)) == "SensorEncoder([B, S, 6] -> [B, S / 4, 16], 4 blocks)"


def test_fusion_keeps_a_token_axis_on_request():
    torch.manual_seed(0)
    fusion = CrossAttentionFusion({"video": 12, "audio": 8}, hidden_dim=16).eval()
    tokens = {name: value for name, value in batch_of(3).items() if name in ("video", "audio")}
    flat, kept = fusion(tokens)[0], fusion(tokens, keepdim=True)[0]
    assert kept.shape == (3, 1, 16)
    assert torch.equal(kept.squeeze(1), flat)


def test_the_score_head_can_end_in_a_probability():
    torch.manual_seed(0)
    plain = quad().eval()
    chance = quad(score_sigmoid=True).eval()
    chance.load_state_dict(plain.state_dict())
    a, b = (model(batch_of())["anomaly_score"] for model in (plain, chance))
    torch.testing.assert_close(b, a.sigmoid())


def test_tokens_are_scaled_by_the_training_runs_place_by_place():
    torch.manual_seed(0)
    batch = batch_of(50)
    batch["video"] += 100 * torch.arange(6.0)[None, :, None]  # what differs between places says nothing about runs
    model = quad().eval()
    before = model(batch)["features"]
    model.scale["video"].fit(batch["video"].split(7))
    scaled = model.scale["video"](batch["video"])
    torch.testing.assert_close(scaled.mean(0), torch.zeros(6, 12), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(0, unbiased=False), torch.ones(6, 12), atol=1e-3, rtol=0)
    assert float((model(batch)["features"] - before).abs().max()) > 1e-3
    fresh = quad().eval()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(batch)["features"], model(batch)["features"], rtol=0, atol=0)
    with pytest.raises(UserError, match="same encoder"):
        model({**batch, "video": batch["video"][:, :4]})


def test_token_statistics_do_not_depend_on_how_the_runs_are_divided():
    tokens = 3 + 100 * torch.randn(40, 5, 4, generator=torch.Generator().manual_seed(0))
    whole, parted = TokenScale(), TokenScale()
    whole.fit([tokens])
    parted.fit([tokens[:1], tokens[1:30], tokens[30:30], tokens[30:]])
    torch.testing.assert_close(whole.mean, tokens.mean(0))
    torch.testing.assert_close(whole.std, tokens.std(0, unbiased=False))
    torch.testing.assert_close(parted.mean, whole.mean)
    torch.testing.assert_close(parted.std, whole.std)
    empty = TokenScale()
    empty.fit([tokens[:0]])
    assert not empty.mean.numel()
