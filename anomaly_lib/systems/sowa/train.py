"""SOWA: hierarchical frozen window attention, trained on classes with masks, tested on classes never seen.

CLIP runs once per image (feature store); an epoch touches the adapters, the prompts and the linear map only.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.backbones.sources import demo_clip_offered
from anomaly_lib.data import Item, class_names
from anomaly_lib.data.base import load_pixels
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import TrainState
from anomaly_lib.engine.distributed import epoch_batches, single_process_only
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.engine.optim import step
from anomaly_lib.engine.resume import resumed
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.engine.words import data_in_words
from anomaly_lib.metrics import auroc, pixel_auroc
from anomaly_lib.models.sowa.model import AnomalyCLIP
from anomaly_lib.systems.sowa.data import (
    TestData,
    data_fingerprint,
    open_normal,
    open_test,
    open_train,
    shortened,
    tested_classes,
    tested_place,
    with_mosaics,
)
from anomaly_lib.systems.sowa.ending import finish
from anomaly_lib.systems.sowa.fit import Learner, Seen, TrainingSet, calibrate
from anomaly_lib.systems.sowa.options import Args, adapters_in_words
from anomaly_lib.systems.sowa.scoring import score_items
from anomaly_lib.systems.sowa.taps import Taps, frozen_clip, make_taps
from anomaly_lib.types import RunResult

FOLDS = 3


@dataclass
class Experiment:
    """Everything one run works with, made by `build`."""

    args: Args
    train: list[Item]
    test: TestData
    taps: Taps
    model: AnomalyCLIP


def build(args: Args, device: torch.device, say: Callable[[str], None] = lambda _: None) -> Experiment:
    """Data, the frozen tower with its store, and the model; nothing is encoded yet."""
    train_items, skipped = open_train(args)
    test = open_test(
        *tested_place(args), tested_classes(args), shot=args.shot, on_error=args.on_error, fast=args.fast_dev_run
    )
    test = test._replace(judged=open_normal(args, test))
    if args.fast_dev_run:
        train_items = shortened(train_items, args.batch_size)
    test.skipped.extend(skipped)
    mosaics = with_mosaics(train_items, args.mosaic_rate, label=args.mosaic_label, seed=args.seed)
    with demo_clip_offered():
        clip = frozen_clip(args)
    for name in args.class_names:
        clip.text.check_words(name, "class_names= in words it knows, or a published backbone=")
    clip.to(device)
    taps = make_taps(args, clip, say)
    return Experiment(args, mosaics, test, taps, AnomalyCLIP(clip, args).to(device))


def train(args: Args) -> RunResult:
    """Fit adapters and prompts, score the test classes, leave checkpoint, metrics and figures in the run folder."""
    single_process_only("SOWA", "scripts/sweep.py --gpus 0,1 runs several trainings side by side")
    args = resumed("sowa", args)
    name = f"{args.dataset}-{adapters_in_words(args)}-k{args.shot}"
    with Run.open("sowa", args, name=name, data=data_fingerprint(args)) as run:
        if run.finished:
            return run.repeat()
        experiment = build(args, pick_device(args.device), run.log.line)
        announce(run, experiment)
        model, taps, items = experiment.model, experiment.taps, experiment.train
        keys = taps.fill([*items, *experiment.test.items])[: len(items) * len(taps.tiles)]
        data = TrainingSet.of(items, keys, taps)
        learned, kept = data.divided(args.validation_share if args.enable_validation else 0.0, args.seed)
        epochs = chosen_epochs(run, experiment, data.at(learned))

        learner = Learner(model, taps, args)
        scheduler = make_schedule(learner.optimizer, args.schedule, args.epochs)
        stopper = EarlyStopping(args.early_stopping_patience, higher_is_better=False)
        state = TrainState(model, learner.optimizer, scheduler, learner.scaler, early_stop=stopper)
        first = run.restore(state)
        if first == 0 and args.epochs:
            calibrate(learner, data, learned)
        for epoch in range(first, epochs):
            if stopper.should_stop:
                run.log.line(f"early stopping: no lower loss since epoch {stopper.best_epoch + 1}")
                break
            values = train_epoch(learner, data, learned, epoch)
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(values["loss"])
            else:
                scheduler.step()
            if len(kept):
                values |= validate(learner, data, kept, state.history)
            stopper.improved(values.get("val_loss", values["loss"]), epoch)
            if args.select == "best-on-test":
                values["selection"] = selection_value(experiment)
                keep_if_better(state, model, epoch, values["selection"])
            run.end_epoch(state, epoch, values, total=epochs)

        say_times(run, state, len(items))
        return finish(run, state, model, taps, experiment.test)


def train_epoch(learner: Learner, data: TrainingSet, rows: Tensor, epoch: int) -> dict[str, float]:
    """One pass over `rows` of `data`; mean losses, accuracy and AUROC of the images as they were met, rate, seconds."""
    args = learner.args
    learner.model.train()
    started, seen = time.monotonic(), Seen()
    batches = epoch_batches(len(rows), args.batch_size, seed=args.seed, epoch=epoch)
    for places, _ in batches[: 1 if args.fast_dev_run else None]:
        losses = seen.batch(learner, data, rows[places])
        total = torch.stack(list(losses.values())).sum()
        step(total, learner.optimizer, scaler=learner.scaler, clip=args.grad_clip, guard=learner.guard)
    rate = learner.optimizer.param_groups[0]["lr"]
    return {**seen.means(len(rows), "train_"), "lr": rate, "seconds": time.monotonic() - started}


@torch.no_grad()
def validate(
    learner: Learner, data: TrainingSet, rows: Tensor, history: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Loss, accuracy and AUROC of images that are kept from training, and the best of the two so far."""
    learner.model.eval()
    seen = Seen()
    for here in rows.split(learner.args.batch_size):
        seen.batch(learner, data, here)
    found = seen.means(len(rows), "val_")
    values = {name: found[name] for name in ("val_loss", "val_acc", "val_auroc") if name in found}
    best = {name: max([row[name] for row in history if name in row] + [values[name]]) for name in values}
    return values | {f"{name}_best": value for name, value in best.items() if name != "val_loss"}


