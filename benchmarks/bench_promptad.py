"""How much of PromptAD's training is repeated work? The original's schedule against this library's recipe.

All times are processor seconds. On a busy machine set OMP_NUM_THREADS=1: waiting threads burn processor time too.

The reference repeats the same work in every epoch: one epoch is measured and multiplied. The recipe is measured cold,
warm and with more epochs, which gives what an image, an epoch and the rest cost. The agreement part runs both and
compares the final contexts; --quick does it over all epochs on a tiny CLIP.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import BenchmarkArgs, finish, machine
from promptad_reference import Reference
from safetensors.torch import save_file

from anomaly_lib.backbones.clip import create_clip
from anomaly_lib.command_line import command
from anomaly_lib.config import Switch, arg
from anomaly_lib.data.demo.items import write_demo
from anomaly_lib.data.images import read_mask
from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.engine.checkpoint import load_checkpoint
from anomaly_lib.models.promptad.prompts import PromptLearner
from anomaly_lib.models.promptad.states import class_text, state_templates
from anomaly_lib.systems.promptad.data import open_task
from anomaly_lib.systems.promptad.options import Args, SegArgs
from anomaly_lib.systems.promptad.train import train


@dataclass
class PromptADBenchmark(BenchmarkArgs):
    """PromptAD."""

    backbone: str = arg("ViT-B-16-plus-240", "CLIP by its name")
    epochs: int = arg(100, "epochs", at_least=1)
    resolution: int = arg(400, "side of the maps", at_least=8)
    test_images: int = arg(20, "test images measured; costs are per image", at_least=8)
    quick: Switch = arg(False, "tiny CLIP; agreement over all epochs")
    agree_epochs: int = arg(2, "epochs of the agreement check", at_least=1)
    parts: list[str] = arg(["speed", "agree"], "what is measured", choices=["speed", "agree"])


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of one call, all threads together: other work on the machine does not change it."""
    start = time.process_time()
    work()
    return time.process_time() - start


def options(args: Any, work: Path, task: str, k: int, name: str, **more: Any) -> Args:
    """The recipe's options for one run of the benchmark."""
    cls = Args if task == "cls" else SegArgs
    return cls(
        dataset="mvtec", data_path=str(work / "data"), obj="capsule", shot=k, shots="seed", epochs=args.epochs,
        backbone=args.backbone, weights=str(work / "weights.safetensors"), protocol="paper", select="last",
        resolution=args.resolution, output_dir=str(work / name), figures=False, cache="disk",
        cache_dir=str(work / more.pop("cache", name)), **more,
    )  # fmt: skip


def reference_of(args: Any, run: Args) -> tuple[Reference, list[Path], list[Path], np.ndarray, np.ndarray]:
    """The plain loop on the same weights, images and initial contexts as `run`."""
    data = open_task(run)
    clip = create_clip(args.backbone, weights=run.weights, layers=["pooled"])
    depth = clip.depth
    taps = sorted({max(0, round(share * depth) - 1) for share in (3 / 12, 8 / 12)})
    torch.manual_seed(run.seed)
    learner = PromptLearner(run, text=clip.text, class_name="capsule")
    loop = Reference(
        clip.clip, clip.text.tokenizer, words=class_text("capsule"), states=state_templates("capsule"), task=run.task,
        size=clip.image_size[0], normal=learner.normal_ctx, abnormal=learner.abnormal_ctx, taps=taps,
        resolution=args.resolution,
    )  # fmt: skip
    masks = [np.zeros((args.resolution,) * 2, bool) for _ in data.test]
    transform = ImageTransform(size=args.resolution, resize="stretch")
    for index, item in enumerate(data.test):
        if item.mask_path is not None:
            masks[index] = transform.mask(read_mask(item.mask_path), args.resolution).numpy()
    labels = np.array([item.label for item in data.test])
    return loop, [i.path for i in data.support], [i.path for i in data.test], labels, np.stack(masks)


def measured_reference(args: Any, run: Args) -> dict[str, float]:
    """Seconds of the published schedule: start + epochs * (train epoch + test epoch), from one measured epoch."""
    loop, support, test, labels, masks = reference_of(args, run)
    start = seconds(lambda: loop.start(support, args.epochs))
    train_epoch = min(seconds(lambda: loop.train_epoch(support)) for _ in range(2))
    test_image = seconds(lambda: loop.test_epoch(test, labels, masks)) / len(test)
    return {"start": start, "train_epoch": train_epoch, "test_image": test_image}


def measured_recipe(run: Args) -> dict[str, float]:
    """Seconds of the recipe: a start without features, an epoch, and what one image costs to encode.

    Run cold with few epochs, warm with as few, warm with more: the differences are the encoding and the epochs.
    """
    few, more = 2, 8
    cold = seconds(lambda: train(replace(run, epochs=few)))
    warm = seconds(lambda: train(replace(run, epochs=few, fresh=True)))
    longer = seconds(lambda: train(replace(run, epochs=more, fresh=True)))
    epoch = (longer - warm) / (more - few)
    images = run.shot + len(open_task(run).test)
    return {"start": warm - few * epoch, "epoch": epoch, "encode_image": (cold - warm) / images}


