"""Reverse Distillation, DRAEM and SevNet: published sizes and names, values against twins, gradients."""

import pytest
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from anomaly_lib.errors import UserError
from anomaly_lib.models.detectors.anomalib_keys import load_anomalib, to_anomalib
from anomaly_lib.models.detectors.configs import DraemSevNetConfig
from anomaly_lib.models.detectors.draem import Draem, ReconstructiveSubNetwork, swap_concat_order
from anomaly_lib.models.detectors.draem_sevnet import DraemSevNet, SeverityHead
from anomaly_lib.models.detectors.padim import Padim
from anomaly_lib.models.detectors.patchcore import PatchCore
from anomaly_lib.models.detectors.reverse_distillation import ReverseDistillation


class PyramidExtractor(nn.Module):
    """resnet18-shaped maps (64, 128, 256 channels at 1/4, 1/8, 1/16), frozen, under timm-like names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.net = nn.ModuleDict({f"layer{i}": nn.Conv2d(3, 32 * 2**i, 1) for i in (1, 2, 3)})
        self.net["conv1"] = nn.Conv2d(3, 3, 1, bias=False)
        self.requires_grad_(False)

    def forward(self, images):
        images = self.net["conv1"](images)
        return {f"layer{i}": torch.tanh(self.net[f"layer{i}"](F.avg_pool2d(images, 2 ** (i + 1)))) for i in (1, 2, 3)}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small_draem(**options) -> Draem:
    return Draem(repair_width=4, segment_width=4, **options)


def small_sevnet(**options) -> DraemSevNet:
    return DraemSevNet(repair_width=4, segment_width=4, head_hidden=8, **options)


def perturb(module: nn.Module) -> nn.Module:
    """Every number different from its initial value, so that agreement means something."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1 if tensor.dim() < 2 else torch.randn_like(tensor) * 0.02)
    return module


@pytest.mark.parametrize(
    ("backbone", "bottleneck", "decoder"),
    [
        ("resnet18", 12_205_312, 3_703_168),
        ("resnet34", 12_205_312, 5_770_624),
        ("resnet50", 39_222_272, 15_821_824),
        ("wide_resnet50_2", 39_222_272, 24_917_504),
    ],
)
def test_reverse_distillation_published_sizes(backbone, bottleneck, decoder):
    with torch.device("meta"):
        model = ReverseDistillation(extractor=nn.Identity(), backbone=backbone)
    assert count(model.bottleneck) == bottleneck
    assert count(model.decoder) == decoder


def test_draem_published_sizes_and_names():
    with torch.device("meta"):
        model = Draem()
    assert count(model.reconstructive_subnetwork) == 69_048_579
    assert count(model.discriminative_subnetwork) == 28_374_146
    assert count(model) == 97_422_725
    names = set(model.state_dict())
    for name in (
        "reconstructive_subnetwork.encoder.block5.4.running_var",
        "reconstructive_subnetwork.decoder.up4.2.bias",
        "reconstructive_subnetwork.decoder.fin_out.0.weight",
        "discriminative_subnetwork.encoder_segment.block6.3.weight",
        "discriminative_subnetwork.decoder_segment.up_b.1.weight",
        "discriminative_subnetwork.decoder_segment.db_b.0.weight",
        "discriminative_subnetwork.decoder_segment.fin_out.0.bias",
    ):
        assert name in names
    with torch.device("meta"):
        multi = SeverityHead(DraemSevNetConfig(head_mode="multi_scale"))
    assert multi.severity_mlp[0].in_features == 1920
    assert {n for n, _ in multi.named_parameters()} == {
        f"severity_mlp.{i}.{p}" for i in (0, 3, 6) for p in ("weight", "bias")
    }


