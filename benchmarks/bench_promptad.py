"""How much of PromptAD's training is repeated work? The original's schedule against this library's recipe.

All times are processor seconds (sum over threads), so that a busy machine does not distort the ratio.

The reference repeats the same work in every epoch, so one epoch of it is measured and multiplied; the recipe is
measured from a cold start to the last metric. The agreement part runs both and compares the final contexts; --quick
does it over all epochs on a tiny CLIP.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import finish, machine, parser
from promptad_reference import Reference
from safetensors.torch import save_file

from anomaly_lib.backbones.clip import create_clip
from anomaly_lib.data.demo import write_demo
from anomaly_lib.data.images import read_mask
from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.engine.checkpoint import load_checkpoint
from anomaly_lib.models.promptad_prompts import PromptLearner
from anomaly_lib.models.promptad_states import class_text, state_templates
from anomaly_lib.recipes.promptad import train
from anomaly_lib.recipes.promptad_data import open_task
from anomaly_lib.recipes.promptad_options import Args, SegArgs, resolve


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
    data = open_task(resolve(run))
    clip = create_clip(args.backbone, weights=run.weights, layers=["pooled"])
    depth = clip.depth
    taps = sorted({max(0, round(share * depth) - 1) for share in (3 / 12, 8 / 12)})
    torch.manual_seed(run.seed)
    learner = PromptLearner(
        clip.text, class_text=class_text("capsule"), states=state_templates("capsule"), n_pro=run.n_pro
    )
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
    start = seconds(lambda: loop.start(support, run.epochs))
    train_epoch = seconds(lambda: loop.train_epoch(support))
    train_epoch = min(train_epoch, seconds(lambda: loop.train_epoch(support)))
    test_epoch = seconds(lambda: loop.test_epoch(test, labels, masks))
    total = start + run.epochs * (train_epoch + test_epoch)
    return {"train_epoch_seconds": train_epoch, "test_epoch_seconds": test_epoch, "schedule_seconds": total}


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


def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__ or "")
    flags.add_argument("--backbone", default="ViT-B-16-plus-240")
    flags.add_argument("--epochs", type=int, default=100)
    flags.add_argument("--resolution", type=int, default=400)
    flags.add_argument("--quick", action="store_true", help="tiny CLIP; agreement over all epochs")
    flags.add_argument("--agree-epochs", type=int, default=2, help="epochs of the agreement check")
    flags.add_argument("--parts", nargs="+", default=["single", "six", "agree"], choices=["single", "six", "agree"])
    args = flags.parse_args()
    if args.quick:
        args.backbone, args.resolution, args.agree_epochs = "tiny-clip", 64, args.epochs
    report: dict[str, Any] = {"benchmark": "promptad", "machine": machine("open_clip_torch", "scikit-learn")}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_demo(work / "data", categories=["capsule"], train=8, test_good=50, per_defect=5)
        clip = create_clip(args.backbone, weights="random", layers=["pooled"]).clip
        save_file({name: t.contiguous() for name, t in clip.state_dict().items()}, str(work / "weights.safetensors"))
        del clip
        report |= {"backbone": args.backbone, "weights": "random", "epochs": args.epochs, "test_images": 80}
        if "single" in args.parts:
            ours = seconds(lambda: train(options(args, work, "cls", 4, "single")))
            theirs = measured_reference(args, options(args, work, "cls", 4, "single"))
            report["cls_k4_fp32"] = {**theirs, "recipe_seconds": ours, "ratio": theirs["schedule_seconds"] / ours}
            print(json.dumps(report["cls_k4_fp32"], indent=1))
        if "six" in args.parts:
            report["six_runs_bf16"] = six_runs(args, work)
            print(json.dumps(report["six_runs_bf16"], indent=1))
        if "agree" in args.parts:
            report["agreement"] = {"epochs": args.agree_epochs, **agreement(args, work, args.agree_epochs)}
            print(json.dumps(report["agreement"], indent=1))
    finish(report, args.output)


def six_runs(args: Any, work: Path) -> dict[str, float]:
    """k = 1, 2, 4 for both tasks with bf16 towers and shared features; the reference schedule is that of float32.

    Every epoch of the recipe costs the same too: it is run with few epochs twice, and the difference is multiplied.
    """
    few, more = 2, 8
    ours, theirs, difference, encode = 0.0, 0.0, 0.0, 0.0
    for task in ("cls", "seg"):
        for k in (1, 2, 4):
            run = replace(options(args, work, task, k, f"six_{task}_{k}", cache="six", precision="bf16"), epochs=few)
            cold = seconds(lambda run=run: train(run))  # type: ignore[misc]
            start = seconds(lambda run=run: train(replace(run, fresh=True)))  # type: ignore[misc]
            longer = seconds(lambda run=run: train(replace(run, fresh=True, epochs=more)))  # type: ignore[misc]
            ours += cold + (args.epochs - few) * (longer - start) / (more - few)
            encode += cold - start
            if k == 4:  # the reference's cost hardly depends on k: measured once a task
                theirs += 3 * measured_reference(args, replace(run, epochs=args.epochs))["schedule_seconds"]
                exact = train(replace(options(args, work, task, k, f"fp32_{task}", cache="fp32"), epochs=more))
                halved = json.loads((Path(run.output_dir or "") / "run.json").read_text())["metrics"]
                name = "image_auroc" if task == "cls" else "pixel_auroc"
                difference = max(difference, abs(exact.metrics[name] - halved[name]))
    return {
        "schedule_seconds": theirs,
        "recipe_seconds": ours,
        "of_which_encoding": encode,
        "ratio": theirs / ours,
        "largest_auroc_difference_to_fp32": difference,
    }


if __name__ == "__main__":
    main()
