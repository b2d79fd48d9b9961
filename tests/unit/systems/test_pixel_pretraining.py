"""Encoders that learn rebuild hidden patches of what was recorded before V4's training."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from anomaly_lib.backbones.patches import PatchGrid
from anomaly_lib.config import OptionError
from anomaly_lib.models.weld.masked_patches import MaskedPatches, seen_moments
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.inputs import build_features
from anomaly_lib.systems.weld.supcon import train as train_v4
from anomaly_lib.systems.weld.supcon.options import Args, tiny
from anomaly_lib.systems.weld.supcon.pretraining import Pixels, pretrain
from anomaly_lib.systems.weld.supcon.task import QuadTask, build, open_runs
from anomaly_lib.systems.weld.supcon.train import make_sampler

GRID = PatchGrid((2, 4, 4), (2, 4, 4))
PIXELS = {"pretrain": "pixels", "encoder_training": "last"}


class Reader(nn.Module):
    """Patch tokens that see the whole clip."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = nn.Linear(32, 16), nn.Linear(16, 16)

    def forward(self, clips: Tensor) -> Tensor:
        tokens = self.each(GRID.cut(clips)).relu()
        return tokens + self.all(tokens.mean(1, keepdim=True))


def masked(ratio: float = 0.5) -> tuple[Reader, MaskedPatches]:
    torch.manual_seed(0)
    reader = Reader()
    return reader, MaskedPatches(reader.forward, GRID, width=16, values=32, ratio=ratio)


def test_the_places_hidden_are_those_of_all_frames_and_as_many_as_asked() -> None:
    clips = torch.zeros(64, 4, 1, 16, 20)  # 2 x 4 x 5 cells
    for ratio, count in ((0.6, 12), (0.01, 1), (0.99, 19)):
        hidden = masked(ratio)[1].hide(clips).unflatten(1, (2, 20))
        assert torch.equal(hidden[:, 0], hidden[:, 1])
        assert hidden[:, 0].sum(1).tolist() == [count] * 64
    assert hidden[:, 0].any(0).all()  # every place now and then


