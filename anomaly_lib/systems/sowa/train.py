"""SOWA: hierarchical frozen window attention, trained on classes with masks, tested on classes never seen.

CLIP runs once per image (feature store); an epoch touches the adapters, the prompts and the linear map only.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from anomaly_lib.backbones.identity import weight_remarks, weights_of
from anomaly_lib.data import Item, class_names
from anomaly_lib.data.base import load_pixels
from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import TrainState
from anomaly_lib.engine.distributed import single_process_only
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.metrics import auroc, f1_max_threshold
from anomaly_lib.models.sowa.model import AnomalyCLIP
from anomaly_lib.models.sowa.scores import Memory, detect
from anomaly_lib.systems.sowa.data import Taps, TestData, open_test, open_train, shortened, support_items, with_mosaics
from anomaly_lib.systems.sowa.eval import (
    SYSTEM,
    Detector,
    class_metrics,
    evaluate,
    load_detector,
    make_clip,
    make_model,
    make_taps,
    metric_table,
    remember,
    score_items,
    stage_ablation,
)
from anomaly_lib.systems.sowa.fit import Fitter, TrainingSet, best_epochs, calibrate, make_optimizer, transfer_curves
from anomaly_lib.systems.sowa.options import Args, resolve
from anomaly_lib.types import Prediction, RunResult


def tiny() -> Args:
    """Seconds on a CPU: a tiny random CLIP, two demo classes, one batch of each."""
    return Args(
        backbone="tiny-clip", weights="random", train_classes=["woven"], test_classes=["grid"], epochs=2,
        fast_dev_run=True, shot=2, cache="ram", figures=False,
    )  # fmt: skip


@dataclass
class Experiment:
    """Everything one run works with, made by `build`."""

    args: Args
    train: list[Item]
    test: TestData
    taps: Taps
    model: AnomalyCLIP


def build(args: Args, device: torch.device, say: Callable[[str], None] = lambda _: None) -> Experiment:
    """Data, the frozen tower with its store, and the model."""
    args = resolve(args)
    train_items, skipped = open_train(args)
    test = open_test(args)
    if args.fast_dev_run:
        train_items = shortened(train_items, args.batch_size)
    test.skipped.extend(skipped)
    mosaics = with_mosaics(train_items, args.mosaic_rate or 0.0, label=str(args.mosaic_label), seed=args.seed)
    clip = make_clip(args)
    clip.to(device)
    return Experiment(args, mosaics, test, make_taps(args, clip, say), make_model(args, clip))


def train(args: Args) -> RunResult:
    """Fit adapters and prompts, score the test classes, leave checkpoint, metrics and figures in the run folder."""
    args = resolve(args)
    device = pick_device(args.device)
    single_process_only("SOWA", "scripts/sweep.py --gpus 0,1 runs several trainings side by side")
    with Run.open(SYSTEM, args, name=f"{args.dataset}-{args.adapter}-k{args.shot}") as run:
        if run.finished:
            return replace(run.result(), already_done=True)
        experiment = build(args, device, run.log.line)
        model, taps, items = experiment.model, experiment.taps, experiment.train
        announce(run, experiment)
        keys = taps.fill([*items, *experiment.test.items])[: len(items)]
        data = TrainingSet.of(items, keys, taps)
        epochs = chosen_epochs(run, experiment, data)

        optimizer = make_optimizer(model, args)
        scheduler = make_schedule(optimizer, args.schedule, args.epochs)
        fitter = Fitter(model, taps, optimizer, args)
        state = TrainState(model=model, optimizer=optimizer, scheduler=scheduler, scaler=fitter.scaler)
        first = run.restore(state)
        if first == 0 and args.epochs:
            calibrate(model, taps, data, torch.arange(len(items)), args)
        for epoch in range(first, epochs):
            values = fitter.epoch(data, torch.arange(len(items)), epoch)
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(values["loss"])
            else:
                scheduler.step()
            if args.select == "best-on-test":
                values["selection"] = selection_value(experiment)
                keep_if_better(state, model, epoch, values["selection"])
            run.end_epoch(state, epoch, values)

        say_times(run, state, len(items))
        return finish(run, state, experiment)


def announce(run: Run, experiment: Experiment) -> None:
    """What is trained on what, and what the stored taps will take, before anything long starts."""
    args, taps, say = experiment.args, experiment.taps, run.log.line
    if args.data_path is None and args.dataset == "demo":
        say("no --data-path: running on the built-in demo data (see --dataset, --data-path, --backbone for real ones)")
    trained, tested = class_names(experiment.train), class_names(experiment.test.items)
    say(f"train on {', '.join(trained)} ({len(experiment.train)} images), test on {', '.join(tested)}, k={args.shot}")
    count = sum(p.numel() for p in experiment.model.parameters())
    images = len(experiment.train) + len(experiment.test.items) + args.shot * len(tested)
    size = images * taps.row_bytes / 2**20
    place = "on disk" if taps.store.on_disk else "in memory"
    seconds = seconds_per_image(taps, experiment.train)
    run.note(weights=weights_of(taps.clip))
    run.note(
        trained_values=count, train_classes=trained, test_classes=tested, skipped=experiment.test.skipped,
        tap_mib=round(size, 1), seconds_per_image=seconds,
    )  # fmt: skip
    if args.vision == "residual":
        say(f"{count:,} trained values; nothing stored: the adapted tower runs in every step")
        return
    say(
        f"{count:,} trained values; taps of {images} images take {size:.0f} MiB {place} ({args.layers_dtype}), about "
        f"{seconds * images:.0f} s to encode once; without the store every epoch would take "
        f"{seconds * len(experiment.train):.0f} s more"
    )


def seconds_per_image(taps: Taps, items: Sequence[Item], *, count: int = 4) -> float:
    """What reading and encoding an image takes here, without the store."""
    some = [taps.transform(load_pixels(item)[0]) for item in items[:1]]
    batch = torch.stack(some * count).to(next(taps.clip.parameters()).device)
    taps.clip.encode(batch[:1])  # the first call also loads kernels
    started = time.monotonic()
    for item in items[:count]:
        taps.transform(load_pixels(item)[0])
    taps.clip.encode(batch)
    return (time.monotonic() - started) / count


def say_times(run: Run, state: TrainState, images: int) -> None:
    """How long an epoch over ``images`` took, and what it would take without the store."""
    seconds = [row["seconds"] for row in state.history if "seconds" in row]
    if not seconds or run.args.vision == "residual":
        return
    cached = sum(seconds) / len(seconds)
    uncached = cached + run.record["seconds_per_image"] * images
    run.log.line(f"an epoch {cached:.1f} s from stored taps, {uncached:.1f} s without the store")
    run.note(seconds_epoch=round(cached, 3), seconds_uncached=round(uncached, 3))


# -- selection ---------------------------------------------------------------------------------------------------------


def chosen_epochs(run: Run, experiment: Experiment, data: TrainingSet) -> int:
    """--epochs, or under --select val the part of them that helps training classes left out in turn."""
    args, names = experiment.args, class_names(data.items)
    if args.select != "val" or not args.epochs or args.fast_dev_run:
        return args.epochs
    if len(names) == 1:
        run.log.line(f"one training class ({names[0]}): none can be left out, all {args.epochs} epochs are trained")
        return args.epochs
    if "transfer" not in run.record:
        started = time.monotonic()
        curves = transfer_curves(experiment.taps.clip, experiment.taps, data, args)
        run.note(transfer=curves, seconds_transfer=round(time.monotonic() - started, 1))
    curves = run.record["transfer"]
    best = best_epochs(curves)
    shown = ", ".join(f"{100 * sum(values) / len(values):.1f}" for values in zip(*curves.values(), strict=True))
    run.log.line(f"AUROC on training classes left out in turn, after 0..{args.epochs} epochs: {shown}; training {best}")
    return best


def selection_value(experiment: Experiment) -> float:
    """Image AUROC of the test set: an oracle."""
    items = experiment.test.items
    prediction = score_items(experiment.model, experiment.taps, items, {}, experiment.args)
    return auroc(prediction.score, torch.tensor([item.label for item in items]))


def keep_if_better(state: TrainState, model: AnomalyCLIP, epoch: int, value: float) -> None:
    """Remember the weights of the best epoch; of equal ones the first."""
    if not state.best or value > state.best["value"]:
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        state.best = {"value": value, "epoch": epoch, "model": weights}


# -- the end of a run --------------------------------------------------------------------------------------------------


def finish(run: Run, state: TrainState, experiment: Experiment) -> RunResult:
    """Choose the weights, fill the memories, fix the threshold, score the test classes, write the checkpoint."""
    args, model, taps, test = experiment.args, experiment.model, experiment.taps, experiment.test
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chosen = args.select == "best-on-test" and bool(state.best)
    if chosen:
        model.load_state_dict(state.best["model"])
        run.log.line(f"kept epoch {state.best['epoch'] + 1} ({args.select})")
    support = support_items(test.normal, args.shot, args.seed) if args.shot else {}
    memories = remember(model, taps, support)
    prediction = score_items(model, taps, test.items, memories, args)
    truth = [taps.mask(item) for item in test.items]
    rows = class_metrics(prediction, test.items, truth)
    notes = ["oracle: epoch chosen on the test classes"] if args.select == "best-on-test" else []
    if memories and args.score_scaling == "transductive":
        notes.append("transductive: image scores are scaled over the test set")
    notes += weight_remarks(weights_of(taps.clip))
    table = metric_table(rows, notes)
    table.write(run.dir / "classes")
    epochs: list[dict[str, Cell]] = [dict(row) for row in state.history]
    if epochs:
        Table([*epochs[0]], epochs).write(run.dir / "epochs")
    run.log.line(table.text(digits=1))
    if args.ablate_stages:
        alone = metric_table(stage_ablation(model, taps, test.items, memories, args, truth), notes)
        alone.write(run.dir / "stages")
        run.log.line(alone.text(digits=1))
    threshold = decision_threshold(experiment, memories, support)
    state.extra = {
        "threshold": threshold,
        "memories": {name: memory.state() for name, memory in memories.items()},
    }
    run.note(support={name: [item.path.as_posix() for item in items] for name, items in support.items()}, classes=rows)
    if args.figures:
        run.note(figures=[path.name for path in draw(run.dir, experiment, prediction)])
    final = run.save(state, len(state.history), "best_model.pt") if chosen else None
    if chosen:
        model.load_state_dict(last)
    return run.finish(state, {**rows["mean"], "threshold": threshold}, final=final)


def decision_threshold(experiment: Experiment, memories: dict[str, Memory], support: dict[str, list[Item]]) -> float:
    """Few-shot: the largest score a support image may be expected to reach. Zero-shot: the best-F1 one in training."""
    args, model, taps = experiment.args, experiment.model, experiment.taps
    if not memories:
        found = score_items(model, taps, experiment.train, {}, args)
        labels = torch.tensor([item.label for item in experiment.train])
        return f1_max_threshold(found.score, labels) if 0 < int(labels.sum()) < len(labels) else float("nan")
    probabilities = [score_items(model, taps, items, {}, args).score for items in support.values()]
    # A normal image reaches the memory's reference, which scales to 1/2.
    return float((torch.cat(probabilities).amax() + 0.5) / 2)


def draw(folder: Path, experiment: Experiment, prediction: Prediction) -> list[Path]:
    """(image, truth, heat map) of the most and least suspicious test images, and where each stage looks."""
    from anomaly_lib.viz import overlay_grid, save_figure

    items, model, taps = experiment.test.items, experiment.model, experiment.taps
    assert prediction.map is not None
    order = [int(i) for i in prediction.score.argsort(descending=True)]
    shown = [i for i in order if items[i].label == 1][::5][:8] + [i for i in order if items[i].label == 0][:4]
    seen = [taps.transform.denormalise(taps.transform(load_pixels(items[i])[0])) for i in shown]
    figure = overlay_grid(
        seen,
        [prediction.map[i] for i in shown],
        masks=[taps.mask(items[i]) for i in shown],
        titles=[f"{items[i].class_name} {items[i].defect} {float(prediction.score[i]):.2f}" for i in shown],
    )
    written = save_figure(figure, folder / "maps.png")
    stages = model.stage_attention(taps.rows(taps.fill([items[shown[0]]])))
    if stages:
        names = [f"stage {number} ({name})" for number, name in enumerate(model.visual_encoder.tap_names, start=1)]
        looks = overlay_grid(
            [seen[0]] * len(stages), [stage[0] for stage in stages], titles=names, caption="attention received"
        )
        written += save_figure(looks, folder / "stages.png")
    return written


@torch.no_grad()
def predict(model: Experiment | Detector, batch: dict[str, Tensor]) -> Prediction:
    """Score a batch {"image": [B, 3, H, W], "class_name": [...]}, zero-shot or with a detector's memories."""
    if isinstance(model, Detector):
        return model.predict(batch["image"])
    clip = model.taps.clip
    model.model.eval()
    names = list(batch.get("class_name", [""] * len(batch["image"])))
    taps = model.model.visual_encoder.observe(batch["image"].to(next(clip.parameters()).device))
    return detect(model.model, taps, names, sigma=model.args.sigma, image_score=str(model.args.image_score))


__all__ = ["Args", "build", "evaluate", "load_detector", "predict", "tiny", "train"]