def repair_by_functions(net: ReconstructiveSubNetwork, x):
    """The reconstructive net written down from its weights alone."""
    w = net.state_dict()

    def conv(x, name, norm):
        x = F.conv2d(x, w[name + ".weight"], w[name + ".bias"], padding=1)
        stats = [w[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *stats))

    for i in range(1, 6):
        x = F.max_pool2d(x, 2) if i > 1 else x
        x = conv(conv(x, f"encoder.block{i}.0", f"encoder.block{i}.1"), f"encoder.block{i}.3", f"encoder.block{i}.4")
    for i in range(1, 5):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = conv(x, f"decoder.up{i}.1", f"decoder.up{i}.2")
        x = conv(conv(x, f"decoder.db{i}.0", f"decoder.db{i}.1"), f"decoder.db{i}.3", f"decoder.db{i}.4")
    return F.conv2d(x, w["decoder.fin_out.0.weight"], w["decoder.fin_out.0.bias"], padding=1)


def test_repair_network_equals_its_functional_twin():
    net = perturb(ReconstructiveSubNetwork(channels=3, width=4)).eval()
    images = torch.rand(2, 3, 32, 64)
    torch.testing.assert_close(net(images), repair_by_functions(net, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_draem_on_native_hdmap_size(channels):
    model = perturb(small_draem(channels=channels)).eval()
    images = torch.rand(2, channels, 31, 95)
    got = model(images)
    assert got.map.shape == (2, 31, 95)
    padded = F.pad(images, (0, 1, 0, 1), mode="replicate")
    want = model(padded).map[:, :31, :95]
    torch.testing.assert_close(got.map, want)
    torch.testing.assert_close(got.score, want.amax((1, 2)))
    assert got.map.std() > 0


@torch.no_grad()
def test_draem_losses_by_hand():
    model = perturb(small_draem()).eval()
    damaged, clean = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    mask = torch.rand(2, 32, 32) > 0.8
    repair, logits = model.networks(damaged)
    terms = model.losses(damaged, clean, mask)
    assert terms["l2"].item() == pytest.approx(((repair - clean) ** 2).mean().item(), rel=1e-5)
    p = logits.softmax(1)
    true = torch.where(mask, p[:, 1], p[:, 0])
    assert terms["focal"].item() == pytest.approx((-((1 - true) ** 2) * true.log()).mean().item(), rel=1e-4)

    def blurred(x):
        return torch.from_numpy(
            ndimage.gaussian_filter(x.double().numpy(), (0, 0, 1.5, 1.5), mode="mirror", radius=(0, 0, 5, 5))
        )

    ma, mb = blurred(repair), blurred(clean)
    va, vb = blurred(repair * repair) - ma**2, blurred(clean * clean) - mb**2
    cov = blurred(repair * clean) - ma * mb
    ssim = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert terms["ssim"].item() == pytest.approx((1 - ssim).mean().item(), rel=1e-3)
    paper = perturb(small_draem(focal_alpha=1.0, focal_weight=0.5)).eval()  # kornia: the mean is over both entries
    paper.load_state_dict(model.state_dict())
    entries = torch.stack([torch.zeros_like(p[:, 0]), -((1 - p[:, 1]) ** 2) * p[:, 1].log() * mask])
    assert paper.losses(damaged, clean, mask)["focal"].item() == pytest.approx(entries.mean().item(), rel=1e-4)
    silent = perturb(small_draem(focal_alpha=1.0)).eval()
    silent.load_state_dict(model.state_dict())
    assert (
        silent.losses(damaged, clean, torch.zeros_like(mask))["focal"].item() == 0
    )  # the trap: no normal pixel counts


def test_both_concat_orders_and_scores():
    model = perturb(small_draem()).eval()
    other = small_draem(concat_order="repair-first", score="mean21-max").eval()
    other.load_state_dict(swap_concat_order(model.state_dict()))
    images = torch.rand(2, 3, 32, 64)
    torch.testing.assert_close(other(images).map, model(images).map, rtol=1e-4, atol=1e-5)
    want = F.avg_pool2d(other(images).map[:, None], 21, 1, 10).amax((1, 2, 3))
    torch.testing.assert_close(other(images).score, want)


@pytest.mark.parametrize("mode", ["single_scale", "multi_scale"])
@pytest.mark.parametrize("pooling", ["gap", "spatial_aware"])
@pytest.mark.parametrize("combination", ["simple_average", "weighted_average", "maximum"])
def test_sevnet_heads_and_combinations(mode, pooling, combination):
    further = {"head_grid": 2} if pooling == "spatial_aware" else {}
    further |= {"combination_weight": 0.3} if combination == "weighted_average" else {}
    model = small_sevnet(head_mode=mode, head_pooling=pooling, combination=combination, **further)
    model = perturb(model).eval()
    got = model(torch.rand(3, 3, 31, 95))
    mask, severity = got.parts["mask_score"], got.parts["severity"]
    want = {
        "simple_average": (mask + severity) / 2,
        "weighted_average": 0.7 * mask + 0.3 * severity,
        "maximum": torch.maximum(mask, severity),
    }
    torch.testing.assert_close(got.score, want[combination])
    assert ((severity > 0) & (severity < 1)).all()
    assert ((severity - 0.5).abs() > 1e-4).all()


def test_sevnet_single_scale_head_by_hand():
    model = perturb(small_sevnet()).eval()
    images = torch.rand(2, 3, 32, 32)
    _, pair = model.repair_and_pair(images)
    act6 = model.discriminative_subnetwork.encoder_segment(pair)[5]
    w = model.severity_head.state_dict()
    x = act6.mean((2, 3))
    for i in (0, 3):
        x = F.relu(x @ w[f"severity_mlp.{i}.weight"].T + w[f"severity_mlp.{i}.bias"])
    want = torch.sigmoid(x @ w["severity_mlp.6.weight"].T + w["severity_mlp.6.bias"])[:, 0]
    torch.testing.assert_close(model(images).parts["severity"], want)


@pytest.mark.parametrize(("target", "divisor"), [("normalised", 25.0), ("raw", 1.0)])
def test_sevnet_severity_label(target, divisor):
    model = perturb(small_sevnet(severity_max=25.0, severity_target=target, severity_weight=2.0)).eval()
    images, mask = torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32)
    label = torch.tensor([0.0, 20.0])
    found = model(images).parts["severity"]
    term = model.losses(images, images, mask, label)["severity"]
    assert term.item() == pytest.approx(2 * ((found - label / divisor) ** 2).mean().item(), rel=1e-4)


@pytest.mark.parametrize("make", [small_draem, small_sevnet])
def test_every_draem_parameter_learns(make):
    model = make()
    damaged, clean, mask = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64), torch.rand(2, 64, 64) > 0.5
    extra = (torch.tensor([0.3, 0.9]),) if isinstance(model, DraemSevNet) else ()
    sum(model.losses(damaged, clean, mask, *extra).values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@torch.no_grad()
def test_reverse_distillation_loss_and_map():
    model = perturb(ReverseDistillation(extractor=PyramidExtractor(), backbone="resnet18", map_mode="multiply")).eval()
    images = torch.rand(2, 3, 31, 95)
    padded = F.pad(images, (0, 1, 0, 1), mode="replicate")
    teacher = list(PyramidExtractor()(padded).values()) and list(model.extractor(padded).values())
    student = model.decoder(model.bottleneck(teacher))
    assert [t.shape for t in teacher] == [s.shape for s in student]
    terms = model.training_losses(model.features_of(images, model.support_views))
    for i, (t, s) in enumerate(zip(teacher, student, strict=True), start=1):
        cosine = [(a * b).sum() / (a.norm() * b.norm()) for a, b in zip(t, s, strict=True)]
        assert terms[f"cosine_layer{i}"].item() == pytest.approx(1 - sum(cosine).item() / 2, rel=1e-3, abs=1e-6)
    product = torch.ones(2, 32, 96)
    total = torch.zeros(2, 32, 96)
    for t, s in zip(teacher, student, strict=True):
        distance = 1 - (t * s).sum(1) / (t.norm(dim=1) * s.norm(dim=1))
        large = F.interpolate(distance[:, None], size=(32, 96), mode="bilinear", align_corners=True)[:, 0]
        product, total = product * large, total + large
    want = ndimage.gaussian_filter(product[0, :31, :95].double().numpy(), 4.0, mode="mirror")
    got = model(images)
    torch.testing.assert_close(got.map[0].double(), torch.from_numpy(want), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(got.score, got.map.amax((1, 2)))
    model.config.map_mode = "add"
    want = ndimage.gaussian_filter(total[1, :31, :95].double().numpy(), 4.0, mode="mirror")
    torch.testing.assert_close(model(images).map[1].double(), torch.from_numpy(want), rtol=1e-3, atol=1e-5)


def test_reverse_distillation_trains_all_but_the_unused():
    model = ReverseDistillation(extractor=PyramidExtractor(), backbone="resnet18")
    features = model.features_of(torch.rand(2, 3, 64, 64), model.support_views)
    sum(model.training_losses(features).values()).backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None}
    frozen = {
        n for n, _ in model.named_parameters() if n.startswith(("extractor.", "bottleneck.conv4.", "bottleneck.bn4."))
    }
    assert silent == frozen


MAKERS = {
    "patchcore": lambda: PatchCore(extractor=PyramidExtractor(), coreset_ratio=0.5),
    "padim": lambda: Padim(extractor=PyramidExtractor(), features=20),
    "reverse_distillation": lambda: ReverseDistillation(extractor=PyramidExtractor(), backbone="resnet18"),
    "draem": small_draem,
    "draem_sevnet": lambda: small_sevnet(head_pooling="spatial_aware", head_grid=2),
}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_anomalib_names_round_trip(name):
    images = torch.rand(4, 3, 64, 64)
    model = MAKERS[name]()
    if name in ("patchcore", "padim"):
        perturb(model.extractor)
        model.fit([images[:3]])
    else:
        perturb(model)
    state = to_anomalib(model.eval())
    state["post_processor._image_threshold"] = torch.tensor(1.5)
    state["post_processor._pixel_threshold"] = torch.tensor(float("nan"))
    fresh = MAKERS[name]().eval()
    assert load_anomalib(fresh, state) == {"image_threshold": 1.5}
    want, got = model(images), fresh(images)
    torch.testing.assert_close(got.map, want.map, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(got.score, want.score, rtol=1e-3, atol=1e-4)
    expected = {
        "patchcore": {"model.memory_bank", "model.feature_extractor.feature_extractor.layer1.weight"},
        "padim": {"model.idx", "model.gaussian.mean", "model.gaussian.inv_covariance"},
        "reverse_distillation": {"model.encoder.feature_extractor.conv1.weight", "model.decoder.layer3.1.conv2.weight"},
        "draem": {"model.discriminative_subnetwork.decoder_segment.up4.2.running_mean"},
        "draem_sevnet": {
            "model.discriminative_subnetwork.original_subnet.encoder_segment.block1.0.weight",
            "model.severity_head.spatial_reducer.0.weight",
        },
    }
    assert expected[name] <= set(state)
    with pytest.raises(ValueError, match="state_dict"):
        load_anomalib(fresh, {"foo": torch.zeros(1)})


def test_a_last_batch_of_one_small_image_is_refused_in_words() -> None:
    """Its deepest map is one cell: batch normalisation has nothing to average (torch says so in its own words)."""
    model = ReverseDistillation(extractor=PyramidExtractor(), backbone="resnet18")
    two = model.features_of(torch.rand(2, 3, 32, 32), model.support_views)
    assert all(torch.isfinite(loss) for loss in model.training_losses(two).values())
    one = model.features_of(torch.rand(1, 3, 32, 32), model.support_views)
    with pytest.raises(UserError, match="another batch_size="):
        model.training_losses(one)
    model.training_losses(model.features_of(torch.rand(1, 3, 64, 64), model.support_views))
