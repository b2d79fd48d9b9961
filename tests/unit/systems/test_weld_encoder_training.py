"""Encoders whose last blocks learn: what learns, what is stored, and that nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import anomaly_lib
from anomaly_lib.backbones import create_backbone
from anomaly_lib.config import OptionError
from anomaly_lib.engine.checkpoint import load_checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.systems.weld.causal_film import options as film
from anomaly_lib.systems.weld.causal_film.task import build as build_film
from anomaly_lib.systems.weld.causal_film.train import make_learner
from anomaly_lib.systems.weld.causal_film.train import train as train_film
from anomaly_lib.systems.weld.costs import learning_words
from anomaly_lib.systems.weld.data.runs import WeldDataset
from anomaly_lib.systems.weld.encoders import WeldEncoders
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.inputs import build_features
from anomaly_lib.systems.weld.supcon import options as quad
from anomaly_lib.systems.weld.supcon.task import QuadTask, build, classes_of, objective, open_runs, quad_batch
from anomaly_lib.systems.weld.supcon.train import Learner, train

CPU = torch.device("cpu")


def made(**changes: Any) -> tuple[quad.Args, WeldFeatures, QuadTask]:
    args = quad.tiny(dropout=0.0, modality_dropout=0.0, **changes)
    features = build_features(args, CPU)
    features.prepare(open_runs(args)[:4])
    torch.manual_seed(0)
    return args, features, build(args, features)


def tokens(features: WeldFeatures, args: quad.Args) -> dict[str, Tensor]:
    return quad_batch(features, open_runs(args)[:4])


def one_step(args: quad.Args, features: WeldFeatures, task: QuadTask) -> dict[str, Tensor]:
    """The parameters after a step of the options' own optimiser, at a rate that moves them."""
    learner = Learner.of(args, task, CPU)
    runs = open_runs(args)[:4]
    objective(args, task, quad_batch(features.seen_by(task.tops), runs, training=True), classes_of(runs), None)[
        "loss"
    ].backward()
    for group in learner.optimizer.param_groups:
        group["lr"] = 1e-3
    learner.optimizer.step()
    return {name: p.detach() for name, p in task.named_parameters()}


@pytest.mark.parametrize("pool", ["none", "spatial"])
@pytest.mark.parametrize(("kind", "blocks"), [("last", 1), ("last", 2), ("lora", 1)])
def test_the_first_step_starts_from_the_frozen_tokens(kind: str, blocks: int, pool: str) -> None:
    own = {"branches": "1.mean,1.gem,2.mean", "video_token_pool": pool}
    args, features, _ = made(**own)
    want = tokens(features, args)
    args, features, task = made(encoder_training=kind, encoder_blocks=blocks, **own)
    found = tokens(features.seen_by(task.tops), args)
    for name, tensor in want.items():
        assert torch.equal(found[name], tensor), name
    assert found["video"].requires_grad
    assert not tokens(features, args)["video"].requires_grad  # without a model of their own: as they were published


def test_last_blocks_learn_and_nothing_else_of_an_encoder() -> None:
    args, features, task = made(encoder_training="last")
    before = {name: p.clone() for name, p in task.named_parameters()}
    low = [p.clone() for net in (features.encoders.video, features.encoders.image) for p in net.parameters()]
    after = one_step(args, features, task)
    assert task.tops is not None
    for part in ("video", "images", "audio"):
        moved = [not torch.equal(before[n], p) for n, p in after.items() if n.startswith(f"tops.{part}.")]
        assert sum(moved) > 0.9 * len(moved) > 0  # a key's bias has no gradient
    assert {n.split(".")[2] for n in after if n.startswith("tops.")} == {"blocks", "norm"}
    assert {n.split(".")[3] for n in after if ".blocks." in n and n.startswith("tops.")} == {"0"}
    assert "tops.images.norm.weight" not in after  # no output of a block passes it
    assert all(map(torch.equal, low, [p for n in (features.encoders.video, features.encoders.image) for p in n.parameters()]))  # fmt: skip  # noqa: E501
    again = build(args, features)  # another model on the same features starts anew
    assert torch.equal(again.state_dict()["tops.video.norm.weight"], before["tops.video.norm.weight"])


def test_lora_learns_queries_and_values_alone() -> None:
    args, features, task = made(
        encoder_training="lora", encoder_rank=3, trained_encoders=["video", "audio"], weight_decay=0.0
    )
    before = {name: p.clone() for name, p in task.named_parameters()}
    assert task.tops is not None
    assert list(task.tops) == ["video", "audio"]
    learning = {n for n, p in task.tops.named_parameters() if p.requires_grad}
    ends = {tuple(name.rsplit(".", 2)[1:]) for name in learning}
    assert ends == {(layer, half) for layer in ("q_proj", "v_proj", "query", "value") for half in ("down", "up")} & ends
    assert len(learning) == 8
    assert all(not before[f"tops.{n}"].any() for n in learning if n.endswith("up"))
    after = one_step(args, features, task)
    moved = {n for n, p in after.items() if n.startswith("tops.") and not torch.equal(p, before[n])}
    assert moved == {f"tops.{n}" for n in learning if n.endswith("up")}  # `down` follows once `up` is not zero


