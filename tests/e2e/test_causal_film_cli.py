"""The weld commands of the user's document at tiny scale: train, resume, W&B offline, evaluate, cache on and off."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import train_causal_film
from anomaly_lib.detect.choice import Choice
from anomaly_lib.engine.run import Run
from anomaly_lib.errors import UserError
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld.causal_film.detector import CausalFiLMDetector, load
from anomaly_lib.systems.weld.causal_film.options import Args, tiny
from anomaly_lib.systems.weld.causal_film.train import train

ROOT = Path(__file__).resolve().parents[2]
FEW = ["--demo-train", "8", "--demo-good", "2", "--demo-defects", "1"]
TINY = ["--d-model", "16", "--sensor-hidden", "16", "--video-frames", "2", "--image-size", "32", "--views", "2"]
TINY += ["--audio-frames", "32", "--video-size", "32"]
PLAIN = "--no-figures"


def command(*words: str) -> int:
    return train_causal_film.main([*TINY, *([] if "--data-path" in words else [*FEW, PLAIN]), *words])


def tiny_args(folder: Path, **changes: object) -> Args:
    return tiny(output_dir=str(folder), **{"epochs": 3, **changes})


def detector_of(path: Path, **more: object) -> CausalFiLMDetector:
    return load(SYSTEMS.read(path), **more)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(tiny_args(folder))
    return folder


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or a != a


def test_checkpoint_has_the_documented_names(reference: Path) -> None:
    saved = torch.load(reference / "best_model.pth", weights_only=True)
    assert {"model_state_dict", "ema_state_dict", "optimizer", "scheduler", "early_stop", "rng", "best"} <= saved.keys()
    detector = detector_of(reference / "best_model.pth")
    assert same(dict(detector.task.model.state_dict()), saved["ema_state_dict"])
    raw = detector_of(reference / "best_model.pth", which="raw", features=detector.features)
    assert same(dict(raw.task.model.state_dict()), saved["model_state_dict"])
    assert not same(saved["model_state_dict"], saved["ema_state_dict"])
    assert saved["model"].keys() == detector.task.state_dict().keys()  # frozen encoders stay outside


@pytest.mark.parametrize("moment", ["end_epoch", "save"])
def test_resume_is_bit_exact_with_averages_and_counters(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder = tmp_path / "run"
    calls = []

    def broken(*args: object, **more: object) -> None:
        calls.append(1)
        result = original(*args, **more)
        if len(calls) == (2 if moment == "end_epoch" else 1):
            raise KeyboardInterrupt("killed")
        return result

    original = getattr(Run, moment)
    monkeypatch.setattr(Run, moment, broken)  # the first file that is saved is the checkpoint of the warm-up's epoch
    with pytest.raises(KeyboardInterrupt):
        train(tiny_args(folder))
    monkeypatch.undo()
    assert len(rows(folder)) == (2 if moment == "end_epoch" else 1)
    train(tiny_args(folder))
    for name in ("checkpoint.pt", "best_model.pth"):
        whole = torch.load(reference / name, weights_only=True)
        again = torch.load(folder / name, weights_only=True)
        for key in ("model", "ema", "optimizer", "scheduler", "early_stop", "best", "history", "rng", "epoch"):
            assert same(whole[key], again[key]), f"{name}: {key}"


def test_a_finished_run_is_reported_not_repeated_and_resume_continues_it(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (reference / "checkpoint.pt").stat().st_mtime_ns
    train(tiny_args(reference))
    assert "already done" in capsys.readouterr().out
    assert (reference / "checkpoint.pt").stat().st_mtime_ns == before
    best = str(reference / "best_model.pth")
    out = tmp_path / "on"
    assert command("--epochs", "4", "--patience", "0", "--resume", best, "--output-dir", str(out)) == 0
    assert [row["epoch"] for row in rows(out)] == [0, 1, 2, 3]
    assert rows(out)[3]["lr"] < rows(out)[2]["lr"]
    new = ["--learning-rate", "1e-4", "--weight-decay", "0.5"]
    assert command("--epochs", "4", "--resume", best, "--output-dir", str(tmp_path / "new"), *new) == 0
    assert rows(tmp_path / "new")[3]["lr"] == pytest.approx(rows(out)[3]["lr"] * 1e-4 / 3e-3, rel=0.05)
    decays = {g["weight_decay"] for g in torch.load(tmp_path / "new" / "checkpoint.pt")["optimizer"]["param_groups"]}
    assert decays == {0.0, 0.5}
    assert command("--epochs", "4", "--resume", str(tmp_path / "none.pth"), "--output-dir", str(tmp_path / "x")) == 2
    assert "there is no" in capsys.readouterr().err


def test_wandb_is_offline_safe_and_its_id_travels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fake:
        id = "abc123"
        logged: ClassVar[list] = []
        asked: ClassVar[dict] = {}

        def init(self, **settings: object) -> "Fake":
            Fake.asked = settings
            return self

        def log(self, values: dict) -> None:
            self.logged.append(values)

        def finish(self) -> None: ...

    monkeypatch.setitem(sys.modules, "wandb", Fake())
    flags = ["--wandb", "--wandb_project", "weld-anomaly-detection", "--wandb_name", "causal_film_v1"]
    assert command("--epochs", "1", *flags, "--output-dir", str(tmp_path)) == 0
    assert Fake.asked["mode"] == "offline"
    assert Fake.asked["id"] is None
    assert "val_auroc" in Fake.logged[0]
    resume = ["--resume", str(tmp_path / "best_model.pth"), "--output-dir", str(tmp_path / "b")]
    assert command("--epochs", "2", *resume, *flags) == 0
    text = capsys.readouterr().out
    assert Fake.asked["id"] == "abc123"
    assert Fake.asked["resume"] == "allow"
    for message in ("abc123 read from the checkpoint", "resuming run abc123", "initialised run abc123"):
        assert message in text


def test_cache_on_and_off_give_the_same_run(reference: Path, tmp_path: Path) -> None:
    train(tiny_args(tmp_path, epochs=3, cache="off"))
    for a, b in zip(rows(reference), rows(tmp_path), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["val_auroc"] == b["val_auroc"]


def test_options_follow_from_data_preset_and_protocol() -> None:
    full = Args(data_path="somewhere")
    assert (full.learning_rate, full.weight_decay, full.warmup_epochs, full.epochs) == (2e-5, 1e-2, 8, 100)
    assert (full.batch_size, full.grad_clip, full.patience, full.ema_decay) == (32, 0.5, 20, 0.9999)
    assert (full.d_model, full.video_size, full.image_backbone) == (512, 224, "dinov3-vith16plus")
    assert (full.target_mode, full.branches, full.lambda_l1) == ("stopgrad", "best", 1.0)
    paper = Args(data_path="x", protocol="paper")
    assert (paper.target_mode, paper.video_size, paper.legacy_video, paper.decoder_activation) == (
        "joint", 64, True, "silu",
    )  # fmt: skip
    assert Args(data_path="x", protocol="paper", legacy_video=False).legacy_video is False
    assert Args(data_path="x", learning_rate=3e-5).learning_rate == 3e-5


def test_tiny_encoders_stand_in_for_those_that_are_not_named() -> None:
    built_in = Args()
    assert (built_in.video_backbone, built_in.image_backbone, built_in.image_weights) == (
        "tiny-vjepa2", "tiny-dinov3", "random",
    )  # fmt: skip
    assert (built_in.d_model, built_in.learning_rate, built_in.image_size, built_in.branches) == (
        64, 3e-3, [96], "1.mean,1.gem,2.mean",
    )  # fmt: skip
    own = Args(image_weights="folder")  # a weight file given: the published encoder, at its size
    assert (own.image_backbone, own.image_size, own.branches) == ("dinov3-vith16plus", [224], "best")
    assert (own.video_backbone, own.audio_backbone) == ("tiny-vjepa2", "tiny-ast")
    assert Args(data_path="x", dummy=True, preset="stage1").image_backbone == "tiny-dinov3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "weld"}, "give data_path="),
        ({"branches": "21.median"}, "branches=21.median: write LAYER.POOL"),
        ({"image_size": [1, 2, 3]}, "image_size=1"),
        ({"legacy_frame_64": True, "video_size": 32}, "video_size=32: legacy_frame_64=True means 64"),
        ({"data_path": "x", "demo_train": 3}, "demo_train=3: has no effect without data_path=None"),
        ({"lambda_text": 0.1}, "lambda_text=0.1: has no effect without text_vector"),
        ({"target_mode": "ema_target", "ema_decay": 0.0}, "target_mode=ema_target"),
        ({"d_model": 18}, "process_heads=4: does not divide d_model=18"),
        ({"preset": "bset"}, "did you mean best"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused_where_they_are_made(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Args(**options)


@pytest.mark.parametrize(
    "words",
    [
        ["--protocol", "paper", "--audio-norm", "db"],
        ["--target-mode", "ema_target", "--sensor-norm", "train", "--video-token-pool", "none", "--patch-only"],
        ["--augment", "--disturb", "0.5", "--video-norm", "imagenet", "--frame-select", "active"],
    ],
    ids=["paper", "ema-target", "augment"],
)
def test_other_paths_train(words: list[str], tmp_path: Path) -> None:
    assert command("--epochs", "1", *words, "--output-dir", str(tmp_path)) == 0
    assert torch.isfinite(torch.tensor(rows(tmp_path)[0]["loss"]))


def test_files_give_a_run_too_and_mistakes_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from anomaly_lib.systems.weld.data.demo import write_weld_demo

    data = write_weld_demo(tmp_path / "data", train=8, good=2, per_defect=1)
    flags = ["--data-path", str(data), "--dummy", "--epochs", "1", "--output-dir", str(tmp_path / "run")]
    assert command(*flags) == 0
    assert (tmp_path / "run" / "defects.png").stat().st_size > 1000
    assert (tmp_path / "run" / "training.png").is_file()
    damaged = next(data.glob("overlap_val/*/*.flac"))
    damaged.write_bytes(b"no sound")
    assert command(*flags[:-1], str(tmp_path / "fails")) == 2
    assert damaged.name in capsys.readouterr().err
    assert command(*flags[:-1], str(tmp_path / "skips"), "--on-error", "skip") == 0
    skipped = tmp_path / "skips" / "run.json"
    assert [Path(one["path"]).name for one in json.loads(skipped.read_text())["skipped"]] == [damaged.parent.name]
    assert command("--data-path", str(tmp_path / "nowhere")) == 2
    assert "no manifest.csv" in capsys.readouterr().err
    assert command("--data-path", str(data), "--output-dir", str(tmp_path / "full")) == 2
    assert "vjepa2" in (message := capsys.readouterr().err)
    assert "give --video-weights FILE" in message
    assert command("--learning-rat", "1") == 2


def test_video_ae_and_late_fusion(reference: Path, tmp_path: Path) -> None:
    from anomaly_lib.systems.weld.late_fusion import evaluate_fusion
    from anomaly_lib.systems.weld.video_ae import options as video_ae

    small = {"demo_train": 16, "demo_good": 4, "demo_defects": 1}
    result = SYSTEMS["video_ae"].train(video_ae.Args(epochs=3, output_dir=str(tmp_path / "ae"), **small))
    losses = [row["loss"] for row in rows(tmp_path / "ae")]
    assert losses[-1] < losses[0]
    assert SYSTEMS.load(result.checkpoint).args.layer == 2
    asked = video_ae.FusionArgs(
        causal_checkpoint=str(reference / "best_model.pth"), video_checkpoint=str(result.checkpoint)
    )
    fused = evaluate_fusion(asked, SYSTEMS.load)
    a, b, both = (torch.tensor(fused.scores[name]) for name in ("causal_film", "video_ae", "fusion"))
    torch.testing.assert_close(a + b, both)
    open_look = evaluate_fusion(dataclasses.replace(asked, statistics="transductive"), SYSTEMS.load)
    z = torch.tensor(open_look.scores["causal_film"])
    assert z.mean().item() == pytest.approx(0, abs=1e-5)
    assert open_look.metrics["causal_film_auroc"] == fused.metrics["causal_film_auroc"]
    other = evaluate_fusion(dataclasses.replace(asked, score_kind="mean_abs"), SYSTEMS.load)
    assert other.scores["causal_film"] != fused.scores["causal_film"]
    assert other.scores["video_ae"] == fused.scores["video_ae"]
    with pytest.raises(UserError, match=r"video_checkpoint=.*none\.pt: no such checkpoint"):
        evaluate_fusion(dataclasses.replace(asked, video_checkpoint=str(tmp_path / "none.pt")), SYSTEMS.load)


def test_video_ae_leaves_out_runs_without_video_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from anomaly_lib.systems.weld.data.demo import write_weld_demo
    from scripts.weld import train_video_ae

    data = write_weld_demo(tmp_path / "data", train=8, good=2, per_defect=1)
    lost = next(data.glob("overlap_test/*/*.avi"))
    lost.unlink()
    flags = ["--data-path", str(data), "--backbone", "tiny-dinov2", "--video-frames", "2", "--video-size", "28"]
    flags += ["--epochs", "1", "--output-dir"]
    assert train_video_ae.main([*flags, str(tmp_path / "fails")]) == 2
    assert f"{lost.parent}: this run has no video; give --on-error skip" in capsys.readouterr().err
    assert train_video_ae.main([*flags, str(tmp_path / "skips"), "--on-error", "skip"]) == 0
    record = json.loads((tmp_path / "skips" / "run.json").read_text())
    assert [one["path"] for one in record["skipped"]] == [str(lost.parent)]
    detector = SYSTEMS.load(tmp_path / "skips" / "best_model.pt")
    with pytest.raises(UserError, match="has no video"):
        detector.score(detector.items())
    scores = detector.score(detector.items(Choice(on_error="skip")))
    assert len(scores) == 12
    assert lost.parent.as_posix() not in scores.paths
    assert scores.notes == [f"skipped {lost.parent}: {lost.parent}: this run has no video; give on_error=skip to leave such runs out"]  # fmt: skip  # noqa: E501


def test_video_ae_is_a_system_like_the_others(tmp_path: Path) -> None:
    import evaluate as evaluate_script

    result = SYSTEMS["video_ae"].train(SYSTEMS["video_ae"].tiny(output_dir=str(tmp_path / "ae")))
    words = ["--checkpoint", str(result.checkpoint), "--output", str(tmp_path / "out"), "--no-figures"]
    assert evaluate_script.main([*words, "--bootstrap", "0"]) == 0
    measured = json.loads((tmp_path / "out" / "metrics.json").read_text())["runs"][0]["metrics"]
    assert measured == result.metrics


def test_run_folders_are_scored_one_or_many(tmp_path: Path) -> None:
    from anomaly_lib.systems.weld.data.demo import weld_demo_runs, write_weld_demo
    from anomaly_lib.systems.weld.data.manifest import read_manifest

    data = write_weld_demo(tmp_path / "data", train=8, good=2, per_defect=1)
    small = {name: value for name, value in vars(tiny()).items() if not name.startswith(("demo", "dummy", "text_"))}
    detectors = [
        SYSTEMS.load(train(Args(**{**small, "data_path": str(data), "output_dir": str(tmp_path / "v5")})).checkpoint),
        SYSTEMS.load(SYSTEMS["video_ae"].train(SYSTEMS["video_ae"].tiny(output_dir=str(tmp_path / "ae"))).checkpoint),
    ]
    runs = read_manifest(data)[:2]
    for detector in detectors:
        both = detector.predict([str(run.folder) for run in runs])
        assert both.score.shape == (2,)
        assert torch.equal(detector.predict(runs).score, both.score)
        one = detector.predict(runs[1].folder)
        torch.testing.assert_close(one.score, both.score[1:])
        torch.testing.assert_close(detector.predict(runs[1]).score, one.score)
        assert detector.predict(weld_demo_runs(train=1, good=1, per_defect=1)[:1]).score.isfinite().all()
        with pytest.raises(UserError, match="no such folder; give a run folder"):
            detector.predict(str(tmp_path / "nowhere"))
    assert set(detectors[0].predict(runs).parts) == {
        "cosine", "l1", "process", "result", "video", "audio", "sensors", "images",
        "attention.audio", "attention.video", "attention.view",
    }  # fmt: skip
    shutil.rmtree(runs[0].folder / "images")
    with pytest.raises(UserError, match=f"{runs[0].folder}: no photo of the finished weld"):
        detectors[0].predict(runs[0].folder)


def test_a_run_says_what_encoding_and_an_epoch_cost(reference: Path) -> None:
    record = json.loads((reference / "run.json").read_text())
    assert record["encoding_seconds"] > 0
    assert record["epoch_seconds"] > 0
    log = (reference / "log.txt").read_text()
    assert "training an epoch took" in log
    assert "running on BUILT-IN synthetic welds" in log
    assert "cost: 34 welds to encode once with three frozen encoders (134,112 parameters), then 3 epochs" in log


def test_video_ae_has_the_published_size() -> None:
    from anomaly_lib.models.weld.video_ae import VideoAE

    assert [sum(p.numel() for p in VideoAE(dim=d).parameters()) for d in (768, 1280)] == [214_080, 345_664]


def test_label_check_and_new_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from anomaly_lib.systems.weld.data.manifest import read_manifest
    from scripts.weld import check_labels, resplit

    manifest = ["CATEGORY,DIRECTORY,SUBDIRS,SPLIT"]
    for i in range(24):
        name = "good" if i < 16 else "overlap"
        folder = tmp_path / f"{name}{i // 2}" / str(i)
        folder.mkdir(parents=True)
        (folder / "sensors.csv").write_text("a\n1\n")
        manifest.append(f"{name},{name}{i // 2},{name}{i // 2}/{i},{'TRAIN' if i < 16 else 'TEST'}")
    (tmp_path / "manifest.csv").write_text("\n".join(manifest))
    assert check_labels.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "the val split is empty" in text
    assert "the test split has one class only" in text
    assert resplit.main([str(tmp_path), "--train-ratio", "0.5"]) == 0
    assert (tmp_path / "manifest.csv.backup").read_text() == "\n".join(manifest)
    after = {(run.split, run.class_name) for run in read_manifest(tmp_path)}
    assert after == {(split, name) for split in ("train", "val", "test") for name in ("good", "overlap")}
    assert check_labels.main([str(tmp_path / "nothing")]) == 2


@pytest.mark.slow
def test_shell_wrappers_forward_every_flag(tmp_path: Path) -> None:
    import os

    env = {**os.environ, "OUTPUT": str(tmp_path), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    env["WANDB_MODE"] = "disabled"

    def bash(name: str, *words: str) -> str:
        line = ["bash", str(ROOT / "scripts" / "weld" / name), *words]
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        return done.stdout

    bash("train_causal_film.sh", *FEW, *TINY, PLAIN, "--epochs", "1")
    assert len(rows(tmp_path / "causal_film")) == 1
    best = str(tmp_path / "causal_film" / "best_model.pth")
    assert "continuing" in bash("train_causal_film.sh", *FEW, *TINY, PLAIN, "--epochs", "2", "--resume", best)
    assert len(rows(tmp_path / "causal_film")) == 2
    assert "crater_cracks" in bash("evaluate_causal_film.sh", best, "--verbose", "--no-figures")
    bash("train_video_ae.sh", *FEW, "--epochs", "1")
    assert "fusion_auroc" in bash("evaluate_fusion.sh")


@pytest.mark.slow
def test_evaluation_in_a_new_process_gives_the_identical_number(reference: Path, tmp_path: Path) -> None:
    recorded = json.loads((reference / "run.json").read_text())["metrics"]
    done = subprocess.run(
        [sys.executable, "evaluate.py", "--checkpoint", str(reference / "best_model.pth"), "--verbose", "--output",
         str(tmp_path), "--no-figures", "--bootstrap", "0"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    measured = json.loads((tmp_path / "metrics.json").read_text())["runs"][0]["metrics"]
    for name, value in measured.items():
        assert value == recorded[name], name
    assert "averaged (ema) parameters of epoch" in done.stdout
    assert "crater_cracks" in done.stdout
    raw = subprocess.run(
        [sys.executable, "evaluate.py", "--checkpoint", str(reference), "--parameters", "raw", "--split", "val",
         "--output", str(tmp_path / "raw"), "--no-figures", "--bootstrap", "0"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "raw parameters of epoch" in raw.stdout


@pytest.mark.slow
def test_two_gloo_processes_train_the_same_curve_as_one(tmp_path: Path) -> None:
    flags = [*FEW, *TINY, PLAIN, "--epochs", "3", "--patience", "0", "--feature-mask-ratio", "0"]
    flags += ["--decoder-dropout", "0", "--process-dropout", "0", "--batch-size", "6"]  # 8 welds: the last is uneven
    for name, launch in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]),
    ):
        subprocess.run(
            [sys.executable, *launch, "train_causal_film.py", *flags, "--output-dir", str(tmp_path / name)],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for key in ("loss", "cos", "l1", "val_loss"):
            assert a[key] == pytest.approx(b[key], abs=1e-5), key
