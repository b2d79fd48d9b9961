"""Image-level metrics against scikit-learn, hand-computed values and the defined degenerate cases."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from anomaly_lib import metrics
from anomaly_lib.errors import UserError
from anomaly_lib.metrics.prediction import classification_metrics


def random_case(seed: int, *, size: int = 400, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.random(size) < 0.3
    scores = generator.normal(size=size) + labels
    return (scores if levels is None else np.round(scores * levels) / levels), labels.astype(int)


def best_f1(scores: np.ndarray, labels: np.ndarray) -> float:
    return max(sk.f1_score(labels, scores >= t) for t in np.unique(scores))


@pytest.mark.parametrize("levels", [None, 3, 1], ids=["distinct", "ties", "many-ties"])
@pytest.mark.parametrize("seed", range(3))
def test_ranking_metrics_equal_sklearn(seed: int, levels: int | None) -> None:
    scores, labels = random_case(seed, levels=levels)
    assert metrics.auroc(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.average_precision(scores, labels) == pytest.approx(
        sk.average_precision_score(labels, scores), abs=1e-12
    )
    assert metrics.f1_max(scores, labels) == pytest.approx(best_f1(scores, labels), abs=1e-12)
    fpr, tpr, at = sk.roc_curve(labels, scores, drop_intermediate=False)
    gain, threshold = metrics.youden(scores, labels)
    assert gain == pytest.approx((tpr - fpr).max(), abs=1e-12)
    assert threshold == at[np.argmax(tpr - fpr)]


def test_f1_threshold_reaches_f1_max_and_is_the_lowest_on_ties() -> None:
    scores, labels = random_case(5, levels=2)
    at = metrics.f1_max_threshold(scores, labels)
    assert metrics.threshold_metrics(scores, labels, at)["f1"] == pytest.approx(metrics.f1_max(scores, labels))
    # F1 is 2/3 at 3.0 (1 hit of 2) and 2/3 at 1.0 (2 hits, 2 false alarms): the lower one is named.
    assert metrics.f1_max_threshold([3.0, 2.0, 2.0, 1.0], [1, 0, 0, 1]) == 1.0


def test_threshold_metrics_by_hand() -> None:
    found = metrics.threshold_metrics([0.9, 0.8, 0.5, 0.2, 0.1], [1, 0, 1, 1, 0], 0.5)
    assert {k: found[k] for k in ("tp", "fp", "fn", "tn")} == {"tp": 2, "fp": 1, "fn": 1, "tn": 1}
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["precision"] == found["recall"] == found["f1"] == pytest.approx(2 / 3)
    assert found["specificity"] == pytest.approx(1 / 2)
    assert math.isnan(metrics.threshold_metrics([0.1, 0.2], [0, 1], 5.0)["precision"])


def test_image_metrics_names_and_values() -> None:
    scores, labels = random_case(1)
    found = metrics.image_metrics(scores, labels)
    assert list(found) == ["auroc", "ap", "f1_max", "f1_max_threshold"]
    assert found["auroc"] == metrics.auroc(scores, labels)
    at_half = metrics.image_metrics(scores, labels, threshold=0.5)
    assert at_half["accuracy"] == pytest.approx(sk.accuracy_score(labels, scores >= 0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_give_what_arrays_give(dtype: torch.dtype) -> None:
    scores, labels = random_case(2)
    tensor = torch.from_numpy(scores).to(dtype)
    assert metrics.auroc(tensor.requires_grad_(), torch.from_numpy(labels)) == metrics.auroc(
        tensor.double().tolist(), labels.tolist()
    )


def test_large_float64_differences_survive() -> None:
    assert metrics.auroc(np.array([1e9, 1e9 + 1]), [0, 1]) == 1.0  # equal in float32


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]])
def test_one_class_is_nan_not_zero(labels: list[int]) -> None:
    assert math.isnan(metrics.auroc([0.1, 0.2], labels))
    assert math.isnan(metrics.youden([0.1, 0.2], labels)[0])
    if labels[0]:
        assert metrics.average_precision([0.1, 0.2], labels) == metrics.f1_max([0.1, 0.2], labels) == 1.0
    else:
        assert math.isnan(metrics.average_precision([0.1, 0.2], labels))
        assert math.isnan(metrics.f1_max([0.1, 0.2], labels))


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        ([], [], "at least one score"),
        ([0.1, 0.2], [1], "2 scores but 1 labels"),
        ([0.1, 0.2], [1, 2], "0 (normal) or 1"),
        ([0.1, float("nan"), 0.2], [0, 1, 1], "sample 1 is not finite"),
        ([0.1, 0.2, float("inf")], [0, 1, 1], "sample 2 is not finite"),
        (["a", "b"], [0, 1], "must be numbers"),
    ],
)
def test_wrong_input_is_named(scores: list[float], labels: list[int], words: str) -> None:
    with pytest.raises(UserError) as error:
        metrics.auroc(scores, labels)
    assert words in str(error.value)


def test_calibration_error_equals_torchmetrics() -> None:
    from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

    generator = torch.Generator().manual_seed(0)
    p, y = torch.rand(500, generator=generator), torch.rand(500, generator=generator) < 0.4
    assert metrics.expected_calibration_error(p, y) == pytest.approx(
        float(binary_calibration_error(p, y.int())), abs=1e-6
    )
    many = torch.randn(300, 4, generator=generator).softmax(1)
    target = torch.randint(4, (300,), generator=generator)
    want = float(multiclass_calibration_error(many, target, num_classes=4, n_bins=10))
    assert metrics.expected_calibration_error(many, target, bins=10) == pytest.approx(want, abs=1e-6)
    with pytest.raises(UserError, match="within"):
        metrics.expected_calibration_error([1.5], [1])


def test_bootstrap_interval() -> None:
    scores, labels = random_case(3)
    found = metrics.bootstrap_ci(metrics.auroc, scores, labels, groups=labels, repeats=200)
    assert found.low < found.value < found.high
    assert found.value == metrics.auroc(scores, labels)
    assert found == metrics.bootstrap_ci(metrics.auroc, scores, labels, groups=labels, repeats=200)
    # The mean of n values has a normal interval of +- 1.96 s / sqrt(n).
    values = np.random.default_rng(0).normal(size=400)
    mean = metrics.bootstrap_ci(np.mean, values, repeats=2000)
    half = 1.96 * values.std() / 20
    assert mean.high - mean.value == pytest.approx(half, rel=0.12)
    assert mean.value - mean.low == pytest.approx(half, rel=0.12)
    # Two anomalies among many: grouped draws never lose the class.
    rare = np.r_[np.zeros(50, int), 1, 1]
    assert np.isfinite(metrics.bootstrap_ci(metrics.auroc, np.arange(52.0), rare, groups=rare, repeats=200)).all()


def test_prediction_metrics_by_counting() -> None:
    generator = np.random.default_rng(0)
    target, predicted = generator.integers(0, 5, 200), generator.integers(0, 5, 200)
    assert metrics.accuracy(predicted, target) == pytest.approx(sum(target == predicted) / 200)
    counts = [[sum((target == t) & (predicted == p)) for p in range(6)] for t in range(6)]
    np.testing.assert_array_equal(metrics.confusion_matrix(predicted, target, num_classes=6), counts)
    each = [2 * counts[c][c] / (sum(counts[c]) + sum(row[c] for row in counts)) for c in range(5)]
    np.testing.assert_allclose(metrics.class_f1(predicted, target, num_classes=6), [*each, np.nan], rtol=1e-12)
    assert metrics.macro_f1(predicted, target) == pytest.approx(np.mean(each))
    assert metrics.macro_f1(["a", "b"], ["a", "a"]) == pytest.approx(1 / 3)
    with pytest.raises(UserError, match=r"class indices must lie in 0\.\.3"):
        metrics.class_f1(predicted, target, num_classes=4)
    with pytest.raises(UserError, match="0 predictions"):
        metrics.macro_f1([], [])


def test_classification_metrics_by_counting() -> None:
    found = classification_metrics([0.9, 0.8, 0.4, 0.5, 0.1], [1, 0, 1, 1, 0])
    assert found == pytest.approx({"accuracy": 2 / 5, "precision": 1 / 2, "recall": 1 / 3, "auroc": 4 / 6})
    none = classification_metrics([0.1, 0.2], [0, 0])
    assert (none["accuracy"], none["precision"], none["recall"]) == (1, 0, 0)
    assert math.isnan(none["auroc"])


def test_regression_metrics_equal_sklearn() -> None:
    generator = np.random.default_rng(0)
    want, got = generator.normal(size=50), generator.normal(size=50)
    assert metrics.mae(got, want) == pytest.approx(sk.mean_absolute_error(want, got))
    assert metrics.rmse(got, want) == pytest.approx(math.sqrt(sk.mean_squared_error(want, got)))
    assert metrics.r2(torch.from_numpy(got), want) == pytest.approx(sk.r2_score(want, got))
    assert math.isnan(metrics.r2([1.0, 2.0], [3.0, 3.0]))
    with pytest.raises(UserError, match="sample 1 is not finite"):
        metrics.mae([0.0, float("nan")], [0.0, 0.0])


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan"])
def test_knn_vote_by_hand(metric: str) -> None:
    bank, queries = torch.randn(120, 6), torch.randn(90, 6)
    labels = torch.randint(0, 5, (120,))
    labels[labels == 1] = 2  # a class without a sample
    labels[0] = 5
    if metric == "cosine":
        distance = 1 - torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=2)
    else:
        gap = (queries[:, None] - bank[None]).abs()
        distance = gap.sum(2) if metric == "manhattan" else gap.square().sum(2).sqrt()
    nearest = labels[distance.sort(1).indices[:, :4]]
    votes = torch.stack([(nearest == c).float().mean(1) for c in range(6)], dim=1)
    assert ((votes == votes.amax(1, keepdim=True)).sum(1) > 1).any()  # there are equal votes
    predicted, share = metrics.knn_vote(bank, labels, queries, k=4, metric=metric)
    assert torch.equal(share, votes)
    assert predicted.tolist() == [row.index(max(row)) for row in votes.tolist()]


def test_knn_vote_refuses_what_it_cannot_do() -> None:
    bank = torch.randn(120, 6)
    with pytest.raises(UserError, match="k=121: there are 120 samples"):
        metrics.knn_vote(bank, torch.zeros(120), bank, k=121)
    with pytest.raises(UserError, match="metric=chebyshev: choose from cosine"):
        metrics.knn_vote(bank, torch.zeros(120), bank, metric="chebyshev")