def test_alpha_scales_what_lora_adds() -> None:
    found = []
    for alpha in (4.0, 8.0):
        args, features, task = made(encoder_training="lora", encoder_rank=2, encoder_alpha=alpha)
        assert task.tops is not None
        for name, parameter in task.tops.named_parameters():
            if name.endswith("up"):
                torch.nn.init.constant_(parameter, 1e-4)
        found.append(tokens(features.seen_by(task.tops), args)["audio"].detach())
    base = tokens(features, args)["audio"]
    once, twice = found[0] - base, found[1] - base
    assert float((twice - 2 * once).norm()) < 0.02 * float(twice.norm())


def test_encoders_have_a_rate_of_their_own() -> None:
    args, _, task = made(encoder_training="last", encoder_lr=1e-7, learning_rate=1e-3)
    groups = Learner.of(args, task, CPU).optimizer.param_groups
    mine = {id(p) for p in task.tops.parameters()} if task.tops else set()
    for group in groups:
        inside = {id(p) in mine for p in group["params"]}
        assert len(inside) == 1
        assert group["initial_lr"] == (1e-7 if inside == {True} else 1e-3)
    assert sum(len(group["params"]) for group in groups if id(group["params"][0]) in mine) == len(mine)
    args, _, task = made()
    assert {group["initial_lr"] for group in Learner.of(args, task, CPU).optimizer.param_groups} == {1e-3}
    asked = film.tiny(encoder_training="last")
    learner = make_learner(asked, build_film(asked, build_features(asked, CPU), text=None), CPU)
    assert {group["initial_lr"] for group in learner.optimizer.param_groups} == {3e-3, 1e-4}


