"""Whole commands from files to metrics against anomalib's, and prediction of one image at a time.

    python benchmarks/bench_detect.py [--images 60] [--test-images 80] [--output detect.json]

Both sides read the same pictures of 224 x 224 pixels, the same weights of a ResNet-18 and report the same seven
metrics, with each library's defaults otherwise; ours also sets a decision. They take turns, each in a process of its
own with one thread. Seconds are those of a core (user and system), which also hold on a busy machine.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import BenchmarkArgs, finish, in_turn, machine

from anomaly_lib.command_line import command
from anomaly_lib.config import arg

ROOT = Path(__file__).resolve().parents[1]
METRICS = {"image_auroc": "image_AUROC", "pixel_auroc": "pixel_AUROC", "pixel_aupro": "pixel_AUPRO"}


@dataclass
class Args(BenchmarkArgs):
    """Whole commands."""

    images: int = arg(60, "normal images", at_least=2)
    test_images: int = arg(80, "test images, half of them with a defect", at_least=4)
    models: list[str] = arg(["patchcore", "padim"], "which detectors", choices=["patchcore", "padim"])
    repeats: int = arg(3, "measurements behind each figure", at_least=1)


def write_images(folder: Path, normal: int, test: int) -> None:
    """Pictures in MVTec's layout."""
    from PIL import Image

    from anomaly_lib.data.demo.items import render

    for place, defect, count in (
        ("train", "good", normal),
        ("test", "good", test - test // 2),
        ("test", "cut", test // 2),
    ):
        pictures, masks = render("woven", defect, count, split=place, size=224)
        for number in range(count):
            files = [(folder / "woven" / place / defect / f"{number:03d}.png", pictures[number])]
            if defect != "good":
                truth = folder / "woven" / "ground_truth" / defect / f"{number:03d}_mask.png"
                files.append((truth, masks[number].astype("uint8") * 255))
            for path, pixels in files:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


def write_weights(path: Path) -> None:
    """A ResNet-18 that is drawn, not trained: times do not depend on it."""
    from anomaly_lib.backbones.convnets import CONVNETS

    torch.manual_seed(0)
    torch.save(CONVNETS["resnet18"]().state_dict(), path)


@dataclass
class Spent:
    core: float
    wall: float
    said: str


def run(words: list[str]) -> Spent:
    """A process of its own, with one thread."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    began, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=env)
    after = os.times()
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
    core = after.children_user + after.children_system - before.children_user - before.children_system
    return Spent(core, time.perf_counter() - began, done.stdout)


def ours(model: str, work: Path, cache: str) -> list[str]:
    return [
        str(ROOT / "scripts" / "train_detector.py"), "--model", model, "--dataset", "mvtec",
        "--data-path", str(work / "data"), "--obj", "woven", "--backbone", "resnet18",
        "--weights", str(work / "resnet18.pth"), "--image-size", "224", "--no-figures", "--fresh",
        "--output-dir", str(work / model), "--cache-dir", str(work / cache),
    ]  # fmt: skip


def bench_command(model: str, work: Path, repeats: int) -> dict[str, Any]:
    """Cold (an empty store each time) and cached, beside anomalib, in turn."""
    theirs = [str(ROOT / "benchmarks" / "anomalib_command.py"), model, str(work / "data"), str(work / "resnet18.pth")]
    found: dict[str, list[Spent]] = {"cold": [], "cached": [], "anomalib": []}
    for turn in range(repeats):
        cache = f"cache-{model}-{turn}"
        for name, words in (
            ("cold", ours(model, work, cache)),
            ("cached", ours(model, work, cache)),
            ("anomalib", theirs),
        ):
            found[name].append(run(words))
            print(f"{model} {name}: {found[name][-1].core:.1f} core s, {found[name][-1].wall:.1f} s", flush=True)
    metrics = json.loads((work / model / "run.json").read_text())["metrics"]
    peer = json.loads(found["anomalib"][-1].said.splitlines()[-1])
    report: dict[str, Any] = {"core_seconds": {n: [one.core for one in some] for n, some in found.items()}}
    report["wall_seconds"] = {n: [one.wall for one in some] for n, some in found.items()}
    for name in ("cold", "cached"):
        ratios = [b.core / a.core for a, b in zip(found[name], found["anomalib"], strict=True)]
        report[f"ratio_{name}"] = {"median": median(ratios), "least": min(ratios), "most": max(ratios)}
    report["metrics"] = {ours: [metrics.get(ours), peer.get(theirs)] for ours, theirs in METRICS.items()}
    return report


def bench_predict(work: Path, repeats: int) -> dict[str, Any]:
    """`predict` of one file at a time against TorchInferencer, on our bank."""
    import anomaly_lib

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from anomalib.deploy import ExportType, TorchInferencer
    from anomalib.engine import Engine
    from anomalib_command import model_of

    detector = anomaly_lib.load(work / "patchcore" / "checkpoint.pt")
    model = model_of("patchcore", str(work / "resnet18.pth"))
    model.model.memory_bank = detector.model.bank.rows.clone()
    os.environ["TRUST_REMOTE_CODE"] = "1"  # its file is a pickle, written here
    exported = Engine().export(model, ExportType.TORCH, export_root=work / "exported")
    peer = TorchInferencer(exported, device="cpu")
    files = sorted((work / "data" / "woven" / "test").rglob("*.png"))[:16]
    score: dict[str, Callable[[], list[float]]] = {
        "here": lambda: [float(detector.predict(file).score[0]) for file in files],
        "anomalib": lambda: [float(peer.predict(file).pred_score.flatten()[0]) for file in files],
    }
    in_turn(score, repeats=1)
    turns = [in_turn(score, repeats=1) for _ in range(max(3, repeats))]
    ratios = [turn["anomalib"].core_seconds / turn["here"].core_seconds for turn in turns]
    pairs = zip(turns[0]["here"].value, turns[0]["anomalib"].value, strict=True)
    return {
        "bank": list(detector.model.bank.rows.shape),
        "core_seconds": {n: [turn[n].core_seconds / len(files) for turn in turns] for n in score},
        "ratio": {"median": median(ratios), "least": min(ratios), "most": max(ratios)},
        "largest_relative_difference": max(abs(a - b) / abs(b) for a, b in pairs),
    }


def bench(args: Args) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_images(work / "data", args.images, args.test_images)
        write_weights(work / "resnet18.pth")
        report: dict[str, Any] = {"machine": machine("anomalib"), "images": [args.images, args.test_images]}
        report["busy_machine"] = os.getloadavg()[0] > 1.5
        for model in args.models:
            report[model] = bench_command(model, work, args.repeats)
            print(
                model, {name: report[model][f"ratio_{name}"] for name in ("cold", "cached")}, report[model]["metrics"]
            )
        if "patchcore" in args.models:
            report["predict"] = bench_predict(work, args.repeats)
            print("predict", report["predict"])
    finish(report, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_detect.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
