"""V4 and the baseline ladder through their scripts, at demo scale: the user's commands 28 to 32."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import anomaly_lib
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.scores import summary
from anomaly_lib.engine.checkpoint import load_checkpoint
from anomaly_lib.engine.run import Run
from anomaly_lib.errors import UserError
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld import features as features_module
from anomaly_lib.systems.weld.data.demo import write_weld_demo
from anomaly_lib.systems.weld.data.manifest import CLASSES
from anomaly_lib.systems.weld.inputs import build_features
from anomaly_lib.systems.weld.supcon.options import Args, tiny
from anomaly_lib.systems.weld.supcon.task import open_runs
from anomaly_lib.systems.weld.supcon.train import train
from scripts.weld.studies.options import VARIANTS, LadderArgs
from scripts.weld.studies.study import missing_study

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--demo-train", "3", "--demo-good", "2", "--demo-defects", "2", "--video-frames", "4", "--video-size", "32"]
SMALL += ["--image-size", "32", "--views", "2", "--hidden-dim", "16", "--sensor-dim", "16", "--sensor-layers", "1"]


def script(name):
    spec = importlib.util.spec_from_file_location(f"weld_{name}", ROOT / "scripts" / "weld" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def shell(name, *words, **variables):
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **variables}
    command = ["bash", f"scripts/weld/{name}", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory):
    """Encode the demo runs once for the whole file."""
    before = os.environ.get("ANOMALY_LIB_CACHE")
    os.environ["ANOMALY_LIB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        os.environ.pop("ANOMALY_LIB_CACHE")
    else:
        os.environ["ANOMALY_LIB_CACHE"] = before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v4")
    assert (
        script("train_supcon").main(
            [*SMALL, "--quick-test", "--debug", "--mixed-precision", "--output-dir", str(folder)]
        )
        == 0
    )
    return folder


def test_quick_test_trains_three_epochs_and_describes_the_first_batch(trained):
    log = (trained / "log.txt").read_text()
    for part in ("labels:", "cosine:", "positive pairs", "parameters have a gradient", "batch 1 of epoch 3: loss"):
        assert part in log
    saved = load_checkpoint(trained / "checkpoint.pt", system="weld_supcon")
    assert saved["epoch"] == 3
    assert (saved["args"]["batch_size"], saved["args"]["precision"]) == (4, "bf16")
    assert {"scores.png", "training.png"} <= {path.name for path in trained.iterdir()}
    assert saved["args"]["demo_train"] == 3  # given, so the quick test's own 4 does not count


def test_what_is_given_wins_over_the_quick_test():
    assert (Args(quick_test=True).epochs, Args(quick_test=True).batch_size) == (3, 4)
    assert (Args(quick_test=True, epochs=1).epochs, Args(quick_test=True, k=9).k) == (1, 9)


def test_evaluation_repeats_the_numbers_of_training(trained):
    record = json.loads((trained / "run.json").read_text())["metrics"]
    flags = ["--output-dir", str(trained / "evaluation"), "--bootstrap", "0"]
    out = shell("evaluate.sh", str(trained / "best_model.pth"), *flags)
    assert out.returncode == 0, out.stderr
    assert f"{record['knn_accuracy']:.4f}" in out.stdout


def test_other_neighbours_and_distances(trained, tmp_path, capsys):
    main, record = script("evaluate_knn").main, json.loads((trained / "run.json").read_text())["metrics"]
    best = ["--checkpoint", str(trained / "best_model.pth"), "--output", str(tmp_path / "knn.json")]
    assert main([*best, "--k", "1"]) == 0
    assert json.loads((tmp_path / "knn.json").read_text())["metrics"]["knn_accuracy"] == record["knn_accuracy"]
    assert main([*best, "--k", "3", "--metric", "manhattan", "--split", "val"]) == 0
    assert "confusion" in capsys.readouterr().out
    assert main([]) == 2


def test_missing_modalities_never_break_the_model(trained):
    detector = SYSTEMS.load(trained / "best_model.pth")
    rows = missing_study([detector], open_runs(detector.args))
    assert len(rows) == 15
    assert all(0 <= row["auroc"] <= 1 for row in rows)


@pytest.mark.slow
def test_every_option_of_the_objective_runs_and_resumes(tmp_path):
    flags = [
        *SMALL,
        "--batch-size",
        "12",
        "--mixup",
        "0.2",
        "--queue",
        "24",
        "--accumulate",
        "2",
        "--hard-negatives",
        "0.5",
    ]
    flags += [
        "--reconstruct-weight",
        "0.1",
        "--freeze",
        "heads",
        "--adapters",
        "lora",
        "--missing",
        "embedding",
        "--k",
        "1",
    ]
    flags += ["--activation-checkpointing", "--pretrain", "simclr", "--pretrain-epochs", "1", "--sampler", "balanced"]
    flags += ["--align", "--next-step-weight", "0.1", "--drawn-defects", "1", "--disturb", "0.5", "--augment"]
    main = script("train_supcon").main
    assert main([*flags, "--num-epochs", "1", "--output-dir", str(tmp_path)]) == 0
    before = load_checkpoint(tmp_path / "checkpoint.pt")["model"]
    assert main([*flags, "--num-epochs", "2", "--output-dir", str(tmp_path), "--resume", "latest"]) == 0
    after = load_checkpoint(tmp_path / "checkpoint.pt")["model"]
    frozen = [name for name in before if "attend" in name and ".base." in name]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    moved = [name for name in before if "attend" in name and name.endswith(".up")]
    assert any(not torch.equal(before[name], after[name]) for name in moved)


def test_ladder_fills_one_table_and_never_repeats_a_row(tmp_path, capsys):
    main = script("run_baselines").main
    flags = [
        *SMALL,
        "--baseline-epochs",
        "2",
        "--results",
        str(tmp_path),
        "--num-epochs",
        "1",
        "--k",
        "1",
        "--batch-size",
        "12",
    ]
    assert main([*flags, "--models", "A", "B-sensors", "--seeds", "0"]) == 0
    first = json.loads((tmp_path / "rows.json").read_text())
    assert main([*flags, "--seeds", "0"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[:2] == first
    assert [row["model"] for row in rows] == [
        "A",
        "B-sensors",
        "B-video",
        "B-images",
        "B-audio",
        "B-video-tuned",
        "B-images-tuned",
        "B-audio-tuned",
        "C-late",
        "C-mid",
        "C-mid-frozen",
        "D",
    ]
    assert "gain over A" in capsys.readouterr().out
    assert main([*flags, "--models", "E"]) == 2


def test_extensions_fill_one_table_and_never_repeat_a_row(tmp_path, capsys):
    main = script("run_extensions").main
    flags = [*SMALL, "--results", str(tmp_path), "--num-epochs", "1", "--k", "1", "--batch-size", "12", "--seeds", "0"]
    assert main([*flags, "--variants", "plain"]) == 0
    first = json.loads((tmp_path / "rows.json").read_text())
    assert main([*flags, "--variants", "plain", "lora", "frozen-attention"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[:1] == first
    learnt = {row["variant"]: row["trained_parameters"] for row in rows}
    assert learnt["frozen-attention"] < learnt["lora"] < learnt["plain"]
    assert "k-NN accuracy" in capsys.readouterr().out
    assert main([*flags, "--variants", "magic"]) == 2
    assert main([*flags, "--variants", "mid", "temperature", "grad-cam"]) == 0
    added = json.loads((tmp_path / "rows.json").read_text())[3:]
    assert [row["variant"] for row in added] == ["mid", "temperature", "grad-cam"]  # of the plain model of before
    assert added[1]["image_auroc"] == rows[0]["image_auroc"]
    assert len(list((tmp_path / "of_plain-seed0").glob("*_attention.png"))) == 3


def test_resume_is_bit_exact_with_the_feature_queue(tmp_path, monkeypatch):
    def asked(name):
        return tiny(epochs=3, queue=20, mixup=0.2, output_dir=str(tmp_path / name))

    features = build_features(asked("whole"), torch.device("cpu"))
    train(asked("whole"), features=features)
    calls, original = [], Run.end_epoch

    def broken(*args, **more):
        original(*args, **more)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt("killed")

    monkeypatch.setattr(Run, "end_epoch", broken)
    with pytest.raises(KeyboardInterrupt):
        train(asked("cut"), features=features)
    monkeypatch.undo()
    train(asked("cut"), features=features)
    whole, cut = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    assert len(whole["extra"]["queue"]["labels"]) == 20
    assert len(whole["extra"]["bank"]["classes"]) == 14  # 3 good welds and one of each defect
    whole |= {name: whole["extra"][name] for name in ("queue", "bank")}
    cut |= {name: cut["extra"][name] for name in ("queue", "bank")}
    for key in ("model", "optimizer", "history", "best", "early_stop", "queue", "bank"):
        torch.testing.assert_close(whole[key], cut[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("changes", [
    {"pretrain": "simclr"},
    {"pretrain": "masked", "pretrain_on": ["video", "sensors"]},
    {"pretrain": "pixels", "pretrain_on": ["audio", "sensors"], "encoder_training": "last"},
])  # fmt: skip
def test_a_run_killed_while_it_pre_trains_loses_nothing(changes, tmp_path, monkeypatch):
    """After its first epoch of two, and after its last: before any epoch of the training itself."""

    def asked(name):
        return tiny(epochs=1, pretrain_epochs=2, output_dir=str(tmp_path / name), **changes)

    train(asked("whole"))
    original = Run.save

    def broken(*args, **more):
        original(*args, **more)
        raise KeyboardInterrupt("killed")

    monkeypatch.setattr(Run, "save", broken)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(asked("cut"))
    monkeypatch.undo()
    with pytest.raises(UserError, match="stopped before the first epoch ended; give its command again"):
        anomaly_lib.load(tmp_path / "cut" / "checkpoint.pt")
    train(asked("cut"))
    said = (tmp_path / "cut" / "log.txt").read_text()
    assert said.count("epoch 1: loss") == said.count("epoch 2: loss") == 1  # no epoch was done twice
    whole, cut = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    for key in ("model", "optimizer", "history"):
        torch.testing.assert_close(whole[key], cut[key], rtol=0, atol=0, equal_nan=True)


def test_label_check_counts_and_warns(tmp_path, capsys):
    root = write_weld_demo(tmp_path / "data", train=4, good=1, per_defect=1)
    assert script("check_labels").main([str(root)]) == 0
    text = capsys.readouterr().out
    assert "train has one class" in text
    assert script("check_labels").main([str(tmp_path)]) == 2


@pytest.mark.slow
def test_test_server_script(tmp_path):
    out = shell("test_server.sh", OUTPUT=str(tmp_path / "quick"))
    assert out.returncode == 0, out.stderr
    assert "knn_accuracy" in out.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapters": "lora"}, "adapters=lora: has no effect without freeze=sensor|heads"),
        ({"next_step_weight": 0.1, "sensor_stride": 2}, "sensor_stride=2: next_step_weight predicts every sensor step"),
        ({"pretrain_on": ["audio"]}, "pretrain_on=audio: has no effect without pretrain=simclr|masked|pixels"),
        ({"dataset": "weld"}, "dataset=weld: give data_path="),
        ({"batch_size": 1}, "batch_size=1: contrast needs at least 2 runs"),
        ({"pretrain": "masked", "sensor_stride": 2}, "sensor_stride=2: pretrain=masked predicts every sensor step"),
        ({"loss_type": "supcon", "ce_weight": 0.3}, "ce_weight=0.3: has no effect without loss_type=combined"),
        ({"stop_on": "acuracy"}, "stop_on=acuracy: choose from accuracy, loss; did you mean accuracy?"),
    ],
)
def test_options_without_effect_or_sense_are_refused_where_they_are_made(options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Args(**options)


def test_an_encoder_that_is_not_there_is_named_by_its_option(capsys):
    assert script("train_supcon").main(["--audio-backbone", "tiny-asst"]) == 2
    assert "--audio-backbone tiny-asst: no backbone called 'tiny-asst'" in capsys.readouterr().err


def test_real_data_takes_the_published_sizes_and_built_in_data_tiny_ones():
    real, drawn = Args(data_path="welds", dataset="weld"), Args()
    wanted = {"hidden_dim": 512, "sensor_dim": 256, "sensor_layers": 4, "epochs": 100, "batch_size": 16, "patience": 10}
    wanted |= {"learning_rate": 1e-4, "video_frames": 8, "video_size": 224, "image_size": [224], "audio_frames": 1024}
    wanted |= {"video_backbone": "vjepa2-vitl", "audio_backbone": "ast-14-14", "image_backbone": "dinov2-base"}
    wanted |= {"branches": "12.mean", "layer_index": "block", "video_token_pool": "none", "image_weights": None}
    assert {name: getattr(real, name) for name in wanted} == wanted
    small = {"hidden_dim": 64, "sensor_dim": 32, "sensor_layers": 2, "epochs": 40, "batch_size": 24, "patience": 20}
    small |= {"learning_rate": 1e-3, "video_frames": 8, "video_size": 64, "image_size": [64], "audio_frames": 64}
    small |= {"video_backbone": "tiny-vjepa2", "audio_backbone": "tiny-ast", "image_backbone": "tiny-dinov3"}
    small |= {"branches": "2.mean", "layer_index": "block", "video_token_pool": "none", "image_weights": "random"}
    assert {name: getattr(drawn, name) for name in small} == small
    assert Args(data_path="welds", dummy=True).hidden_dim == 64
    assert Args(data_path="welds", protocol="paper").video_size == 64  # the original's slip


def test_the_ladder_hands_on_the_options_of_v4():
    assert (LadderArgs().demo_train, LadderArgs().audio_width) == (48, 128)
    real = LadderArgs(data_path="welds", k=3)
    assert (real.audio_width, real.baseline_batch, real.of_model().k) == (1024, 32, 3)
    for changes in VARIANTS.values():
        model = LadderArgs().of_model(**changes)
        assert (model.demo_train, model.figures) == (48, False)
        assert all(getattr(model, name) == value for name, value in changes.items())


# ---- options that act


def write_few(folder):
    """Runs of four classes in files: 6 to train on, 4 in each of val and test."""
    root = write_weld_demo(folder, train=3, good=1, per_defect=1, supervised=True)
    head, *rows = (root / "manifest.csv").read_text().splitlines()
    kept = [row for row in rows if row.split(",")[0] in CLASSES[:4]]
    (root / "manifest.csv").write_text("\n".join([head, *kept]) + "\n")
    return root


def test_runs_without_a_test_split_are_refused_before_the_epochs(tmp_path):
    """They used to be missed at the end, when all was trained."""
    root = write_few(tmp_path / "welds")
    manifest = root / "manifest.csv"
    manifest.write_text("\n".join(row for row in manifest.read_text().splitlines() if not row.endswith("TEST")) + "\n")
    from anomaly_lib.systems.weld.video_ae.options import Args as VideoArgs

    tiny_video = {"backbone": "tiny-dinov2", "weights": "random", "video_frames": 2, "video_size": 28}
    for name, args in (
        ("v4", Args(**few(root), output_dir=str(tmp_path / "v4"))),
        ("ae", VideoArgs(data_path=str(root), **tiny_video, epochs=1, output_dir=str(tmp_path / "ae"))),
    ):
        with pytest.raises(UserError, match="no runs in the test split"):
            SYSTEMS["weld_supcon" if name == "v4" else "video_ae"].train(args)
        assert not (tmp_path / name / "metrics.jsonl").exists()


def few(root):
    """Options of a small V4 for `write_few`."""
    options = {"data_path": str(root), "dummy": True, "hidden_dim": 16, "sensor_dim": 16, "sensor_layers": 1, "k": 1}
    options |= {"epochs": 2, "batch_size": 6, "figures": False, "video_frames": 2, "video_size": 32, "views": 1}
    return options | {"image_size": [32]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What one epoch of tiny() with the cache off learns."""
    result = train(tiny(epochs=1, cache="off", output_dir=str(tmp_path_factory.mktemp("plain"))))
    return load_checkpoint(result.checkpoint)["model"]


