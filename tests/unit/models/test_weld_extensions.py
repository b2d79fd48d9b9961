"""Adapters, aligner, baselines, calibration, uncertainty, deployment, Grad-CAM."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn

from anomaly_lib.errors import UserError
from anomaly_lib.metrics import expected_calibration_error
from anomaly_lib.models.adapters import MAKERS, LoRALinear, add_adapters, merge_adapters
from anomaly_lib.models.deploy import prune_linears, quantize_linears, read_model, write_model
from anomaly_lib.models.grad_cam import grad_cam
from anomaly_lib.models.uncertainty import deep_ensemble, fit_temperature, mc_dropout, predictive_entropy
from anomaly_lib.models.weld.baselines import (
    AudioConvAE,
    MidFusion,
    OneClass,
    VideoFcAE,
    best_weights,
    pool_modalities,
    windowed_max,
)
from anomaly_lib.models.weld.quad_config import ADAPTERS
from anomaly_lib.models.weld.supcon_quad import QuadModal
from anomaly_lib.models.weld.temporal_aligner import (
    TemporalAligner,
    estimate_shift,
    fit_offset,
    resample_at,
    time_code,
    token_times,
)


def count(module):
    return sum(p.numel() for p in module.parameters())


# ---- adapters


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_adapters_are_the_identity_at_step_zero_and_only_they_learn(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x, before = torch.randn(5, 6), None
    before = net(x)
    assert add_adapters(net, ["0", "2"], kind=kind, rank=2) == ["0", "2"]
    torch.testing.assert_close(net(x), before)
    net(x).square().sum().backward()
    assert net[0].base.weight.grad is None
    assert float(net[2].up.weight.grad.abs().sum() if kind == "adapter" else net[2].up.grad.abs().sum()) > 0


def test_lora_merges_unmerges_and_leaves_plain_keys():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    keys = list(net.state_dict())
    add_adapters(net, ["1"], rank=2)
    lora = net[1]
    assert isinstance(lora, LoRALinear)
    with torch.no_grad():
        lora.up.normal_()
    x = torch.randn(4, 6)
    adapted, weight = net(x), lora.base.weight.clone()
    lora.merge()
    torch.testing.assert_close(net(x), adapted)
    lora.unmerge()
    torch.testing.assert_close(lora.base.weight, weight)
    merge_adapters(net)
    torch.testing.assert_close(net(x), adapted)
    assert list(net.state_dict()) == keys
    with pytest.raises(UserError, match="no linear layer"):
        add_adapters(net, ["nowhere"])
    with pytest.raises(UserError, match="kind=loar: choose from lora, adapter"):
        add_adapters(net, ["1"], kind="loar")
    assert tuple(MAKERS) == ADAPTERS


# ---- temporal aligner


@pytest.mark.parametrize("shift", [-1.3, 0.4, 2.05])
def test_a_known_shift_between_two_clocks_is_recovered(shift):
    g = torch.Generator().manual_seed(0)
    fine = F.avg_pool1d(torch.randn(2, 1, 6000, generator=g), 61, 1, 30)  # smooth process at 200 Hz, 30 s
    times = torch.arange(20 * 30) / 30.0 + 4
    query = resample_at(fine.transpose(1, 2), times, rate=200).squeeze(-1)
    memory = resample_at(fine.transpose(1, 2), torch.arange(20 * 40) / 40.0 + 4 - shift, rate=200).squeeze(-1)
    on_one_clock = resample_at(memory[..., None], torch.arange(20 * 30) / 30.0, rate=40).squeeze(-1)
    coarse = estimate_shift(query, on_one_clock, rate=30, largest=4)
    torch.testing.assert_close(coarse, torch.full((2,), shift), atol=0.03, rtol=0)
    assert fit_offset(query, memory, query_rate=30, memory_rate=40) == pytest.approx(shift, abs=0.01)


def test_an_aligner_changes_nothing_until_it_has_learnt_and_then_learns_its_offset():
    torch.manual_seed(0)
    aligner = TemporalAligner(query_dim=16, memory_dim=4, periods=(0.05, 2.0))
    query, memory = torch.randn(2, 12, 16), torch.randn(2, 5, 4)
    times = {"query_times": token_times(12), "memory_times": token_times(5)}
    out = aligner(query, memory, **times)
    assert torch.equal(out, torch.zeros(2, 12, 16))
    (out - 1).square().sum().backward()
    assert float(aligner.attention.output.weight.grad.abs().sum()) > 0
    nn.init.normal_(aligner.attention.output.weight)
    nn.init.ones_(aligner.attention.output.bias)
    mask = torch.tensor([[True] * 5, [False] * 5])
    out = aligner(query, memory, **times, memory_mask=mask)
    assert torch.equal(out[1], torch.zeros(12, 16))  # nothing to read
    out.square().sum().backward()
    assert abs(float(aligner.offset.grad)) > 0


def test_an_aligner_finds_what_happens_at_its_own_time():
    """Codes alone: attention of each query is largest at the memory of the same time, or that plus the offset."""
    torch.manual_seed(0)
    aligner = TemporalAligner(query_dim=32, memory_dim=4, heads=1, periods=(0.1, 2.0)).requires_grad_(False)
    for layer in (aligner.attention.query, aligner.attention.key):
        layer.weight.copy_(torch.eye(32))
        layer.bias.zero_()
    aligner.bring.weight.zero_()
    aligner.bring.bias.zero_()
    aligner.sharpness.fill_(4.0)
    aligner.attention.value.weight.zero_()
    aligner.attention.value.weight[:10, :] = torch.randn(10, 32)
    for offset, lag in ((0.0, 0), (0.3, 3)):
        aligner.offset.fill_(offset)
        codes = [4 * time_code(t, 32, shortest=0.1, longest=2.0) for t in (token_times(10), token_times(10) - offset)]
        nearest = (codes[0] @ codes[1].T).argmax(1)
        assert nearest[: 10 - lag].tolist() == list(range(lag, 10))
        attended, weights = aligner.attention(codes[0][None], codes[1][None], need_weights=True)
        assert weights[0, 0].argmax(1)[: 10 - lag].tolist() == list(range(lag, 10))
        assert attended.shape == (1, 10, 32)


def test_when_a_token_lies():
    assert token_times(4).tolist() == [0.125, 0.375, 0.625, 0.875]
    assert token_times(6, steps=2).tolist() == [0.25] * 3 + [0.75] * 3  # two times of three patches
    assert token_times(5, rows=2, prefix=1).tolist() == [0.5, 0.25, 0.75, 0.25, 0.75]  # a class token, two frequencies


# ---- baselines


def test_published_parameter_counts():
    assert count(AudioConvAE(bins=2049, bottleneck=32, affine=False)) == 31_670_306
    assert count(AudioConvAE(bins=8193, bottleneck=48)) == 69_539_892
    assert count(VideoFcAE()) == 2_715_840


def test_windowed_max_equals_the_loop():
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    loop = torch.stack([torch.stack([row[i : i + 8].mean() for i in range(43)]).max() for row in scores])
    torch.testing.assert_close(windowed_max(scores, 8), loop)
    torch.testing.assert_close(windowed_max(scores, 60), scores.mean(1))


def test_one_class_scores_strangers_higher():
    torch.manual_seed(0)
    normal = torch.randn(64, 4) @ torch.randn(4, 20)
    model = OneClass(dim=20, hidden=32, bottleneck=8)
    model.scale.fit(normal)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        model(normal).mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert float(model(torch.randn(64, 20) * normal.std()).mean()) > 2 * float(model(normal).mean())


def test_mid_fusion_ignores_absent_modalities():
    torch.manual_seed(0)
    net = MidFusion({"video": 4, "audio": 3}, classes=2).eval()
    present = torch.tensor([[True, False]])
    a = net({"video": torch.ones(1, 4).cumsum(1), "audio": torch.full((1, 3), float("nan"))}, present)
    b = net({"video": torch.ones(1, 4).cumsum(1), "audio": torch.randn(1, 3)}, present)
    assert torch.equal(a, b)
    assert bool(torch.isfinite(a).all())


def test_sensor_pooling_keeps_the_course_over_time():
    series = torch.stack([torch.arange(8.0), -torch.arange(8.0)], dim=1)[None]  # [1, 8, 2]
    levels = pool_modalities({"sensors": series, "audio": series}, ["sensors", "audio"], steps=4)
    assert levels["sensors"].tolist() == [[0.5, 2.5, 4.5, 6.5, -0.5, -2.5, -4.5, -6.5]]
    assert levels["audio"].tolist() == [[3.5, -3.5]]


def test_weight_search_matches_brute_force():
    g = torch.Generator().manual_seed(0)
    labels = torch.rand(200, generator=g) < 0.4
    scores = torch.randn(200, 3, generator=g, dtype=torch.float64) + labels[:, None] * torch.tensor([0.3, 1.0, 0.0])
    weights, best = best_weights(scores[:, :2], labels)
    grid = max(
        roc_auc_score(labels, scores[:, :2] @ torch.tensor([w / 100, 1 - w / 100], dtype=torch.float64))
        for w in range(101)
    )
    assert best == pytest.approx(grid, abs=1e-12)
    assert roc_auc_score(labels, scores[:, :2] @ weights) == pytest.approx(best, abs=1e-12)
    weights, best = best_weights(scores, labels)
    assert float(weights.sum()) == pytest.approx(1)
    assert best >= roc_auc_score(labels, scores.mean(1))
    assert roc_auc_score(labels, scores @ weights) == pytest.approx(best, abs=1e-12)


# ---- calibration and uncertainty


def test_temperature_undoes_overconfidence():
    g = torch.Generator().manual_seed(0)
    true_logits = torch.randn(4000, 3, generator=g) * 2
    labels = torch.multinomial(true_logits.softmax(1), 1, generator=g).squeeze(1)
    temperature = fit_temperature(true_logits * 3, labels)
    assert temperature == pytest.approx(3, rel=0.05)
    before, after = ((true_logits * 3 / t).softmax(1).numpy() for t in (1.0, temperature))
    assert expected_calibration_error(after, labels.numpy()) < 0.3 * expected_calibration_error(before, labels.numpy())


def test_mc_dropout_spreads_without_touching_norms_and_restores_modes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 1))
    net.train()
    net[0].eval()
    statistics = net[1].running_mean.clone()
    x = torch.randn(6, 4)
    mean, std = mc_dropout(net, lambda m: m(x), passes=400)
    assert bool((std > 0).all())
    assert torch.equal(net[1].running_mean, statistics)
    assert [m.training for m in net] == [False, True, True, True]
    torch.testing.assert_close(mean, net.eval()(x), atol=0.15, rtol=0.2)


def test_ensemble_and_entropy():
    nets = [nn.Linear(2, 1), nn.Linear(2, 1)]
    x = torch.randn(3, 2)
    mean, std = deep_ensemble(nets, lambda m: m(x))
    torch.testing.assert_close(mean, (nets[0](x) + nets[1](x)) / 2)
    torch.testing.assert_close(std, (nets[0](x) - nets[1](x)).abs() / 2)
    assert float(predictive_entropy(torch.full((4,), 0.25))) == pytest.approx(math.log(4))


# ---- deployment


SMALL = {"video_dim": 12, "image_dim": 10, "audio_dim": 8, "num_classes": 3}
SMALL |= {"sensor_dim": 16, "sensor_layers": 1, "hidden_dim": 32}


def quad():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    shapes = {"video": (6, 12), "images": (5, 10), "audio": (7, 8), "sensors": (16, 6)}
    batch = {name: torch.randn(4, *shape, generator=g) for name, shape in shapes.items()}
    batch["present"] = torch.ones(4, 4, dtype=torch.bool)
    return QuadModal(**SMALL).eval(), batch


def test_int8_model_answers_alike_and_is_smaller():
    model, batch = quad()
    small = quantize_linears(model, smallest=64)
    with torch.no_grad():
        wanted, got = model(batch)["features"], small(batch)["features"]
    assert float(F.cosine_similarity(wanted, got).min()) > 0.99
    assert not torch.equal(wanted, got)
    size = lambda m: sum(t.numel() * t.element_size() for t in m.state_dict().values())  # noqa: E731
    assert size(small) < 0.5 * size(model)


def test_pruning_reaches_the_asked_sparsity():
    model, batch = quad()
    other = copy.deepcopy(model)
    assert prune_linears(model, 0.5) == pytest.approx(0.5, abs=0.01)
    assert prune_linears(other, 0.25, structured=True) == pytest.approx(0.25, abs=0.1)
    assert bool(torch.isfinite(model(batch)["features"]).all())
    rows = other.fusion.output.weight.abs().sum(1)
    assert int((rows == 0).sum()) == 8  # whole rows of 32
    with pytest.raises(UserError, match="amount"):
        prune_linears(model, 1.0)


@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=pytest.mark.slow)])
def test_the_written_file_answers_like_the_model_for_batches_of_any_size(suffix, tmp_path):
    _, batch = quad()
    torch.manual_seed(0)
    model = QuadModal(**SMALL, align=True, video_steps=3, audio_rows=5).eval()
    for aligner in model.align.values():
        nn.init.normal_(aligner.attention.output.weight)
    names, path = ["features", "anomaly_score"], tmp_path / f"model{suffix}"
    write_model(model, batch, names, path)
    answer = read_model(path)
    for size in (1, 3):
        other = {n: torch.randn_like(x[:size]) if x.is_floating_point() else x[:size].clone() for n, x in batch.items()}
        other["present"][0, 2] = False
        got, wanted = answer(other), model(other)
        assert list(got) == names
        for name in names:
            torch.testing.assert_close(got[name], wanted[name].detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"ends in \.pt2 or \.onnx"):
        write_model(model, batch, names, tmp_path / "model.pt")


# ---- Grad-CAM


def test_grad_cam_finds_the_only_pixel_that_matters():
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Identity()).requires_grad_(False)
    net[0].weight.data.fill_(1.0)
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 2] = 3.0
    cam = grad_cam(net[0], lambda: net(image).sum((1, 2, 3)))
    assert cam.shape == (1, 4, 4)
    assert cam[0, 1, 2] == 1
    assert float(cam.sum()) == 1


def test_grad_cam_on_tokens_skips_the_class_token():
    layer = nn.Identity()
    tokens = torch.zeros(1, 5, 3)
    tokens[0, 0], tokens[0, 4] = 9.0, 2.0
    cam = grad_cam(layer, lambda: layer(tokens).sum((1, 2)), skip_tokens=1)
    assert cam.tolist() == [[[0.0, 0.0], [0.0, 1.0]]]
