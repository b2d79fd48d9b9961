"""Golden values and written-out twins of every loss."""

import math

import pytest
import torch
import torch.nn.functional as F

from anomaly_lib import losses

ONE_TO_FOUR = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
ONES = torch.ones(1, 4)


def test_cosine_golden_value() -> None:
    assert float(losses.cosine_loss(ONE_TO_FOUR, ONES)) == pytest.approx(0.0871291, abs=1e-6)
    assert losses.cosine_loss(torch.eye(3), -torch.eye(3), reduction="none").tolist() == [2.0, 2.0, 2.0]


def test_topk_golden_values() -> None:
    error = (ONE_TO_FOUR - ONES).abs()
    assert float(losses.topk_mean(error, 0.5)) == 2.5
    assert float(losses.topk_mean(error, 0.01)) == 3.0
    assert float(losses.topk_mean(torch.arange(100.0).unsqueeze(0), 0.29)) == pytest.approx((71 + 99) / 2)
    with pytest.raises(ValueError, match="ratio"):
        losses.topk_mean(error, 0.0)


def test_feature_l1_equals_torch_without_topk() -> None:
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    torch.testing.assert_close(losses.feature_l1_loss(a, b), F.l1_loss(a, b))
    torch.testing.assert_close(
        losses.feature_l1_loss(a, b, kind="smooth_l1", beta=0.1), F.smooth_l1_loss(a, b, beta=0.1)
    )
    assert float(losses.feature_l1_loss(ONE_TO_FOUR, ONES, topk_ratio=0.5)) == 2.5


def test_gram_golden_values() -> None:
    assert float(losses.gram_loss(ONE_TO_FOUR, ONES, norm="fro")) == pytest.approx(6.6895442, abs=1e-6)
    assert float(losses.gram_loss(ONE_TO_FOUR, ONES, norm="mse")) == pytest.approx(2.796875, abs=1e-6)


@pytest.mark.parametrize("tokens", [None, 3])
@pytest.mark.parametrize("norm", ["mse", "fro"])
def test_gram_equals_the_built_matrices(tokens: int | None, norm: str) -> None:
    shape = (2, 5) if tokens is None else (2, tokens, 5)
    f, g = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    want = []
    for i in range(2):
        a, b = f[i].reshape(-1, 5), g[i].reshape(-1, 5)
        difference = (a.T @ a - b.T @ b) / 5
        want.append((difference**2).mean() if norm == "mse" else torch.linalg.matrix_norm(difference))
    torch.testing.assert_close(losses.gram_loss(f, g, norm=norm), torch.stack(want).mean())


def test_gram_batch_mode_and_its_gradient_at_equality() -> None:
    f, g = torch.randn(4, 6), torch.randn(4, 6)
    torch.testing.assert_close(losses.gram_loss(f, g, mode="batch"), F.mse_loss(f @ f.T / 6, g @ g.T / 6))
    x = ONE_TO_FOUR.clone().requires_grad_()
    losses.gram_loss(x, ONE_TO_FOUR, norm="fro").backward()
    assert torch.isfinite(x.grad).all()


def test_gram_has_no_cancellation_in_float32() -> None:
    f = torch.randn(1, 512) * 100
    g = f * (1 + 1e-4)
    want = losses.gram_loss(f.double(), g.double())
    torch.testing.assert_close(losses.gram_loss(f, g).double(), want, rtol=1e-3, atol=0)


def test_triplet_equals_torch_and_by_hand() -> None:
    a, p, n = (torch.randn(6, 4) for _ in range(3))
    want = F.triplet_margin_loss(a, p, n, margin=0.7, eps=0)
    torch.testing.assert_close(losses.triplet_loss(a, p, n, margin=0.7, squared=False), want, atol=1e-5, rtol=1e-5)
    rows = [max(0.0, float(((a[i] - p[i]) ** 2).sum() - ((a[i] - n[i]) ** 2).sum())) for i in range(6)]
    assert float(losses.triplet_loss(a, p, n)) == pytest.approx(sum(rows) / 6, abs=1e-5)


def test_triplet_gradient_is_finite_when_anchor_is_positive() -> None:
    a = torch.ones(2, 3, requires_grad=True)
    losses.triplet_loss(a, torch.ones(2, 3), torch.zeros(2, 3), margin=5.0, squared=False).backward()
    assert torch.isfinite(a.grad).all()


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    torch.testing.assert_close(losses.focal_loss(logits, target, gamma=0), F.cross_entropy(logits, target))


@pytest.mark.parity
def test_focal_equals_torchvision_on_two_classes() -> None:
    ops = pytest.importorskip("torchvision.ops")
    x, y = torch.randn(50), torch.randint(0, 2, (50,))
    two = torch.stack([torch.zeros(50), x], dim=1)  # softmax of [0, x] is the sigmoid of x
    want = ops.sigmoid_focal_loss(x, y.float(), alpha=0.3, gamma=2, reduction="mean")
    torch.testing.assert_close(losses.focal_loss(two, y, alpha=0.3), want)


def test_focal_alpha_one_silences_the_background_and_none_does_not() -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    background = torch.zeros(1, 4, 4, dtype=torch.long)
    losses.focal_loss(logits, background, alpha=1.0).backward()
    assert logits.grad.abs().max() == 0
    losses.focal_loss(logits, background).backward()
    assert logits.grad.abs().max() > 0