# -- opening -----------------------------------------------------------------------------------------------------------


def announce(run: Run, experiment: Experiment) -> None:
    """What is trained on what, and what the stored taps will take, before anything long starts."""
    args, taps, test = experiment.args, experiment.taps, experiment.test
    trained, tested = class_names(experiment.train), class_names(test.items)
    count = sum(p.numel() for p in experiment.model.parameters())
    images = len(experiment.train) + len(test.items) + args.shot * len(tested)
    size = images * taps.row_bytes * len(taps.tiles) / 2**20
    seconds = seconds_per_image(taps, experiment.train)
    if args.vision == "residual":
        cost = ["nothing stored: the adapted tower runs in every step"]
    else:
        place = "on disk" if taps.store.on_disk else "in memory"
        cost = [
            f"taps of {images} images take {size:.0f} MiB {place} ({args.layers_dtype}), about "
            f"{seconds * images:.0f} s to encode once; without the store every epoch would take "
            f"{seconds * len(experiment.train):.0f} s more"
        ]
    if held_out(args, trained):
        cost.append(f"select=val: {min(FOLDS, len(trained))} trainings more, to choose the number of epochs")
    data = data_in_words(args)
    if args.eval_data_path:
        data += "; tested on {1} (layout {0})".format(*tested_place(args))
    run.opening(
        f"SOWA, {adapters_in_words(args)} adapters, {count:,} trained values: train on {', '.join(trained)} "
        f"({len(experiment.train)} images), test on {', '.join(tested)} ({len(test.items)} images), k={args.shot}",
        weights=weights_of(taps.clip),
        cost=cost,
        data=data,
    )
    run.note(
        trained_values=count,
        train_classes=trained,
        test_classes=tested,
        skipped=test.skipped,
        tap_mib=round(size, 1),
        seconds_per_image=seconds,
    )


