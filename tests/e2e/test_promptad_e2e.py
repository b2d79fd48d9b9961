"""train_cls.py and train_seg.py through their main(): the user's commands, resume, reports of what was done."""

import csv
import json
import os
import random
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anomaly_lib
from anomaly_lib.backbones import weights as weight_files
from anomaly_lib.data.demo.items import write_demo
from anomaly_lib.detect import scores as scoring
from anomaly_lib.engine.run import Run
from anomaly_lib.evaluation.evaluate import evaluate_checkpoint
from anomaly_lib.evaluation.options import EvaluateArgs
from anomaly_lib.fusion import FUSIONS
from anomaly_lib.systems.promptad.options import tiny
from anomaly_lib.systems.registry import SYSTEMS

ROOT = Path(__file__).resolve().parents[2]
Main = Callable[[list[str]], int]
TINY = ["--backbone", "tiny-clip", "--weights", "random", "--no-figures", "--resolution", "64", "--cache", "ram"]


def script(name: str) -> Main:
    return runpy.run_path(str(ROOT / name))["main"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    write_demo(root, categories=["capsule", "grid"], size=64, train=6, test_good=6, per_defect=2)
    (root / "capsule").rename(root / "bottle")  # a class with published states
    return root


def on(data: Path, *more: str) -> list[str]:
    return ["--dataset", "mvtec", "--data-path", str(data), "--obj", "bottle", *TINY, *more]


def contexts(checkpoint: Path) -> dict[str, torch.Tensor]:
    model = torch.load(checkpoint, weights_only=True)["model"]
    return {name: model[f"learner.{name}"] for name in ("normal_ctx", "abnormal_ctx")}


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("task", ["cls", "seg"])
def test_the_documents_commands(task: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "result" / "harmonic_baseline" / "mvtec" / "k_1" / "bottle" / f"{task}_checkpoint.pth"
    command = on(data, "--shot", "1", "--epoch", "3", "--fusion-mode", "harmonic", "--save-path", str(saved))
    assert script(f"train_{task}.py")(command) == 0
    assert "oracle" not in capsys.readouterr().out
    content = torch.load(saved, weights_only=True)
    assert {"feature_gallery1", "feature_gallery2", "text_features"} <= set(content["model"])
    assert content["args"]["fusion_mode"] == "harmonic"
    assert len(content["extra"]["support"]["paths"]) == 1
    metrics = record(saved.with_suffix(""))["metrics"]
    assert 0 <= metrics["image_auroc"] <= 1
    branches = {f"{name}_pixel_auroc" if task == "seg" else f"{name}_auroc" for name in ("textual", "visual")}
    assert {name for name in metrics if name.startswith(("textual", "visual"))} == branches
    assert "pixel_auroc" in metrics  # of the fused maps (seg) or of the visual branch's (cls)

    before = saved.stat().st_mtime_ns
    assert script(f"train_{task}.py")(command) == 0  # again: says so and trains nothing
    assert "already done" in capsys.readouterr().out
    assert saved.stat().st_mtime_ns == before

    detector = anomaly_lib.load(saved)
    path = next((data / "bottle" / "test").rglob("*.png"))
    from_file = detector.predict(path)
    decoded = np.asarray(Image.open(path).convert("RGB"))
    pixels = detector.predict([decoded])
    tensors = detector.predict(detector.transform(decoded)[None])
    torch.testing.assert_close(from_file.score, pixels.score)
    torch.testing.assert_close(from_file.score, tensors.score)
    assert from_file.map.shape == (1, 64, 64)
    assert bool(from_file.anomalous[0]) == (float(from_file.score[0]) >= detector.decision.threshold)
    assert detector.decision.plain() == content["extra"]["decision"]

    again = evaluate_checkpoint(saved, EvaluateArgs(), SYSTEMS)
    assert again.metrics == pytest.approx(metrics, abs=1e-9)
    assert len(again.scores) == 18


def test_originals_spellings(data: Path, tmp_path: Path) -> None:
    command = [
        "--dataset",
        "mvtec",
        "--data_path",
        str(data),
        "--class_name",
        "bottle",
        "--k-shot",
        "2",
        "--Epoch",
        "1",
    ]
    command += [
        "--n_ctx",
        "2",
        "--n_ctx_ab",
        "2",
        "--n_pro",
        "2",
        "--n_pro_ab",
        "2",
        "--vis",
        "False",
        "--img-resize",
        "64",
    ]
    command += [
        "--backbone",
        "tiny-clip",
        "--weights",
        "random",
        "--cache",
        "ram",
        "--resolution",
        "64",
        "--root-dir",
        str(tmp_path / "r"),
        "--use-cpu",
        "1",
    ]
    assert script("train_cls.py")(command) == 0
    folder = tmp_path / "r" / "mvtec" / "k_2"
    args = record(folder / "bottle" / "CLS-Seed_111")["args"]
    assert (args["shot"], args["epochs"], args["n_pro"], args["figures"]) == (2, 1, 2, False)
    assert (args["device"], args["image_size"]) == ("cpu", [64])
    saved = folder / "checkpoint" / "CLS-Seed_111-bottle-check_point.pt"
    assert contexts(saved)["abnormal_ctx"].shape == (2, 2, 32)
    assert anomaly_lib.load(saved).class_name == "bottle"


def test_root_dir_is_the_root_of_a_loop_over_classes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """B11: a shell loop over classes and tasks with one --root-dir, as the original's scripts are called."""
    root = tmp_path / "result"
    common = ["--dataset", "mvtec", "--data-path", str(data), *TINY, "--Epoch", "1", "--root-dir", str(root)]
    for name in ("bottle", "grid"):
        for task in ("cls", "seg"):
            if (name, task) != ("grid", "seg"):
                assert script(f"train_{task}.py")([*common, "--class_name", name]) == 0
    folder = root / "mvtec" / "k_1"
    assert sorted(path.name for path in (folder / "checkpoint").glob("*.pt")) == [
        "CLS-Seed_111-bottle-check_point.pt", "CLS-Seed_111-grid-check_point.pt", "SEG-Seed_111-bottle-check_point.pt",
    ]  # fmt: skip
    with (folder / "csv" / "Seed_111-results.csv").open() as stream:
        rows = {row.pop("class"): row for row in csv.DictReader(stream)}

    def metric(name: str, task: str, figure: str) -> str:
        return f"{100 * record(folder / name / f'{task}-Seed_111')['metrics'][figure]:.2f}"

    assert rows == {
        "mvtec-bottle": {
            "i_roc": metric("bottle", "CLS", "image_auroc"),
            "p_roc": metric("bottle", "SEG", "pixel_auroc"),
        },
        "mvtec-grid": {"i_roc": metric("grid", "CLS", "image_auroc"), "p_roc": ""},
    }
    capsys.readouterr()
    assert script("train_cls.py")([*common, "--class_name", "grid"]) == 0
    assert "already done" in capsys.readouterr().out


def test_a_checkpoint_is_read_once_and_figures_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A8: it was opened four times, and the pixel metrics were computed twice."""
    reads: list[str] = []
    computed: list[int] = []
    load, read, pixel = torch.load, weight_files.read_torch_file, scoring.pixel_metrics

    def counted_load(path: Any, *more: Any, **options: Any) -> Any:
        reads.append(f"torch.load {path}")
        return load(path, *more, **options)

    def counted_read(path: Path) -> Any:
        reads.append(f"read_torch_file {path}")
        return read(path)

    def counted_pixel(*given: Any, **options: Any) -> Any:
        computed.append(1)
        return pixel(*given, **options)

    monkeypatch.setattr(scoring, "pixel_metrics", counted_pixel)
    saved = SYSTEMS["promptad"].train(tiny(task="seg", output_dir=str(tmp_path / "run"))).checkpoint
    assert len(computed) == 1
    monkeypatch.setattr(torch, "load", counted_load)
    monkeypatch.setattr(weight_files, "read_torch_file", counted_read)
    anomaly_lib.load(saved)
    assert reads == [f"read_torch_file {saved}", f"torch.load {saved}"]
    done = evaluate_checkpoint(saved, EvaluateArgs(), SYSTEMS)
    assert len(computed) == 2
    assert "pixel_auroc" in done.metrics
    assert len(reads) == 4


@pytest.mark.parametrize("task", ["cls", "seg"])
def test_fusion_mode_never_changes_what_is_learned(task: str, data: Path, tmp_path: Path) -> None:
    main = script(f"train_{task}.py")

    def learned(name: str, *more: str) -> dict[str, torch.Tensor]:
        assert main(on(data, "--shot", "2", "--output-dir", str(tmp_path / name), *more)) == 0
        return contexts(tmp_path / name / "checkpoint.pt")

    first = learned("start", "--epoch", "0")
    found = [learned(mode, "--epoch", "2", "--fusion-mode", mode) for mode in FUSIONS]
    assert len(found) >= 10
    for name in ("normal_ctx", "abnormal_ctx"):
        assert not torch.equal(first[name], found[0][name])
        assert all(torch.equal(found[0][name], other[name]) for other in found[1:])


@pytest.mark.parametrize("select", ["last", "val", "best-on-test"])
def test_interrupted_and_continued_equals_straight_through(
    select: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = script("train_cls.py")
    command = on(data, "--epoch", "6", "--shot", "2", "--select", select, "--save-every", "2")
    assert main([*command, "--output-dir", str(tmp_path / "straight")]) == 0
    end_epoch = Run.end_epoch

    def stop_after_three(self: Run, state: Any, epoch: int, values: dict[str, float]) -> None:
        end_epoch(self, state, epoch, values)
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "end_epoch", stop_after_three)
    assert main([*command, "--output-dir", str(tmp_path / "stopped")]) == 130
    assert record(tmp_path / "stopped")["status"] == "interrupted"
    monkeypatch.undo()
    assert main([*command, "--output-dir", str(tmp_path / "stopped")]) == 0
    one, two = (contexts(tmp_path / name / "checkpoint.pt") for name in ("straight", "stopped"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert record(tmp_path / "straight")["metrics"] == record(tmp_path / "stopped")["metrics"]
    rows = [json.loads(line)["epoch"] for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(6))


class Shuffled:
    """What os.scandir answers, in another order."""

    def __init__(self, entries: Any, generator: random.Random) -> None:
        with entries:
            self.entries = list(entries)
        generator.shuffle(self.entries)

    def __iter__(self) -> Any:
        return iter(self.entries)

    def __enter__(self) -> "Shuffled":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    close = __exit__


def test_runs_are_identical_after_shuffling_the_directory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, root: Path) -> tuple[list[str], dict[str, float], dict[str, torch.Tensor]]:
        command = on(root, "--epoch", "2", "--shot", "2", "--output-dir", str(tmp_path / name))
        assert script("train_cls.py")(command) == 0
        seen = record(tmp_path / name)
        support = [Path(path).relative_to(root).as_posix() for path in seen["support"]["paths"]]
        return support, seen["metrics"], contexts(tmp_path / name / "checkpoint.pt")

    straight = run("straight", data)
    copy, generator = tmp_path / "copy", random.Random(7)
    paths = sorted(path for path in data.rglob("*") if path.is_file())
    generator.shuffle(paths)  # created in another order, and listed in one that changes with every call
    for path in paths:
        (copy / path.relative_to(data)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / path.relative_to(data))
    scandir, listdir, listed = os.scandir, os.listdir, []

    def shuffled_names(*where: Any) -> list[str]:
        listed.append(where)
        return generator.sample(names := listdir(*where), len(names))

    def shuffled_entries(*where: Any) -> Shuffled:
        listed.append(where)
        return Shuffled(scandir(*where), generator)

    monkeypatch.setattr(os, "listdir", shuffled_names)
    monkeypatch.setattr(os, "scandir", shuffled_entries)
    mixed = run("mixed", copy)
    assert any(str(copy) in str(where) for where in listed)  # the reader did look through what was shuffled
    assert straight[:2] == mixed[:2]
    assert all(torch.equal(straight[2][name], mixed[2][name]) for name in straight[2])


def test_oracle_is_called_oracle_and_other_fusion_is_reported(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "paper"
    command = on(data, "--epoch", "3", "--protocol", "paper", "--output-dir", str(folder))
    assert script("train_seg.py")(command) == 0
    assert "oracle" in capsys.readouterr().out
    args = record(folder)["args"]
    quirks = ("logit_scale", "memory_tap", "test_color", "reader_resize", "triplet_axis", "pairing", "select")
    assert [args[name] for name in quirks] == ["raw", "post_attn_next", "bgr", 1024, "patch", "modulo", "best-on-test"]
    detector = anomaly_lib.load(folder / "best_model.pt")
    assert detector.facts.notes == ["oracle: epoch chosen on the test set"]
    other = detector.with_fusion("max")
    assert (detector.args.fusion_mode, other.args.fusion_mode) == ("harmonic", "max")
    assert other.facts.notes[1] == "scored with fusion max, trained with harmonic: its epoch was chosen for that fusion"
    assert other.decision.threshold > 2 * detector.decision.threshold  # the larger branch, not half of the smaller one
    back = other.with_fusion("weighted").with_fusion("harmonic")
    assert back.decision == detector.decision
    assert back.facts.notes == detector.facts.notes
    remarks = evaluate_checkpoint(folder / "best_model.pt", EvaluateArgs(), SYSTEMS).remarks
    assert remarks[0].startswith("oracle")


@pytest.mark.parametrize(
    "more",
    [
        ["--calibration", "quantile"],
        ["--calibration", "z-score", "--shot", "3"],
        ["--memory-views", "all"],
        ["--obj", "all", "--fusion-mode", "weighted", "--fusion-weights", "1", "3"],
        ["--precision", "bf16"],
        ["--image-max", "grid", "--memory-layers", "1,3"],
    ],
    ids=lambda more: more[0][2:],
)
def test_options_beyond_the_original(more: list[str], data: Path, tmp_path: Path) -> None:
    assert script("train_cls.py")(on(data, "--epoch", "1", "--output-dir", str(tmp_path / "r"), *more)) == 0
    assert np.isfinite(record(tmp_path / "r")["metrics"]["image_auroc"])


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--obj", "spoon"], "--obj spoon"),
        (["--shot", "99"], "--shot 99"),
        (["--fusion-mode", "maxx"], "--fusion-mode"),
        (["--fusion_weights", "1", "--fusion-mode", "weighted"], "--fusion-weights 1.0: takes 2 values"),
        (["--memory-layers", "2", "40"], "--memory-layers"),
        (["--gpu-id", "99"], "cuda:99"),
        (["--epochs", "-1"], "--epochs -1: must be at least 0"),
        (["--data-path", "nowhere"], "nowhere"),
        (["--weights", "missing.safetensors"], "missing.safetensors"),
        (["--obj"], "--obj"),
    ],
)
def test_mistakes_cost_one_line(more: list[str], complaint: str, data: Path, tmp_path: Path, capfd: Any) -> None:
    assert script("train_cls.py")(on(data, "--epoch", "1", "--output-dir", str(tmp_path / "r"), *more)) == 2
    error = capfd.readouterr().err
    assert complaint in error
    assert "Traceback" not in error


def test_torchrun_is_refused_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As torchrun starts them: rank 0 says what to do instead, the others leave without a word."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert script("train_cls.py")(["--output-dir", str(tmp_path / "r")]) == 2
        error = capfd.readouterr().err
        assert len(error.splitlines()) == lines
        assert ("train_harmonic.sh --gpus" in error) == bool(lines)
    assert not (tmp_path / "r").exists()


def test_cached_and_direct_features_agree(data: Path, tmp_path: Path) -> None:
    metrics = []
    for cache in ("ram", "off"):
        command = on(data, "--epoch", "2", "--shot", "2", "--output-dir", str(tmp_path / cache), "--cache", cache)
        assert script("train_seg.py")(command) == 0
        metrics.append(record(tmp_path / cache)["metrics"])
    assert metrics[0] == metrics[1]


def test_without_any_data_flag_it_runs_on_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--fusion-mode", "harmonic", "--epoch", "2", "--output-dir", str(tmp_path / "demo"), "--cache", "ram"]
    command += ["--image-size", "64"]  # the packaged CLIP, at a size that keeps this test short
    assert script("train_cls.py")(command) == 0
    assert "BUILT-IN demo data" in capsys.readouterr().out
    assert {"scores.png", "maps.png"} <= {path.name for path in (tmp_path / "demo").iterdir()}


def test_a_users_data_need_the_published_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """B1: the demo CLIP ran on them without being named."""
    monkeypatch.setenv("ANOMALY_LIB_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    command = ["--dataset", "mvtec", "--data-path", str(data), "--obj", "bottle", "--output-dir", str(tmp_path / "r")]
    assert script("train_cls.py")(command) == 2
    (line,) = capfd.readouterr().err.splitlines()
    for words in (
        "ViT-B-16-plus-240 needs the weights vit_b_16_plus_240-laion400m_e32",
        "wget",
        "--backbone demo-clip",
    ):
        assert words in line


def test_other_data_of_the_class_can_be_scored(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert script("train_cls.py")(on(data, "--epoch", "1", "--output-dir", str(folder))) == 0
    shutil.copytree(data / "bottle", tmp_path / "other" / "bottle", ignore=lambda place, _: ["cut"])
    shutil.rmtree(tmp_path / "other" / "bottle" / "test" / "crack")
    one = evaluate_checkpoint(folder / "checkpoint.pt", EvaluateArgs(data_path=str(tmp_path / "other")), SYSTEMS)
    assert len(one.scores) == 16
    assert "crack" not in one.scores.defects
    with pytest.raises(ValueError, match="shot=3: has no meaning for a trained promptad detector"):
        evaluate_checkpoint(folder / "checkpoint.pt", EvaluateArgs(shot=3), SYSTEMS)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--states {0}", "--states {0}: takes plain words"),
        ("--n-ctx 500", "--n-ctx 500"),
        ("--n-pro 100000", "--n-pro 100000: must be at most 1000"),
        ("--image-size 1", "--image-size 1: tiny-clip takes sides from 16"),
        ("--image-size 100000", "--image-size 100000"),
        ("--reader-resize 999999", "--reader-resize 999999: must be at most"),
        ("--resolution 100000", "--resolution 100000: must be at most"),
        ("--device mps", "--device mps: expected auto, cpu, cuda"),
        ("--sigma nan", "--sigma nan: must be a finite number"),
        ("--batch-size 99999999999999999999", "too large"),
        ("--seed 99999999999", "--seed 99999999999: must be at most"),
    ],
)
def test_values_that_cannot_work_are_one_line_before_any_work(
    flags: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--backbone", "tiny-clip", "--weights", "random", "--output-dir", str(tmp_path / "run"), *flags.split()]
    assert script("train_cls.py")(argv) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
