"""Queue, hard negatives, mixed labels, combined objective."""

import math

import pytest
import torch
import torch.nn.functional as F

from anomaly_lib.losses import supcon_loss
from anomaly_lib.losses.supcon_extra import FeatureQueue, combined_loss, mixed_loss, mixup, supcon_with_negatives


def unit(count=12, dim=5, seed=0):
    return F.normalize(
        torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2, 3, 0, 1])


def loop_supcon(features, labels, bank, bank_labels, tau, share=1.0, beta=0.0):
    terms = []
    for i, anchor in enumerate(features):
        sims = [float(anchor @ b) for b in bank]
        positives = [j for j in range(len(bank)) if j != i and bank_labels[j] == labels[i]]
        negatives = sorted((j for j in range(len(bank)) if bank_labels[j] != labels[i]), key=lambda j: -sims[j])
        negatives = negatives[: math.ceil(share * len(negatives))]
        if not positives:
            continue
        raw = {j: math.exp(beta * sims[j]) for j in negatives}
        scale = len(negatives) / sum(raw.values())
        weights = {j: w * scale for j, w in raw.items()}
        total = sum(math.exp(sims[j] / tau) for j in positives) + sum(
            w * math.exp(sims[j] / tau) for j, w in weights.items()
        )
        terms.append(-sum(sims[j] / tau - math.log(total) for j in positives) / len(positives))
    return sum(terms) / len(terms)


def test_golden_values_and_plain_case():
    identity, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    assert float(supcon_with_negatives(identity, labels)) == pytest.approx(math.log(3), abs=1e-6)
    assert float(supcon_with_negatives(identity, torch.arange(4))) == 0.0
    x = unit()
    expected = supcon_loss(x, LABELS, skip_anchors_without_positives=True)
    torch.testing.assert_close(supcon_with_negatives(x, LABELS), expected)


@pytest.mark.parametrize(("share", "beta"), [(0.4, 0.0), (1.0, 2.0), (0.5, 1.0)])
def test_hard_negatives_equal_the_loop(share, beta):
    x = unit()
    got = supcon_with_negatives(x, LABELS, temperature=0.2, hard_negatives=share, hardness=beta)
    assert float(got) == pytest.approx(loop_supcon(x, LABELS, x, LABELS, 0.2, share, beta), abs=1e-7)


def test_queue_makes_two_half_batches_see_what_one_whole_batch_sees():
    x = unit()
    queue = FeatureQueue(6)
    queue.push(x[6:], LABELS[6:])
    got = supcon_with_negatives(x[:6], LABELS[:6], queue=queue, temperature=0.2)
    assert float(got) == pytest.approx(loop_supcon(x[:6], LABELS[:6], x, LABELS, 0.2), abs=1e-9)
    leaf = x[:6].clone().requires_grad_()
    supcon_with_negatives(leaf, LABELS[:6], queue=queue).backward()
    assert float(leaf.grad.abs().max()) > 0


def test_queue_drops_the_oldest_and_restores():
    queue = FeatureQueue(3)
    queue.push(torch.arange(2.0)[:, None], torch.tensor([0, 1]))
    queue.push(torch.arange(10.0, 12.0)[:, None], torch.tensor([2, 3]))
    assert queue.labels.tolist() == [2, 3, 0]
    assert queue.features.flatten().tolist() == [10.0, 11.0, 0.0]
    other = FeatureQueue(3)
    other.load_state_dict(queue.state_dict())
    assert len(other) == 3


def test_mixup_is_a_convex_mixture_and_both_labels_count():
    x = unit()
    mixed, order, weight = mixup(x, 0.2, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(mixed, F.normalize(weight * x + (1 - weight) * x[order], dim=1))
    same, _, one = mixup(x, 0.0)
    assert one == 1.0
    assert torch.equal(same, x)
    loss = lambda y: (y.double() * torch.arange(12)).sum()  # noqa: E731
    expected = 0.3 * loss(LABELS) + 0.7 * loss(LABELS[order])
    torch.testing.assert_close(mixed_loss(loss, LABELS, order, 0.3), expected)


def test_mixup_weights_follow_beta():
    g = torch.Generator().manual_seed(0)
    weights = torch.tensor([mixup(unit(2), 0.5, generator=g)[2] for _ in range(2000)])
    assert float(weights.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(weights.var()) == pytest.approx(0.125, abs=0.02)  # 1 / (4 (2 alpha + 1))


def test_combined_is_the_weighted_sum():
    x, logits = unit(), torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parts = combined_loss(x, logits, LABELS)
    torch.testing.assert_close(parts["total"], parts["supcon"] + 0.1 * F.cross_entropy(logits, LABELS))
