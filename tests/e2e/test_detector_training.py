"""scripts/train_detector.py: resume, torchrun, wrong input; real images and weights where they are at hand."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import anomaly_lib
from anomaly_lib.engine.checkpoint import load_checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.models.detectors.anomalib_keys import to_anomalib

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--image-size", "32", "--no-figures"]
NARROW_NETWORKS = ["--model", "draem", "--image-size", "32", "--repair-width", "4", "--segment-width", "4"]
NARROW = [*NARROW_NETWORKS, "--no-figures"]


def script(name="train_detector"):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory):
    """A class of six normal images and two good, two broken test images, 32 x 32, in MVTec's layout."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for place, count in (("train/good", 6), ("test/good", 2), ("test/hole", 2)):
        for i in range(count):
            path = root / "part" / place / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(90, 140, (32, 32, 3), dtype=np.uint8)
            if place == "test/hole":
                pixels[8:16, 8:16] = 0
                mask = np.zeros((32, 32), np.uint8)
                mask[8:16, 8:16] = 255
                truth = root / "part" / "ground_truth" / "hole" / f"{i:03d}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(truth)
            Image.fromarray(pixels).save(path)
    return ["--dataset", "mvtec", "--data-path", str(root)]


def test_interrupted_training_ends_with_the_same_weights(tiny_data, tmp_path, monkeypatch, capsys):
    main = script().main
    assert main([*NARROW, *tiny_data, "--epochs", "2", "--output-dir", str(tmp_path / "straight")]) == 0
    from anomaly_lib.engine.run import Run

    original = Run.end_epoch

    def stop_after_first(self, state, epoch, values, **more):
        original(self, state, epoch, values, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "end_epoch", stop_after_first)
    flags = [*NARROW, *tiny_data, "--epochs", "2", "--output-dir", str(tmp_path / "broken")]
    assert main(flags) == 130
    monkeypatch.undo()
    assert main(flags) == 0
    straight, resumed = (load_checkpoint(tmp_path / n / "checkpoint.pt")["model"] for n in ("straight", "broken"))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert main(flags) == 0
    assert "already done" in capsys.readouterr().out
    found = anomaly_lib.load(tmp_path / "broken" / "checkpoint.pt").predict(torch.rand(2, 3, 32, 32))
    assert found.map.shape == (2, 32, 32)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "draem_sevnet", "--image-size", "31", "95"], "--patch-width-range"),
        (["--n-features", "40"], "--n-features: only for --model padim"),
        (["--model", "padim", "--draem-score", "mean21-max"], "--draem-score: only for --model draem|draem_sevnet"),
        (["--epochs", "3"], "--epochs: only for --model reverse_distillation|draem|draem_sevnet"),
        (
            ["--model", "draem", "--backbone", "resnet18"],
            "--backbone: only for --model patchcore|padim|reverse_distillation",
        ),
        (["--model", "draem", "--gamma", "0.5"], "without --schedule step|multistep"),
        (["--model", "reverse_distillation", "--layers", "layer1"], "needs three layers"),
        (["--model", "reverse_distillation", "--backbone", "demo-clip"], "no decoder mirrors it"),
        (["--image-size", "32", "32", "32"], "--image-size 32 32 32: takes one or two numbers"),
        (["--dataset", "mvtec"], "--data-path"),
        (["--obj", "unheard"], "unheard"),
        (["--model", "draem", "--early-stopping-patience", "3"], "no validation split"),
        (["--model", "patchcor"], "patchcor"),
    ],
)
def test_wrong_input_is_one_line(flags, message, capsys, tmp_path):
    assert script().main([*flags, "--output-dir", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize("model", ["patchcore", "draem"])
def test_anomalib_checkpoints_come_and_go(model, tiny_data, tmp_path, capsys):
    if model == "patchcore":
        flags = [*SMALL[:2], "--model", model, "--backbone", "resnet18", "--coreset-size", "20"]
        training = [*flags, "--no-figures", "--weights", "random"]
    else:
        flags, training = NARROW_NETWORKS, [*NARROW, "--epochs", "0"]
    assert script().main([*training, *tiny_data, "--output-dir", str(tmp_path / "run")]) == 0
    trained = anomaly_lib.load(tmp_path / "run" / "checkpoint.pt")
    state = to_anomalib(trained.model)
    state["post_processor._image_threshold"] = torch.tensor(0.25)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "lightning.ckpt")
    main = script("convert_detector").main
    assert main(["--source", str(tmp_path / "lightning.ckpt"), *flags, "--write-to", str(tmp_path / "here.pt")]) == 0
    here = anomaly_lib.load(tmp_path / "here.pt")
    assert here.decision.threshold == 0.25
    if model == "patchcore":  # what anomalib computes
        assert (here.args.upsample, here.args.rows) == ("nearest", "raw")
    assert "anomalib" in here.decision.describe()
    assert trained.decision is not None
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(here.predict(images).score, trained.predict(images).score)
    assert main(["--source", str(tmp_path / "here.pt"), "--to", "anomalib"]) == 0
    back = torch.load(tmp_path / "here.ckpt", weights_only=True)["state_dict"]
    assert set(back) == set(state) - {"post_processor._image_threshold"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())
    backbone = tmp_path / "here_backbone.safetensors"
    if backbone.is_file():  # DRAEM has none
        tensors = load_file(backbone)
        name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
        save_file(tensors | {name: tensors[name] + 1}, backbone)
        with pytest.raises(UserError, match=r"here\.pt: trained with weights"):
            anomaly_lib.load(tmp_path / "here.pt")
    assert main(["--source", str(tmp_path / "here.pt"), "--to", "anomalib", "--model", "padim"]) == 2
    assert "has no effect without --to here" in capsys.readouterr().err
    wrong = ["--model", "padim", "--backbone", "resnet18", "--write-to", str(tmp_path / "no.pt")]
    assert main(["--source", str(tmp_path / "lightning.ckpt"), *wrong]) == 2
    assert "not an anomalib checkpoint of --model padim" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", ["draem", "reverse_distillation"])
def test_torchrun_with_two_ranks(model, tiny_data, tmp_path):
    flags = [*tiny_data, "--epochs", "1", "--batch-size", "8", "--output-dir", str(tmp_path / "run")]
    flags += NARROW if model == "draem" else [*SMALL, "--model", model, "--backbone", "resnet18", "--weights", "random"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(ROOT / "scripts" / "train_detector.py"), *flags],
        capture_output=True, text=True, timeout=900, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


@pytest.mark.data
@pytest.mark.slow
def test_real_bottle_with_real_weights(real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALY_LIB_DATA", str(real_data))
    output = tmp_path / "results.json"
    flags = ["--categories", "mvtec_ad/bottle", "--coreset-ratio", "0.01", "--no-peer", "--output", str(output)]
    assert script("check_real_detectors").main(flags) == 0
    rows = {row["model"]: row["here"] for row in json.loads(output.read_text())["rows"]}
    assert rows["patchcore"]["image_auroc"] > 0.98
    assert rows["patchcore"]["pixel_auroc"] > 0.96
    assert rows["padim"]["image_auroc"] > 0.95
    assert rows["padim"]["pixel_auroc"] > 0.95
