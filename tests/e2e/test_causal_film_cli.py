"""The weld commands of the user's document at tiny scale: train, resume, W&B offline, evaluate, cache on and off."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import train_causal_film
from anomaly_lib.engine.run import Run
from anomaly_lib.errors import UserError
from anomaly_lib.systems.weld.causal_film import train as causal_film
from anomaly_lib.systems.weld.causal_film.options import resolve
from anomaly_lib.systems.weld.causal_film.train import Args, load_detector, train

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--demo-train", "8", "--demo-good", "2", "--demo-defects", "1", "--d-model", "16", "--sensor-hidden", "16"]
TINY += ["--video-frames", "2", "--video-size", "32", "--image-size", "32", "--views", "2", "--audio-frames", "32"]
PLAIN = "--no-figures"


def command(*words: str) -> int:
    return train_causal_film.main([*TINY, *([] if "--data-path" in words else [PLAIN]), *words])


def tiny_args(folder: Path, **changes: object) -> Args:
    return dataclasses.replace(causal_film.tiny(), output_dir=str(folder), **{"epochs": 3, **changes})


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
    detector = load_detector(reference / "best_model.pth")
    assert same(dict(detector.task.model.state_dict()), saved["ema_state_dict"])
    raw = load_detector(reference / "best_model.pth", weights="raw", features=detector.features)
    assert same(dict(raw.task.model.state_dict()), saved["model_state_dict"])
    assert not same(saved["model_state_dict"], saved["ema_state_dict"])
    assert saved["model"].keys() == detector.task.state_dict().keys()  # frozen encoders stay outside


@pytest.mark.parametrize("moment", ["end_epoch", "save_best"])
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

    owner = Run if moment == "end_epoch" else causal_film
    original = getattr(owner, moment)
    monkeypatch.setattr(owner, moment, broken)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_args(folder))
    monkeypatch.undo()
    assert not (folder / "metrics.jsonl").is_file() or len(rows(folder)) == 2
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
    assert "is done" in capsys.readouterr().out
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


def test_options_resolve_by_data_preset_and_protocol() -> None:
    full = resolve(Args(data_path="somewhere"))
    assert (full.learning_rate, full.weight_decay, full.warmup_epochs, full.epochs) == (2e-5, 1e-2, 8, 100)
    assert (full.batch_size, full.grad_clip, full.patience, full.ema_decay) == (32, 0.5, 20, 0.9999)
    assert (full.d_model, full.video_size, full.image_backbone) == (512, 224, "dinov3-vith16plus")
    assert resolve(Args(data_path="x", preset="stage1")).image_backbone == "dinov2-base"
    assert resolve(Args(data_path="x")).target_mode == "stopgrad"
    paper = resolve(Args(data_path="x", protocol="paper"))
    assert (paper.target_mode, paper.video_size, paper.legacy_video, paper.decoder_activation) == (
        "joint", 64, True, "silu",
    )  # fmt: skip
    assert resolve(Args(data_path="x", learning_rate=3e-5)).learning_rate == 3e-5
    with pytest.raises(UserError, match="--cache off"):
        resolve(Args(augment=True))
    with pytest.raises(UserError, match="--data-path"):
        resolve(Args(dataset="weld"))


@pytest.mark.parametrize(
    "words",
    [
        ["--protocol", "paper", "--audio-norm", "db"],
        ["--target-mode", "ema_target", "--sensor-norm", "train", "--video-token-pool", "none", "--patch-only"],
        ["--cache", "off", "--augment", "--video-norm", "imagenet", "--frame-select", "active"],
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
    assert [Path(one["path"]).name for one in json.loads((tmp_path / "skips" / "run.json").read_text())["skipped"]] == [
        damaged.parent.name
    ]
    assert command("--data-path", str(tmp_path / "nowhere")) == 2
    assert "no manifest.csv" in capsys.readouterr().err
    assert command("--learning-rat", "1") == 2


def test_video_ae_and_late_fusion(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from anomaly_lib.systems.weld.video_ae import train as video_ae
    from anomaly_lib.systems.weld.video_ae.late_fusion import FusionArgs, evaluate_fusion

    small = {"demo_train": 16, "demo_good": 4, "demo_defects": 1}
    result = video_ae.train(video_ae.Args(epochs=3, output_dir=str(tmp_path / "ae"), **small))
    losses = [row["loss"] for row in rows(tmp_path / "ae")]
    assert losses[-1] < losses[0]
    assert video_ae.load_detector(result.checkpoint).args.layer == 2
    asked = FusionArgs(causal_checkpoint=str(reference / "best_model.pth"), video_checkpoint=str(result.checkpoint))
    fused = evaluate_fusion(asked)
    a, b, both = (torch.tensor(fused.scores[name]) for name in ("causal_film", "video_ae", "fusion"))
    torch.testing.assert_close(a + b, both)
    open_look = evaluate_fusion(dataclasses.replace(asked, statistics="transductive"))
    z = torch.tensor(open_look.scores["causal_film"])
    assert z.mean().item() == pytest.approx(0, abs=1e-5)
    assert open_look.metrics["causal_film_auroc"] == fused.metrics["causal_film_auroc"]
    with pytest.raises(UserError, match="--video-checkpoint"):
        evaluate_fusion(dataclasses.replace(asked, video_checkpoint=str(tmp_path / "none.pt")))


def test_video_ae_is_a_system_like_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import evaluate as evaluate_script
    from anomaly_lib.systems.weld.video_ae import train as video_ae

    result = video_ae.train(dataclasses.replace(video_ae.tiny(), output_dir=str(tmp_path / "ae")))
    words = ["--checkpoint", str(result.checkpoint), "--output", str(tmp_path / "out"), "--no-figures"]
    assert evaluate_script.main([*words, "--bootstrap", "0"]) == 0
    measured = json.loads((tmp_path / "out" / "metrics.json").read_text())["runs"][0]["metrics"]
    assert measured["image_auroc"] == result.metrics["image_auroc"]


def test_a_run_says_what_encoding_and_an_epoch_cost(reference: Path) -> None:
    record = json.loads((reference / "run.json").read_text())
    assert record["encoding_seconds"] > 0
    assert record["epoch_seconds"] > 0
    assert "training an epoch took" in (reference / "log.txt").read_text()


def test_video_ae_has_the_published_size() -> None:
    from anomaly_lib.models.weld.video_ae import VideoAE

    assert [sum(p.numel() for p in VideoAE(dim=d).parameters()) for d in (768, 1280)] == [214_080, 345_664]


def test_label_check_and_new_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from anomaly_lib.systems.weld.data.manifest import read_manifest
    from scripts.weld import check_labels, resplit

    manifest = ["CATEGORY,DIRECTORY,SUBDIRS,SPLIT"]
    for i in range(24):
        name = "good" if i < 16 else "overlap"
        (tmp_path / f"{name}{i // 2}" / str(i)).mkdir(parents=True)
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

    bash("train_causal_film.sh", *TINY, PLAIN, "--epochs", "1")
    assert len(rows(tmp_path / "causal_film")) == 1
    best = str(tmp_path / "causal_film" / "best_model.pth")
    assert "continuing" in bash("train_causal_film.sh", *TINY, PLAIN, "--epochs", "2", "--resume", best)
    assert len(rows(tmp_path / "causal_film")) == 2
    assert "crater_cracks" in bash("evaluate_causal_film.sh", best, "--verbose", "--no-figures")
    bash("train_video_ae.sh", *TINY[:6], "--epochs", "1")
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
    assert "weights ema" in done.stdout
    assert "crater_cracks" in done.stdout
    raw = subprocess.run(
        [sys.executable, "evaluate.py", "--checkpoint", str(reference), "--weights", "raw", "--split", "val",
         "--output", str(tmp_path / "raw"), "--no-figures", "--bootstrap", "0"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "weights raw" in raw.stdout


@pytest.mark.slow
def test_two_gloo_processes_train_the_same_curve_as_one(tmp_path: Path) -> None:
    flags = [*TINY, PLAIN, "--epochs", "3", "--patience", "0", "--feature-mask-ratio", "0", "--decoder-dropout", "0"]
    flags += ["--process-dropout", "0", "--batch-size", "6"]  # 8 welds: the last batch is uneven
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