def test_focal_smoothing_cuts_the_probability() -> None:
    logits, target = torch.tensor([[50.0, -50.0]]), torch.tensor([1])
    want = -((1 - 1e-5) ** 2) * math.log(1e-5)
    assert float(losses.focal_loss(logits, target, smoothing=1e-5)) == pytest.approx(want, rel=1e-5)


def test_dice_by_hand() -> None:
    p, t = torch.tensor([[0.5, 1.0, 0.0]]), torch.tensor([[1, 1, 0]])
    assert float(losses.dice_loss(p, t, smooth=1.0)) == pytest.approx(1 - 4.0 / 4.5)
    assert float(losses.dice_loss(p, t, smooth=0.0, squared=True)) == pytest.approx(1 - 3.0 / 3.25)
    assert float(losses.dice_loss(torch.zeros(1, 4), torch.zeros(1, 4))) == 0.0


@pytest.mark.parity
def test_ssim_equals_scikit_image_inside() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a = torch.rand(2, 3, 40, 33, dtype=torch.float64)
    b = (a + 0.2 * torch.rand_like(a)).clamp(0, 1)
    ours = losses.ssim(a, b)
    for i in range(2):
        for c in range(3):
            _, want = metrics.structural_similarity(
                a[i, c].numpy(), b[i, c].numpy(), data_range=1.0, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False, full=True,
            )  # fmt: skip
            torch.testing.assert_close(ours[i, c, 5:-5, 5:-5], torch.from_numpy(want)[5:-5, 5:-5], atol=1e-9, rtol=1e-7)


def test_ssim_loss_bounds() -> None:
    a = torch.rand(1, 1, 16, 16)
    assert float(losses.ssim_loss(a, a)) == pytest.approx(0, abs=1e-5)
    assert float(losses.ssim_loss(a, 1 - a)) > 1


@pytest.mark.parametrize(
    ("labels", "want"), [([0, 0, 1, 1], math.log(3)), ([5, 5, 5, 5], math.log(3)), ([0, 1, 2, 3], 0.0)]
)
def test_supcon_golden_values(labels: list[int], want: float) -> None:
    assert float(losses.supcon_loss(torch.eye(4), torch.tensor(labels))) == pytest.approx(want, abs=1e-6)


def test_supcon_golden_value_in_the_plane() -> None:
    features = F.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0]]), dim=1)
    assert float(losses.supcon_loss(features, torch.tensor([0, 1, 0, 1]))) == pytest.approx(2.6987095, abs=1e-5)


def _supcon_twin(features: torch.Tensor, labels: list[int], tau: float, anchors: int) -> float:
    rows = [features[i, v] for v in range(features.shape[1]) for i in range(features.shape[0])]
    names = labels * features.shape[1]
    total = 0.0
    for i in range(anchors):
        others = [j for j in range(len(rows)) if j != i]
        denominator = sum(math.exp(float(rows[i] @ rows[j]) / tau) for j in others)
        positive = [j for j in others if names[j] == names[i]]
        terms = [math.log(math.exp(float(rows[i] @ rows[j]) / tau) / denominator) for j in positive]
        total += -sum(terms) / max(1, len(terms))
    return total / anchors


@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("labels", [None, [0, 1, 1, 2]])
def test_supcon_equals_loops(mode: str, labels: list[int] | None) -> None:
    features = F.normalize(torch.randn(4, 2, 5, dtype=torch.float64), dim=-1)
    given = None if labels is None else torch.tensor(labels)
    want = _supcon_twin(features, labels or [0, 1, 2, 3], 0.2, 8 if mode == "all" else 4)
    assert float(losses.supcon_loss(features, given, temperature=0.2, contrast_mode=mode)) == pytest.approx(
        want, abs=1e-9
    )
    scaled = losses.supcon_loss(features, given, temperature=0.2, base_temperature=0.1, contrast_mode=mode)
    assert float(scaled) == pytest.approx(2 * want, abs=1e-9)


def test_supcon_without_positives_has_a_finite_gradient() -> None:
    features = torch.randn(3, 4, requires_grad=True)
    for skip in (False, True):
        losses.supcon_loss(
            F.normalize(features, dim=1), torch.tensor([0, 1, 2]), skip_anchors_without_positives=skip
        ).backward()
    assert torch.isfinite(features.grad).all()
    pairs = F.normalize(torch.randn(4, 3), dim=1)
    labels = torch.tensor([0, 0, 1, 2])
    kept = losses.supcon_loss(pairs, labels, skip_anchors_without_positives=True)
    torch.testing.assert_close(kept, losses.supcon_loss(pairs, labels) * 2)


def test_info_nce_equals_loops() -> None:
    a, b = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    s = [[float(F.cosine_similarity(a[i], b[j], dim=0)) / 0.1 for j in range(5)] for i in range(5)]
    rows = sum(math.log(sum(math.exp(v) for v in s[i])) - s[i][i] for i in range(5)) / 5
    columns = sum(math.log(sum(math.exp(s[j][i]) for j in range(5))) - s[i][i] for i in range(5)) / 5
    assert float(losses.info_nce_loss(a, b)) == pytest.approx((rows + columns) / 2, abs=1e-9)
    assert float(losses.info_nce_loss(a, b, symmetric=False)) == pytest.approx(rows, abs=1e-9)