def test_the_store_keeps_the_states_below_and_does_not_encode_again(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = build_features(film.tiny(), CPU)
    args = film.tiny(encoder_training="last", target_mode="joint")
    features = build_features(args, CPU)
    deeper = build_features(film.tiny(encoder_training="last", target_mode="joint", encoder_blocks=2), CPU)
    lora = build_features(film.tiny(encoder_training="lora", target_mode="joint"), CPU)
    for part in features.stores:
        keys = [one.stores[part].spec.key for one in (frozen, features, deeper)]
        assert len(set(keys)) == 3  # never read for one another
        assert lora.stores[part].spec.key == keys[1]  # the same states
    assert features.stores["images"].spec.outputs == ("branch0", "branch1", "state", "views")  # of block 1: below
    assert deeper.stores["images"].spec.outputs == ("state", "views")
    runs = open_runs(quad.tiny())[:3]
    features.prepare(runs)
    layout = features.stores["video"].layout
    assert layout is not None
    assert layout.field("video").shape == (4, 32)  # not pooled over space: what pools stands above
    first = features.batch(runs)
    for part in features.encode_part:
        monkeypatch.setitem(features.encode_part, part, lambda _: pytest.fail("encoded again"))
    features.prepare(runs)
    assert torch.equal(features.batch(runs)["video"], first["video"])


@pytest.mark.parametrize("kind", ["lora", pytest.param("last", marks=pytest.mark.slow)])
def test_v4_goes_on_bit_for_bit_and_its_file_is_enough(kind: str, tmp_path: Path) -> None:
    own = {"encoder_training": kind, "demo_train": 2, "encoder_lr": 1e-3, "warmup_epochs": 0}
    whole = train(quad.tiny(epochs=2, output_dir=str(tmp_path / "whole"), **own))
    half = train(quad.tiny(epochs=1, output_dir=str(tmp_path / "half"), **own))
    begun = load_checkpoint(half.run_dir / "checkpoint.pt")["model"]
    on = train(quad.Args(resume=str(half.run_dir / "checkpoint.pt"), epochs=2, output_dir=str(tmp_path / "on")))
    found, want = (load_checkpoint(run.run_dir / "checkpoint.pt") for run in (on, whole))
    tops = [name for name in want["model"] if name.startswith("tops.")]
    assert tops
    assert any(not torch.equal(want["model"][name], begun[name]) for name in tops)
    for name, tensor in want["model"].items():
        assert torch.equal(found["model"][name], tensor), name
    detector = anomaly_lib.load(on.run_dir / "checkpoint.pt")
    assert torch.equal(detector.task.state_dict()[tops[0]], want["model"][tops[0]])
    runs = open_runs(detector.args)[:2]
    said = detector.encode(runs)["logits"]
    with torch.no_grad():
        torch.testing.assert_close(said, detector.task.model(quad_batch(detector.features, runs))["logits"])
        raw = [WeldDataset(runs, detector.args)[i] for i in range(2)]
        keys = {"video": "video", "images": "post_weld_images", "audio": "audio", "sensors": "sensor", "views": "views"}
        given = {name: torch.stack([one[key] for one in raw]) for name, key in keys.items()}
        torch.testing.assert_close(said, detector.inspector()(given)["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["stopgrad", "ema_target"])
def test_v5_trains_averages_and_scores_with_its_own_blocks(mode: str, tmp_path: Path) -> None:
    args = film.tiny(
        encoder_training="last", target_mode=mode, encoder_recompute=True, demo_train=4, warmup_epochs=0,
        encoder_lr=1e-2, output_dir=str(tmp_path / mode),
    )  # fmt: skip
    done = train_film(args)
    assert done.checkpoint is not None
    content = load_checkpoint(done.checkpoint)
    averaged = content["ema"]["shadow"]
    mine = [name for name in averaged if name.startswith("tops.")]
    assert {name.split(".")[1] for name in mine} == {"video", "audio", *(["images"] * (mode != "stopgrad"))}
    assert any(not torch.equal(averaged[name], content["model"][name]) for name in mine)
    assert not any(name.startswith("tops.") for name in content["model_state_dict"])  # the document's names
    detector = anomaly_lib.load(done.checkpoint)
    assert torch.equal(detector.task.state_dict()[mine[0]], averaged[mine[0]])
    assert torch.equal(detector.raw.state_dict()[mine[0]], content["model"][mine[0]])
    runs = open_runs(quad.tiny())[:2]
    found = detector.score_runs(runs)
    with torch.no_grad():
        by_hand = detector.task.score(detector.task.model(detector.features.batch(runs)))
    torch.testing.assert_close(found, by_hand)
    log = (done.run_dir / "log.txt").read_text()
    assert "video: the last 1 of 2 blocks of tiny-vjepa2 learn: 8,608 parameters receive gradients at 0.01" in log
    learning = sum(p.numel() for p in detector.task.parameters())
    fixed = sum(p.numel() for p in detector.task.fixed.parameters()) if detector.task.fixed else 0
    assert f"{learning - fixed:,} receive gradients" in log


def test_costs_of_learning_are_said() -> None:
    args, features, task = made(encoder_training="last", trained_encoders=["images"])
    (line,) = learning_words(args, features, task.tops, batch_size=10)
    # a step keeps 16 values for each of 10 welds x 1 photo x 9 tokens x 32 channels
    assert line == (
        "images: the last 1 of 2 blocks of tiny-dinov3 learn: 8,576 parameters receive gradients at 0.0001; with their "
        "optimiser 137 kB, activations of a batch about 184 kB"
    )
    args.encoder_recompute = True
    assert learning_words(args, features, None, batch_size=10) == []


def test_what_has_no_effect_is_refused_in_one_line() -> None:
    with pytest.raises(OptionError, match=r"^encoder_blocks=2: has no effect without encoder_training=last\|lora$"):
        quad.Args(encoder_blocks=2)
    with pytest.raises(OptionError, match=r"^encoder_rank=4: has no effect without encoder_training=lora$"):
        quad.Args(encoder_training="last", encoder_rank=4)
    with pytest.raises(OptionError, match=r"^trained_encoders=images: no gradient reaches the photos"):
        film.Args(encoder_training="last", trained_encoders=["images"])
    assert film.Args(encoder_training="last").learning() == ["video", "audio"]
    assert film.Args(encoder_training="last", preset="doc").learning() == ["video", "images", "audio"]
    with pytest.raises(UserError, match=r"^video_backbone=tiny-vjepa2: encoder_blocks=3: it runs 2 blocks"):
        build_features(quad.tiny(encoder_training="last", encoder_blocks=3), CPU)
    with pytest.raises(UserError, match=r"^image_backbone=tiny-clip: its blocks cannot be trained"):
        build_features(
            quad.tiny(
                image_backbone="tiny-clip", image_weights="random", image_size=[64], branches="2.mean", patch_only=True,
                encoder_training="lora", trained_encoders=["images"],
            ),
            CPU,
        )  # fmt: skip


def test_without_a_store_every_batch_passes_the_learning_blocks() -> None:
    args, features, task = made(encoder_training="last", cache="off")
    found = tokens(features.seen_by(task.tops), args)
    assert found["audio"].requires_grad
    want = tokens(made()[1], args)
    for name in ("video", "images", "audio"):
        torch.testing.assert_close(found[name], want[name])


def test_frozen_is_the_default_and_published_encoders_learn_slowly() -> None:
    audio = create_backbone("tiny-ast", weights="random", layers=["tokens"])
    assert WeldEncoders(audio, audio, audio, quad.tiny()).learning_copy(quad.tiny()) is None
    assert quad.Args(encoder_training="lora", data_path="x", dataset="weld").encoder_lr == 1e-6
