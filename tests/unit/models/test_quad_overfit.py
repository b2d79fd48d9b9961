"""The V4 model can memorise two samples a class: loss near its floor, k-NN and classes right."""

import torch

from anomaly_lib.losses.supcon_extra import combined_loss
from anomaly_lib.metrics import knn_vote
from anomaly_lib.models.weld.supcon_quad import QuadModal
from anomaly_lib.models.weld.tasks import MaskedSensors, MaskedTokens, NextStep, Reconstruction, two_views

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
        loss = task({"sensors": series})
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
    assert not torch.equal(first["sensors"], second["sensors"])
    assert first["present"] is second["present"]
    heard, again = two_views(batch, ["audio"])
    assert set(heard) == {"audio"}  # the other modalities are left out
    assert not torch.equal(heard["audio"], again["audio"])


def test_masked_tokens_are_never_read_and_only_they_count():
    torch.manual_seed(0)
    batch, _ = samples()
    task = MaskedTokens(QuadModal(**SMALL), ["video", "audio"], ratio=0.5)
    fixed = torch.tensor([[True, False, True, False]] * 24)
    task.hide = lambda there: fixed & there  # type: ignore[method-assign]
    asked = []
    original = task.model.forward
    task.model.forward = lambda seen: asked.append(seen) or original(seen)  # type: ignore[method-assign]
    loss = task(batch)
    assert torch.equal(asked[0]["video_mask"], ~fixed)
    assert "images_mask" not in asked[0]
    changed = {**batch, "video": torch.where(fixed[..., None], batch["video"], batch["video"] + 1)}
    seen = task.model(changed | {"video_mask": fixed})["embedding"]
    torch.testing.assert_close(seen, task.model({**batch, "video_mask": fixed})["embedding"])  # the mask hides
    for name in ("video", "audio"):  # what is visible is no target: perfect rebuilding of the hidden gives 0
        task.decode[name] = Copy(batch[name])
    assert float(task(batch).detach()) == 0 < float(loss.detach())
    silent = torch.tensor([[True, True, False, True]] * 24)
    broken = {**batch, "audio": torch.full_like(batch["audio"], float("nan")), "present": silent}
    assert float(task(broken).detach()) == 0


class Copy(torch.nn.Module):
    """Says the hidden tokens right and the visible ones wrong."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def forward(self, _):
        wrong = torch.tensor([0.0, 9.0, 0.0, 9.0])[None, :, None]
        return self.tokens + wrong


def test_some_tokens_are_hidden_but_never_all():
    torch.manual_seed(0)
    task = MaskedTokens(QuadModal(**SMALL), ["images"], ratio=0.6)
    there = torch.tensor([[True] * 5, [True, True, False, False, False], [False] * 5])
    counts = {tuple(task.hide(there).sum(1).tolist()) for _ in range(20)}
    assert counts == {(3, 1, 0)}
    assert not bool((task.hide(there) & ~there).any())


def test_masked_tokens_learn_what_one_modality_says_of_another():
    torch.manual_seed(0)
    batch, _ = samples()
    batch["video"] = batch["audio"][:, :, :1].expand(-1, -1, 12).contiguous()  # the sound tells the hidden frames
    task = MaskedTokens(QuadModal(**SMALL), ["video"])
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = task(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_the_next_step_is_told_from_the_steps_before_it():
    torch.manual_seed(0)
    batch, _ = samples()
    encoder = QuadModal(**SMALL).sensor.eval()
    task = NextStep(encoder)
    heard = []
    task.decode.register_forward_hook(lambda *found: heard.append(found[2]))
    loss = task(encoder, batch)
    torch.testing.assert_close(loss, (heard[0] - batch["sensors"][:, 1:]).square().mean())  # the shifted series
    later = batch["sensors"].clone()
    later[:, 5:] += 3  # no step before the change sees it
    task(encoder, {"sensors": later})
    torch.testing.assert_close(heard[1][:, :5], heard[0][:, :5], rtol=1e-4, atol=1e-5)
    assert float((heard[1][:, 5:] - heard[0][:, 5:]).detach().abs().max()) > 1e-3
    lost = {"sensors": later, "present": torch.tensor([[True, True, True, False]] * 24)}
    assert float(task(encoder, lost).detach()) == 0


def test_the_aligner_acts_on_the_sensors_and_learns():
    torch.manual_seed(0)
    batch, _ = samples()
    plain = QuadModal(**SMALL).eval()
    model = QuadModal(**SMALL, align=True, video_steps=2, audio_rows=1).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split(".")[0] for name in model.state_dict().keys() - plain.state_dict().keys()} == {"align"}
    torch.testing.assert_close(model(batch)["features"], plain(batch)["features"])  # the identity at first
    for aligner in model.align.values():
        torch.nn.init.normal_(aligner.attention.output.weight)
    out = model(batch)["features"]
    assert float((out - plain(batch)["features"]).detach().abs().max()) > 1e-3
    out.sum().backward()
    assert all(abs(float(aligner.offset.grad)) > 0 for aligner in model.align.values())
    deaf = {**batch, "present": torch.tensor([[True, True, False, True]] * 24)}
    broken = {**deaf, "audio": torch.full_like(batch["audio"], float("nan"))}
    torch.testing.assert_close(model(broken)["features"], model(deaf)["features"])  # an absent sound adds nothing