def test_augment_changes_what_is_learnt_and_workers_change_nothing(plain, tmp_path):
    changed = load_checkpoint(
        train(tiny(epochs=1, cache="off", augment=True, output_dir=str(tmp_path / "augment"))).checkpoint
    )["model"]
    name = "model.fusion.project.images.weight"
    assert not torch.equal(plain[name], changed[name])
    assert torch.equal(plain["model.scale.images.mean"], changed["model.scale.images.mean"])  # never of augmented runs
    threads = []
    original = features_module.ThreadPoolExecutor

    def counted(count):
        threads.append(count)
        return original(count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_module, "ThreadPoolExecutor", counted)
        same = load_checkpoint(
            train(tiny(epochs=1, cache="off", num_workers=2, output_dir=str(tmp_path / "workers"))).checkpoint
        )["model"]
    assert set(threads) == {2}
    assert all(torch.equal(plain[key], same[key]) for key in plain)


def test_unreadable_runs_stop_the_training_or_are_left_out(tmp_path):
    root = write_few(tmp_path / "data")
    broken = sorted(root.glob("good_train/*/*.avi"))[0]
    broken.write_bytes(b"no video")
    options = few(root) | {"epochs": 1}
    with pytest.raises(UserError, match=broken.name):
        train(Args(**options, output_dir=str(tmp_path / "fail")))
    result = train(Args(**options, on_error="skip", output_dir=str(tmp_path / "skip")))
    skipped = json.loads((result.run_dir / "run.json").read_text())["skipped"]
    assert [Path(one["path"]) for one in skipped] == [broken.parent]
    assert len(load_checkpoint(result.checkpoint)["extra"]["bank"]["classes"]) == 5