def schedule_seconds(reference: dict[str, float], epochs: int, images: int) -> float:
    """The published schedule: everything again in every epoch."""
    return reference["start"] + epochs * (reference["train_epoch"] + images * reference["test_image"])


def recipe_seconds(recipe: dict[str, float], epochs: int, images: int) -> float:
    """The recipe: every image once, then epochs of the text tower."""
    return recipe["start"] + epochs * recipe["epoch"] + images * recipe["encode_image"]


def contexts(folder: Path) -> dict[str, torch.Tensor]:
    """What a run has learned."""
    model = load_checkpoint(folder / "checkpoint.pt")["model"]
    return {name: model[f"learner.{name}_ctx"] for name in ("normal", "abnormal")}


def agreement(args: Any, work: Path, epochs: int) -> dict[str, float]:
    """Largest difference of contexts and metric after `epochs` epochs of both, in float32."""
    found = {}
    for task in ("cls", "seg"):
        run = replace(options(args, work, task, 2, f"agree_{task}", cache="agree"), epochs=epochs)
        result = train(run)
        loop, support, test, labels, masks = reference_of(args, run)
        loop.start(support, epochs)
        for _ in range(epochs):
            loop.train_epoch(support)
        learned = contexts(Path(run.output_dir or ""))
        difference = max(float((learned[n] - getattr(loop, n).detach()).abs().max()) for n in learned)
        moved = float((loop.normal - reference_of(args, run)[0].normal).detach().abs().max())
        found |= {f"{task}_context_difference": difference, f"{task}_context_movement": moved}
        metric = result.metrics["image_auroc" if task == "cls" else "pixel_auroc"]
        found[f"{task}_metric_difference"] = abs(metric - loop.test_epoch(test, labels, masks))
    return found


def bench(args: PromptADBenchmark) -> None:
    """Measure, print, write."""
    if args.quick:
        args.backbone, args.resolution, args.agree_epochs = "tiny-clip", 64, args.epochs
    report: dict[str, Any] = {"benchmark": "promptad", "machine": machine("open_clip_torch", "scikit-learn")}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        good = max(2, args.test_images - 6)
        write_demo(work / "data", categories=["capsule"], train=8, test_good=good, per_defect=1)
        clip = create_clip(args.backbone, weights="random", layers=["pooled"]).clip
        save_file({name: t.contiguous() for name, t in clip.state_dict().items()}, str(work / "weights.safetensors"))
        del clip
        report |= {"backbone": args.backbone, "weights": "random", "epochs": args.epochs, "unit": "processor seconds"}
        if "speed" in args.parts:
            report["speed"] = speed(args, work)
            print(json.dumps(report["speed"], indent=1))
        if "agree" in args.parts:
            report["agreement"] = {"epochs": args.agree_epochs, **agreement(args, work, args.agree_epochs)}
            print(json.dumps(report["agreement"], indent=1))
    finish(report, args.output)


def speed(args: Any, work: Path) -> dict[str, Any]:
    """One cold cls run (k = 4, float32), and the six runs of a class (k = 1, 2, 4 x cls, seg) with bf16 towers.

    Costs hardly depend on k, so k = 4 stands for all three; the six runs share the encoded test images.
    """
    found: dict[str, Any] = {"measured_test_images": args.test_images, "for_test_images": 80}

    def note(name: str, value: dict[str, float]) -> dict[str, float]:
        found[name] = value
        print(name, json.dumps(value), flush=True)
        return value

    run = options(args, work, "cls", 4, "cls_fp32")
    fp32 = note("recipe_cls_fp32", measured_recipe(run))
    cls = note("reference_cls", measured_reference(args, run))
    theirs, ours = schedule_seconds(cls, args.epochs, 80), recipe_seconds(fp32, args.epochs, 84)
    note("one_cls_run", {"schedule": theirs, "recipe": ours, "ratio": theirs / ours})
    bf16 = note(
        "recipe_cls_bf16", measured_recipe(options(args, work, "cls", 4, "cls_bf16", cache="six", precision="bf16"))
    )
    seg16 = note(
        "recipe_seg_bf16", measured_recipe(options(args, work, "seg", 4, "seg_bf16", cache="six", precision="bf16"))
    )
    seg = note("reference_seg", measured_reference(args, options(args, work, "seg", 4, "seg_bf16")))
    theirs = 3 * sum(schedule_seconds(one, args.epochs, 80) for one in (cls, seg))
    ours = 3 * sum(recipe_seconds(one, args.epochs, 0) for one in (bf16, seg16)) + 84 * bf16["encode_image"]
    note("six_runs", {"schedule": theirs, "recipe_bf16": ours, "ratio": theirs / ours})
    metrics = [json.loads((work / name / "run.json").read_text())["metrics"] for name in ("cls_fp32", "cls_bf16")]
    note("bf16_auroc_difference", {"cls": abs(metrics[0]["image_auroc"] - metrics[1]["image_auroc"])})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    return command(PromptADBenchmark, bench, argv, prog="bench_promptad.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
