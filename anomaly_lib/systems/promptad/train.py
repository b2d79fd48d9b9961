"""PromptAD: learn a few prompt contexts from k normal images, remember their patches, fuse both opinions.

Frozen towers run once per image (feature store); an epoch is one pass of the text tower over the prompts' token tree.
The fusion mode is no part of the loss: it scores, and under --select val|best-on-test it chooses the epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.backbones.identity import weight_remarks
from anomaly_lib.data import Item
from anomaly_lib.data.base import load_pixels
from anomaly_lib.detect.contract import EvaluateArgs, Evaluation
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import TrainState
from anomaly_lib.engine.distributed import single_process_only
from anomaly_lib.engine.optim import NonFiniteGuard, step
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.errors import UserError
from anomaly_lib.models.promptad.model import PromptAD
from anomaly_lib.models.promptad.scores import Branches, ImageFeatures, ScoreSettings, branch_scores, concatenate
from anomaly_lib.systems.promptad.data import (
    TaskData,
    open_task,
    synthetic_anomalies,
    test_items,
    truth_of,
    with_views,
)
from anomaly_lib.systems.promptad.detector import (
    SYSTEM,
    Decision,
    Detector,
    facts_of,
    load_detector,
    make_model,
    plain_branches,
)
from anomaly_lib.systems.promptad.eval import (
    fit_support,
    image_scores,
    left_out_branches,
    selection_value,
    settings_of,
    test_metrics,
)
from anomaly_lib.systems.promptad.features import Towers
from anomaly_lib.systems.promptad.options import Args, resolve
from anomaly_lib.types import Prediction, RunResult

SYNTHETIC_PER_IMAGE = 12


def tiny() -> Args:
    """Seconds on a CPU: a tiny random CLIP, two epochs, small maps."""
    return Args(backbone="tiny-clip", weights="random", epochs=2, resolution=64, cache="ram", figures=False)


@dataclass
class Experiment:
    """Everything one run works with, made by `build`."""

    args: Args
    data: TaskData
    towers: Towers
    support: ImageFeatures
    model: PromptAD
    memory_images: int


def build(args: Args, device: torch.device, data: TaskData | None = None) -> Experiment:
    """Data, frozen towers, support features and the model with its memory filled."""
    args = resolve(args)
    data = open_task(args) if data is None else data
    towers = Towers(args, device)
    support = towers.features(data.support, test=False)
    views = with_views(data.support, args.memory_views)
    memory = concatenate([support, towers.features(views, test=False)]) if views else support
    model = make_model(args, towers, data.class_name, len(memory))
    model.remember(memory.gallery_rows())
    return Experiment(args, data, towers, support, model, len(memory))


def train(args: Args) -> RunResult:
    """Fit the contexts, score the test set once, leave checkpoint, metrics and figures in the run folder."""
    args = resolve(args)
    device = pick_device(args.device)
    single_process_only("PromptAD", "scripts/promptad/train_harmonic.sh --gpus 0 1 gives every device its own runs")
    data = open_task(args)
    with Run.open(SYSTEM, args, name=f"{args.dataset}-{data.class_name}-k{args.shot}-{args.task}") as run:
        if run.finished:
            result = replace(run.result(), already_done=True)
            run.log.line(f"already done ({run.dir}): {shown(result.metrics)}; --fresh starts over")
            return result
        say_what_runs(run.log.line, args, data)
        run.note(support=data.chosen, skipped=data.skipped)
        experiment = build(args, device, data)
        run.note(weights=experiment.towers.weights)
        model, towers = experiment.model, experiment.towers
        features = experiment.support.for_task(args.task)  # [k, D] or [k, P, D]
        optimizer = torch.optim.SGD(
            model.learner.parameters(), lr=args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay
        )
        scheduler = make_schedule(optimizer, "cosine", args.epochs, min_lr=args.min_lr)
        scaler, guard = make_scaler(device, args.precision), NonFiniteGuard()
        state = TrainState(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler)
        judge = make_judge(experiment)

        for epoch in range(run.restore(state), args.epochs):
            values: dict[str, float] = {}
            for rows in torch.arange(len(features)).split(args.batch_size):
                with autocast_for(device, args.precision):
                    losses = model.losses(features[rows], towers.text)
                    total = torch.stack(list(losses.values())).sum()
                report = step(total, optimizer, scaler=scaler, clip=args.grad_clip, guard=guard)
                values = {name: value.item() for name, value in losses.items()}
                values |= {"loss": total.item(), "grad_norm": report.grad_norm}
            values["lr"] = optimizer.param_groups[0]["lr"]
            scheduler.step()
            if judge is not None and (args.select != "last" or (epoch + 1) % args.eval_every == 0):
                values[judge.name] = judge(model, towers)
                keep_if_better(state, model, epoch, values[judge.name], args.select)
            run.end_epoch(state, epoch, values)

        return finish(run, state, experiment)


# -- selection ------------------------------------------------------------------------------------------------------


@dataclass
class Judge:
    """Scores the present contexts on a fixed set of images whose features are known."""

    name: str
    features: ImageFeatures
    visual: Branches  # its visual part never changes
    settings: ScoreSettings
    labels: Tensor
    masks: Tensor | None

    def __call__(self, model: PromptAD, towers: Towers) -> float:
        model.keep_text_features(towers.text)
        textual = model.textual(self.features.for_task(self.settings.task)).reshape(self.visual.textual.shape)
        return selection_value(replace(self.visual, textual=textual), self.settings, self.labels, self.masks)


def make_judge(experiment: Experiment) -> Judge | None:
    """The test set (best-on-test, or --eval-every), support images with pasted defects (val), or nobody (last)."""
    args, data, towers = experiment.args, experiment.data, experiment.towers
    if args.select == "val":
        good = with_views(data.support, "mild")
        items = good + synthetic_anomalies(data.support, SYNTHETIC_PER_IMAGE, args.seed)
        name, test = "val", False
    elif args.select == "best-on-test" or args.eval_every:
        items, name, test = data.test, "test", True
    else:
        return None
    features = towers.features(items, test=test)
    labels, masks = truth_of(items, towers.transform(test=test), args.resolution)
    settings = fitted_settings(experiment)[0]
    visual = branch_scores(experiment.model, features, settings)
    measure = "image_auroc" if args.task == "cls" else "pixel_auroc"
    return Judge(f"{name}_{measure}", features, visual, settings, labels, masks)


def keep_if_better(state: TrainState, model: PromptAD, epoch: int, value: float, select: str) -> None:
    """Remember the contexts of the best epoch: the first best on the test set (as published), the last best on val."""
    best = state.best.get("value")
    if best is None or value > best or (select == "val" and value == best):
        contexts = {name: tensor.detach().clone() for name, tensor in model.learner.state_dict().items()}
        state.best = {"value": float(value), "epoch": epoch, "contexts": contexts}


# -- the end of a run -----------------------------------------------------------------------------------------------


def fitted_settings(experiment: Experiment) -> tuple[ScoreSettings, Branches]:
    """Score settings with support references under the present contexts, and the branch scores they come from."""
    args, towers, support = experiment.args, experiment.towers, experiment.support
    alone = args.shot == 1 or len(support) == 1
    views = towers.features(with_views(experiment.data.support, "mild"), test=False) if alone else None
    settings = settings_of(args)
    normal = left_out_branches(experiment.model, support, views, settings)
    return fit_support(settings, normal, args.calibration), normal


def finish(run: Run, state: TrainState, experiment: Experiment) -> RunResult:
    """Choose the contexts, fit the threshold, score the test set, write the checkpoint that inference uses."""
    args, data, towers, model = experiment.args, experiment.data, experiment.towers, experiment.model
    last = {name: tensor.clone() for name, tensor in model.learner.state_dict().items()}
    chosen = args.select != "last" and bool(state.best)
    if chosen:
        model.learner.load_state_dict(state.best["contexts"])
    model.keep_text_features(towers.text)
    settings, normal = fitted_settings(experiment)
    facts = facts_of(args, data.class_name, experiment.memory_images)
    state.extra = {**facts, "support": data.chosen, "normal": plain_branches(normal)}
    detector = Detector(model, towers, settings, normal, state.extra, args)

    features = towers.features(data.test, test=True, notice=run.log.line)
    labels, masks = truth_of(data.test, towers.transform(test=True), args.resolution)
    branches = branch_scores(model, features, settings)
    prediction, metrics = test_metrics(branches, settings, labels, masks, detector.threshold)
    metrics["threshold"] = detector.threshold
    report_lines(run.log.line, args, metrics, state, weight_remarks(towers.weights))
    if args.figures:
        run.note(figures=[path.name for path in draw(run.dir, data.test, prediction, labels, detector.threshold)])
    final = run.save(state, len(state.history), "best_model.pt") if chosen else None
    if chosen:
        model.learner.load_state_dict(last)
    result = run.finish(state, metrics, final=final)
    run.log.line(f"results in {run.dir}, checkpoint {result.checkpoint}")
    return result


def say_what_runs(line: Callable[[str], None], args: Args, data: TaskData) -> None:
    """One line on built-in data or weights, one on the task."""
    if args.data_path is None and args.dataset == "demo":
        line("no --data-path: running on the built-in demo data (see --dataset, --data-path, --backbone for real ones)")
    line(f"PromptAD {args.task}: {data.class_name}, k={args.shot} ({data.chosen['how']}), {len(data.test)} test images")


def report_lines(
    line: Callable[[str], None], args: Args, metrics: dict[str, float], state: TrainState, notes: list[str]
) -> None:
    """The figures of this run; a selection on the test set is called an oracle."""
    oracle = ["oracle: epoch chosen on the test set"] if args.select == "best-on-test" else []
    remarks = "".join(f" [{note}]" for note in [*oracle, *notes])
    if state.best and args.select != "last":
        line(f"kept epoch {state.best['epoch'] + 1} ({args.select}, fusion {args.fusion_mode})")
    line(f"fusion {args.fusion_mode}: {shown(metrics)}{remarks}")


def shown(metrics: dict[str, float]) -> str:
    """The ranking figures on one line."""
    kept = [f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith(("auroc", "aupro", "ap"))]
    return ", ".join(kept)


def draw(folder: Path, items: list[Item], prediction: Prediction, labels: Tensor, threshold: float) -> list[Path]:
    """Score histogram and overlays of the test images, most anomalous defects and most suspicious normal ones."""
    from anomaly_lib.viz import overlay_grid, save_figure, score_histogram

    histogram = score_histogram(prediction.score, labels, threshold=threshold)
    order = prediction.score.cpu().argsort(descending=True)
    shown = [int(i) for i in order[labels[order] == 1]][::6][:8] + [int(i) for i in order[labels[order] == 0]][:4]
    assert prediction.map is not None
    pictures = [load_pixels(items[i]) for i in shown]
    grid = overlay_grid(
        [image for image, _ in pictures],
        [prediction.map[i] for i in shown],
        masks=[mask for _, mask in pictures],
        titles=[f"{items[i].defect} {float(prediction.score[i]):.3g}" for i in shown],
    )
    return [*save_figure(histogram, folder / "scores.png"), *save_figure(grid, folder / "maps.png")]


# -- use ------------------------------------------------------------------------------------------------------------


def predict(model: Detector, batch: Any) -> Decision:
    """Scores, maps and decisions of a batch of pictures, files or transformed tensors."""
    return model.predict(batch)


def evaluate(checkpoint: Path, args: EvaluateArgs) -> Evaluation:
    """Score the test split of a checkpoint's class (or of other data of that class) with its stored fusion."""
    detector = load_detector(checkpoint, device=args.device)
    facts, towers = detector.facts, detector.towers
    options = replace(
        detector.args,
        dataset=args.dataset or detector.args.dataset,
        data_path=args.data_path or detector.args.data_path,
        obj=args.obj or facts["class_name"],
        on_error=args.on_error,
    )
    if args.split != "test":
        raise UserError(f"--split {args.split}: PromptAD is scored on the test split only")
    items = test_items(options)
    features = towers.features(items, test=True)
    labels, masks = truth_of(items, towers.transform(test=True), options.resolution)
    branches = detector.branches(features)
    prediction, metrics = test_metrics(branches, detector.settings, labels, masks, detector.threshold)
    notes = ["oracle: epoch chosen on the test split"] if facts["select"] == "best-on-test" else []
    return Evaluation(
        system=SYSTEM,
        name=f"{options.dataset} {facts['class_name']} k={options.shot} {options.task}",
        metrics=metrics,
        scores=prediction.score.cpu().numpy(),
        labels=labels.numpy(),
        paths=[item.path.as_posix() for item in items],
        groups=[item.class_name for item in items],
        defects=[item.defect for item in items],
        maps=None if prediction.map is None else prediction.map.cpu().numpy(),
        masks=None if masks is None else masks.numpy(),
        image=lambda index: detector.transform.denormalise(detector.transform(load_pixels(items[index])[0])),
        normal_scores=image_scores(detector.normal, detector.settings).cpu().numpy(),
        threshold=detector.threshold,
        notes=notes + weight_remarks(towers.weights),
        facts={"epochs": options.epochs, "seed": options.seed, "fusion": detector.settings.fusion},
    )


__all__ = ["Args", "build", "evaluate", "load_detector", "predict", "tiny", "train"]