# ---- the detector


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """Runs in files, a V4 trained on them, and its detector."""
    folder = tmp_path_factory.mktemp("welds")
    root = write_few(folder / "data")
    result = train(Args(**few(root), output_dir=str(folder / "run")))
    return root, result, SYSTEMS.load(result.checkpoint)


def test_predict_takes_run_folders_and_answers_the_score_of_the_protocol(on_disk):
    _, _, detector = on_disk
    selection = detector.items()
    scores = detector.score(selection)
    folders = [run.folder for run in selection.items[:4]]
    found = detector.predict(folders)
    torch.testing.assert_close(found.score, torch.tensor(scores.scores[:4]), rtol=0, atol=1e-5)
    one = detector.predict(str(folders[0]))
    torch.testing.assert_close(one.score, found.score[:1], rtol=0, atol=1e-5)
    torch.testing.assert_close(detector.predict(selection.items[0]).score, one.score)
    chances = torch.stack([part for name, part in found.parts.items() if name.startswith("class ")])
    torch.testing.assert_close(chances.sum(0), torch.ones(4))
    assert found.parts["head"].shape == (4,)


def test_a_trained_detector_needs_no_training_data_to_predict(on_disk, tmp_path):
    root, _, detector = on_disk
    folder = detector.items().items[0].folder
    alone = tmp_path / folder.name
    shutil.copytree(folder, alone)
    moved = root.with_name("moved")
    root.rename(moved)
    try:
        wanted = detector.predict(alone).score
        with pytest.raises(UserError, match="no manifest"):
            detector.items()
    finally:
        moved.rename(root)
    torch.testing.assert_close(detector.predict(folder).score, wanted)


