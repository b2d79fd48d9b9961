"""The V4 model can memorise two samples a class: loss near its floor, k-NN and classes right."""

import torch

from anomaly_lib.losses.supcon_extra import combined_loss
from anomaly_lib.metrics import knn_vote
from anomaly_lib.models.weld.supcon_quad import QuadModal
from anomaly_lib.models.weld.tasks import MaskedSensors, Reconstruction, two_views

SMALL = {"video_dim": 12, "image_dim": 10, "audio_dim": 8, "sensor_dim": 16, "sensor_layers": 1, "hidden_dim": 32}
SMALL |= {"dropout": 0.0, "modality_dropout": 0.0}


def samples(seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"video": (4, 12), "images": (2, 10), "audio": (4, 8), "sensors": (8, 6)}
    batch = {name: torch.randn(24, *shape, generator=g) for name, shape in shapes.items()}
    return batch, torch.arange(12).repeat(2)


def test_24_samples_are_memorised():
    torch.manual_seed(0)
    batch, labels = samples()
    model = QuadModal(**SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        out = model(batch)
        terms = combined_loss(out["features"], out["logits"], labels)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
    with torch.no_grad():
        out = model.eval()(batch)
    assert float(terms["supcon"].detach()) < 0.05  # the floor is 0 for pairs
    assert float((out["logits"].argmax(1) == labels).float().mean()) > 0.95
    voted, _ = knn_vote(out["features"], labels, out["features"], k=1)
    assert torch.equal(voted, labels)


def test_masked_sensors_learn_a_predictable_series():
    torch.manual_seed(0)
    phase = torch.rand(16, 1, 1) * 6
    series = torch.sin(torch.arange(24)[None, :, None] * 0.5 + phase).expand(-1, -1, 6)
    task = MaskedSensors(QuadModal(**SMALL).sensor, ratio=0.3)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        loss = task(series)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_reconstruction_leaves_out_absent_modalities():
    torch.manual_seed(0)
    batch, _ = samples()
    task = Reconstruction(QuadModal(**SMALL))
    embedding = torch.randn(24, 32)
    present = torch.tensor([[True, False, True, True]] * 24)
    a = task(embedding, {**batch, "present": present})
    b = task(embedding, {**batch, "images": torch.full_like(batch["images"], float("nan")), "present": present})
    torch.testing.assert_close(a, b)
    full = torch.ones(24, 4, dtype=torch.bool)
    assert float((task(embedding, {**batch, "present": full}) - a).detach().abs()) > 1e-4


def test_two_views_differ_and_keep_what_is_no_token():
    batch, _ = samples()
    first, second = two_views({**batch, "present": torch.ones(24, 4)})
    assert not torch.equal(first["video"], second["video"])
    assert first["present"] is second["present"]