def test_hidden_values_are_never_read_and_only_they_count(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, task = masked()
    seen: list[Tensor] = []

    def read(clips: Tensor) -> Tensor:
        seen.append(clips)
        return cast(Tensor, reader(clips))

    task.read = read
    clips = torch.randn(3, 4, 1, 10, 9)
    hidden = task.hide(clips)
    monkeypatch.setattr(task, "hide", lambda _: hidden)
    covered = GRID.spread(hidden, clips)
    loss = task(clips)
    other = torch.where(covered, clips + 5 * torch.rand_like(clips), clips)
    assert task(other) != loss  # the target is another one
    assert torch.equal(seen[0], seen[1])  # what is read is the same
    mean, std = seen_moments(clips, ~covered)
    for one in range(3):  # by hand
        values = clips[one][~covered[one]]
        torch.testing.assert_close(mean[one].flatten()[0], values.mean())
        torch.testing.assert_close(std[one].flatten()[0], values.std(unbiased=False))
        assert set(seen[0][one][covered[one]].tolist()) == {float(mean[one])}
    rebuilt = task.decode(reader(seen[0]))
    errors = [
        (rebuilt[i, p] - (GRID.cut(clips)[i, p] - mean[i].flatten()) / std[i].flatten()).abs()
        for i, p in hidden.nonzero()
    ]
    torch.testing.assert_close(loss, torch.stack(errors).mean())


def test_the_error_falls_where_the_rest_tells_what_is_hidden() -> None:
    reader, task = masked()
    pattern = torch.randn(16, 2, 1, 4, 4)  # a texture of its own in every clip, the same in all its patches
    clips = pattern.repeat(1, 1, 1, 2, 4)
    optimizer = torch.optim.Adam([*reader.parameters(), *task.parameters()], lr=1e-2)
    losses = []
    for _ in range(40):
        loss = task(clips)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert task(clips[:0]) == 0  # no run of the batch has this modality


def trained(**changes: Any) -> tuple[QuadTask, WeldFeatures, dict[str, Tensor], list[str]]:
    """A task after its pre-training on four runs, its state before, and what was said."""
    args = tiny(**{**PIXELS, "encoder_lr": 1e-3, "pretrain_epochs": 1, "batch_size": 2, **changes})
    features = build_features(args, torch.device("cpu"))
    runs = open_runs(args)[:4]
    features.prepare(runs)
    torch.manual_seed(0)
    task, said = build(args, features), []
    before = {name: value.clone() for name, value in task.state_dict().items()}
    pretrain(args, task, features.seen_by(task.tops), runs, make_sampler(args, runs), said.append)
    return task, features, before, said


@pytest.mark.parametrize(("changes", "learnt"), [
    ({"trained_encoders": ["video"], "pretrain_on": ["video"]}, {"tops.video"}),
    ({"pretrain_on": ["images", "audio", "sensors"], "video_norm": "imagenet", "branches": "1.mean,2.gem"},
     {"tops.images", "tops.audio", "model.sensor"}),
    ({"pretrain_on": ["audio"], "audio_norm": "db"}, {"tops.audio"}),
    ({"pretrain_on": ["video"], "video_norm": "imagenet", "video_frames": 4, "augment": True}, {"tops.video"}),
    ({"pretrain_on": ["images"], "image_backbone": "tiny-dinov2", "image_weights": "random", "image_size": [40, 32],
      "branches": "2.mean"}, {"tops.images"}),
    ({"pretrain_on": ["video", "audio"], "encoder_training": "lora", "encoder_blocks": 2},
     {"tops.video", "tops.audio"}),
])  # fmt: skip
def test_blocks_that_learn_move_and_nothing_else(changes: dict[str, Any], learnt: set[str]) -> None:
    task, features, before, said = trained(**changes)
    low = [p.clone() for net in features.encoders.nets.values() for p in net.parameters()]
    moved = {n for n, value in task.state_dict().items() if not torch.equal(value, before[n])} - scales(task)
    assert {".".join(name.split(".")[:2]) for name in moved} == learnt
    if "encoder_training" in changes:
        assert all(name.endswith((".up", ".down")) for name in moved)
    fresh = build_features(tiny(**{**PIXELS, **changes}), torch.device("cpu"))
    assert all(map(torch.equal, low, [p for net in fresh.encoders.nets.values() for p in net.parameters()]))
    assert said[0].startswith("cost: pretrain=pixels decodes and encodes 4 runs anew in each of 1 epochs: about ")
    assert said[1].startswith("pixels (")
    assert len(said) == 2


def scales(task: QuadTask) -> set[str]:
    return {f"model.scale.{name}" for name in task.model.scale.state_dict()}


def test_the_token_scale_is_fitted_to_the_encoders_as_they_are_then() -> None:
    task, features, before, _ = trained(pretrain_on=["audio"], trained_encoders=["audio"])
    runs = open_runs(tiny())[:4]
    tokens = features.seen_by(task.tops).batch(runs)["audio"].detach()
    torch.testing.assert_close(task.state_dict()["model.scale.audio.mean"].squeeze(), tokens.mean(0), atol=1e-5, rtol=0)
    assert not torch.equal(task.state_dict()["model.scale.audio.mean"], before["model.scale.audio.mean"])


@pytest.mark.parametrize("kind", ["last", pytest.param("frozen", marks=pytest.mark.slow)])
def test_contrast_passes_gradients_into_encoders_that_learn(kind: str) -> None:
    args = tiny(pretrain="simclr", pretrain_epochs=1, batch_size=4, encoder_training=kind, pretrain_on=["audio"])
    features = build_features(args, torch.device("cpu"))
    runs = open_runs(args)[:4]
    features.prepare(runs)
    task = build(args, features)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    pretrain(args, task, features.seen_by(task.tops), runs, make_sampler(args, runs), print)
    moved = {n.split(".")[1] for n, value in task.state_dict().items() if not torch.equal(value, before[n])}
    assert ("audio" in moved) == (kind == "last")
    assert not {"video", "images"} & moved


def test_a_run_stopped_while_it_pretrains_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {**PIXELS, "pretrain_on": ["audio"], "pretrain_epochs": 2, "demo_train": 2, "encoder_lr": 1e-3}
    features = build_features(tiny(**own), torch.device("cpu"))
    steps, reached = [0], []

    def counted(self: Pixels, runs: Any, *, forward: Any = Pixels.forward) -> Tensor:
        steps[0] += 1
        assert {run.split for run in runs} == {"train"}
        if steps[0] == 3:  # after the pass that measures and the first epoch
            raise KeyboardInterrupt
        return cast(Tensor, forward(self, runs))

    def training(*parts: Any) -> None:
        reached.append({name: value.clone() for name, value in parts[3].task.state_dict().items()})
        raise RuntimeError("here the training begins")

    monkeypatch.setattr(train_v4, "loop", training)
    for folder, stopped in (("whole", False), ("again", True), ("again", False)):
        args = tiny(output_dir=str(tmp_path / folder), **own)
        with monkeypatch.context() as patch:
            if stopped:
                patch.setattr(Pixels, "forward", counted)
            with pytest.raises(KeyboardInterrupt if stopped else RuntimeError):
                train_v4.train(args, features=features)
    whole, again = reached
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_only_encoders_that_learn_are_pretrained_on_pixels() -> None:
    with pytest.raises(OptionError, match=r"^pretrain=pixels: has no effect without encoder_training=last\|lora$"):
        Args(pretrain="pixels")
    with pytest.raises(
        OptionError, match=r"^pretrain_on=video audio: pretrain=pixels rebuilds video by an encoder that"
    ):
        Args(**PIXELS, trained_encoders=["audio"], pretrain_on=["video", "audio"])
    with pytest.raises(OptionError, match=r"^pretrain_on=sensors: pretrain=pixels is for encoders; give pretrain=mask"):
        Args(**PIXELS, pretrain_on=["sensors"])
    with pytest.raises(OptionError, match=r"^pretrain_ratio=0.3: has no effect without pretrain=pixels$"):
        Args(pretrain="masked", pretrain_ratio=0.3)