def test_other_data_are_judged_against_their_own_training_split(on_disk):
    root, result, detector = on_disk
    assert not list(result.run_dir.glob("*.png"))  # figures=False
    own = summary(detector.score(detector.items()), detector.decision)
    assert own == {name: pytest.approx(value, abs=1e-6) for name, value in result.metrics.items()}
    others = detector.items(Choice(data_path=str(root)))
    assert detector.decision is not None
    assert detector.decision_for(others) is None  # made with the training runs as bank
    scores = detector.score(others)
    assert "no decision: the stored one is for the training runs that the detector keeps" in scores.notes
    again = summary(scores, detector.decision)
    assert again == {name: pytest.approx(value, abs=1e-6) for name, value in own.items()}
    seen = detector.score(detector.items(Choice(split="train")))
    assert seen.own["knn_accuracy"] == 1.0  # k = 1: every training run finds itself
    with pytest.raises(ValueError, match="obj=x: has no meaning"):
        detector.items(Choice(obj="x"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("nowhere", "nowhere: no such folder"), ([], "no runs"), (3, "cannot score int"), ([None], "NoneType")],
)
def test_wrong_inputs_are_told_what_was_expected(on_disk, wrong, said):
    with pytest.raises(UserError, match=said) as refused:
        on_disk[2].predict(wrong)
    assert "give a run folder" in str(refused.value)


def test_a_run_without_any_recording_is_refused(on_disk, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no video, sound, sensor table or photo"):
        on_disk[2].predict(tmp_path / "empty")


def test_averaged_parameters_are_refused(on_disk):
    with pytest.raises(UserError, match="ema"):
        SYSTEMS.load(on_disk[1].checkpoint, which="ema")