def seconds_per_image(taps: Taps, items: Sequence[Item], *, count: int = 4) -> float:
    """What reading and encoding an image takes here, without the store."""
    some = [taps.tiles.cut(taps.transform(load_pixels(item)[0])[None])[:1] for item in items[:1]]
    batch = torch.cat(some * count).to(taps.device)
    taps.clip.encode(batch[:1])  # the first call also loads kernels
    started = time.monotonic()
    for item in items[:count]:
        taps.transform(load_pixels(item)[0])
    decoded = time.monotonic()
    taps.clip.encode(batch)
    return (decoded - started + (time.monotonic() - decoded) * len(taps.tiles)) / count


def say_times(run: Run, state: TrainState, images: int) -> None:
    """How long an epoch over `images` took, and what it would take without the store."""
    seconds = [row["seconds"] for row in state.history if "seconds" in row]
    if not seconds or run.args.vision == "residual":
        return
    cached = sum(seconds) / len(seconds)
    uncached = cached + run.record["seconds_per_image"] * images
    run.log.line(f"an epoch {cached:.1f} s from stored taps, {uncached:.1f} s without the store")
    run.note(seconds_epoch=round(cached, 3), seconds_uncached=round(uncached, 3))


# -- how long to train -------------------------------------------------------------------------------------------------


def held_out(args: Args, names: Sequence[str]) -> bool:
    """Is the number of epochs chosen on training classes that are left out in turn?"""
    return args.select == "val" and args.epochs > 0 and not args.fast_dev_run and len(names) > 1


def chosen_epochs(run: Run, experiment: Experiment, data: TrainingSet) -> int:
    """--epochs, or under --select val the part of them that helps training classes left out in turn."""
    args, names = experiment.args, class_names(data.items)
    if not held_out(args, names):
        if args.select == "val" and len(names) == 1:
            run.log.line(f"one training class ({names[0]}): none can be left out, all {args.epochs} epochs are trained")
        return args.epochs
    if "transfer" not in run.record:
        started = time.monotonic()
        curves = transfer_curves(experiment.taps, data, args)
        run.note(transfer=curves, seconds_transfer=round(time.monotonic() - started, 1))
    curves = run.record["transfer"]
    best = best_epochs(curves)
    shown = ", ".join(f"{100 * sum(values) / len(values):.1f}" for values in zip(*curves.values(), strict=True))
    run.log.line(f"AUROC on training classes left out in turn, after 0..{args.epochs} epochs: {shown}; training {best}")
    return best


def transfer_curves(taps: Taps, data: TrainingSet, args: Args) -> dict[str, list[float]]:
    """For every training class: how well it is told apart after 0, 1, ... epochs without it.

    Classes are left out one by one, or in three groups where there are more. The value is the mean of image and pixel
    AUROC. Nothing of the test classes is read, and no random number of the training that follows is used up.
    """
    names = class_names(data.items)
    curves: dict[str, list[float]] = {}
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        for group in [names[start::FOLDS] for start in range(min(FOLDS, len(names)))]:
            model = AnomalyCLIP(taps.clip, args).to(taps.device)
            learner = Learner(model, taps, args)
            learn = data.rows_of(*(name for name in names if name not in group))
            calibrate(learner, data, learn)
            curves |= {name: [class_value(model, taps, data, name, args)] for name in group}
            for epoch in range(args.epochs):
                train_epoch(learner, data, learn, epoch)
                for name in group:
                    curves[name].append(class_value(model, taps, data, name, args))
    return curves


def class_value(model: AnomalyCLIP, taps: Taps, data: TrainingSet, name: str, args: Args) -> float:
    """Mean of image and pixel AUROC on the images of one class, zero-shot."""
    rows = data.rows_of(name)
    prediction = score_items(model, taps, [data.items[int(row)] for row in rows], {}, args)
    assert prediction.map is not None
    return (auroc(prediction.score, data.labels[rows]) + pixel_auroc(prediction.map, data.masks[rows])) / 2


def best_epochs(curves: Mapping[str, Sequence[float]]) -> int:
    """The number of epochs with the highest mean over the left-out classes; of equal ones the fewest."""
    means = torch.tensor(list(curves.values())).mean(0)
    return int((means >= means.max() - 1e-12).nonzero()[0])


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
