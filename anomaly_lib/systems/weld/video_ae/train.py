"""Video auto-encoder of normal welds on frozen DINOv2 clip vectors (`late_fusion.py` adds it to Causal-FiLM)."""

import torch

from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.detect.calibration import KEPT, decision_from, hold_out
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.decision import Decision, in_words
from anomaly_lib.detect.scores import sample_remarks, summary
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import Checkpoint, TrainState, add_to_checkpoint, load_checkpoint
from anomaly_lib.engine.distributed import epoch_batches, single_process_only
from anomaly_lib.engine.optim import step
from anomaly_lib.engine.resume import resumed
from anomaly_lib.engine.run import Run
from anomaly_lib.models.weld.video_ae import VideoAE
from anomaly_lib.systems.weld.cross_validation import cross_validate
from anomaly_lib.systems.weld.data.folds import check_fold
from anomaly_lib.systems.weld.data.manifest import WeldRun, select_runs
from anomaly_lib.systems.weld.detector import validation_decision
from anomaly_lib.systems.weld.figures import auroc_line
from anomaly_lib.systems.weld.inputs import data_fingerprint, data_name, data_words, open_runs
from anomaly_lib.systems.weld.video_ae.clips import ClipEncoder
from anomaly_lib.systems.weld.video_ae.detector import SYSTEM, VideoAEDetector, load
from anomaly_lib.systems.weld.video_ae.options import Args
from anomaly_lib.types import Prediction, RunResult

BEST = "best_model.pt"
VIDEO = "a readable video"


def train(args: Args, *, encoder: ClipEncoder | None = None) -> RunResult:
    """Fit the auto-encoder on normal clips; the epoch with the lowest training loss is kept.

    The clip `encoder` of the same options may be handed in, so that several runs share one encoding.
    """
    single_process_only("the video auto-encoder", "its trained part is small; start it without torchrun")
    args, device = resumed(SYSTEM, args), pick_device(args.device)
    if args.folds and not args.fold:
        return every_fold(args, encoder or ClipEncoder.of(args, device))
    runs = open_runs(args)
    with Run.open(SYSTEM, args, name=data_name(args), data=data_fingerprint(runs, args), kept=[BEST]) as run:
        if run.finished:
            return run.repeat()
        encoder = encoder or ClipEncoder.of(args, device)
        run.opening(
            "Video auto-encoder of normal welds",
            weights=weights_of(encoder.backbone),
            cost=[f"{len(runs)} clips of {args.video_frames} frames to encode once, then {args.epochs} short epochs"],
            data=data_words(args),
        )
        if args.on_error == "skip":
            everything, (runs, skipped) = runs, encoder.readable(runs)
            if args.fold:
                check_fold(everything, runs, folds=args.folds, fold=args.fold, what=VIDEO)
            run.note(skipped=skipped)
            run.log.line(f"{len(skipped)} runs without a readable video are skipped (listed in run.json)")
        learn, kept = split_normal(args, run, runs)
        clips = encoder(learn)  # [N, dim]
        model = VideoAE(dim=clips.shape[1]).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
        scaler = make_scaler(device, args.precision)
        state = TrainState(model=model, optimizer=optimizer, scaler=scaler, extra={KEPT: run.record[KEPT]})
        for epoch in range(run.restore(state), args.epochs):
            losses = []
            for indices, _ in epoch_batches(len(clips), args.batch_size, seed=args.seed, epoch=epoch):
                with autocast_for(device, args.precision):
                    loss = model.score(clips[indices]).mean()
                step(loss, optimizer, scaler=scaler, clip=args.grad_clip)
                losses.append(float(loss.detach()))
            mean = sum(losses) / len(losses)
            better = mean < state.best.get("loss", float("inf"))
            if better:
                state.best = {"loss": mean, "epoch": epoch + 1}
            run.end_epoch(state, epoch, {"loss": mean}, best=BEST if better else None)
        return finish(run, state, encoder, runs, kept)


def every_fold(args: Args, encoder: ClipEncoder) -> RunResult:
    """Train and test every fold; whether each has runs with a video is known before the first one."""
    runs = open_runs(args)
    seen = runs if args.on_error == "fail" else encoder.readable(runs)[0]
    for number in range(1, args.folds + 1):
        check_fold(runs, seen, folds=args.folds, fold=number, what=VIDEO)
    encoder(seen)
    return cross_validate(
        SYSTEM, args, data_name(args), lambda one: train(one, encoder=encoder),
        lambda path: load(Checkpoint(path, load_checkpoint(path, system=SYSTEM)), encoder=encoder),
    )  # fmt: skip


def split_normal(args: Args, run: Run, runs: list[WeldRun]) -> tuple[list[WeldRun], list[WeldRun]]:
    """Normal runs to learn from, and those kept from training; none where a validation split has normal runs."""
    normal = select_runs(runs, "train", normal_only=True)
    select_runs(runs, "test")  # is scored at the end: that there is none is said before the epochs, not after them
    validation = sum(one.split == "val" and not one.label for one in runs)
    held = hold_out(len(normal), 0.0 if validation else args.calibration_share, seed=args.seed, what="normal runs")
    beside = f"(calibration_share={args.calibration_share:g} has no meaning beside them)"
    run.log.line(f"{validation} normal validation runs set the decision {beside}" if validation else held.remark)
    learn, kept = ([normal[i] for i in places.tolist()] for places in (held.learn, held.kept))
    run.note(**{KEPT: [one.folder.as_posix() for one in kept]})
    return learn, kept


def decide(detector: VideoAEDetector, runs: list[WeldRun], kept: list[WeldRun], args: Args) -> Decision | None:
    """What normal runs promise that were not trained on: those `kept` from training, else the validation split's."""
    if not kept:
        return validation_decision(detector, runs, args)
    found, places = Prediction(detector.score_runs(kept)), [one.folder for one in kept]
    return decision_from(found, args.false_alarms, of="normal runs kept from training", places=places)


def finish(run: Run, state: TrainState, encoder: ClipEncoder, runs: list[WeldRun], kept: list[WeldRun]) -> RunResult:
    """Decide, and score the test split with the best epoch, exactly as evaluate.py does."""
    best = run.dir / BEST
    if not state.history:
        run.save(state, 0, BEST)
    detector = load(Checkpoint(best, load_checkpoint(best, system=SYSTEM)), encoder=encoder)
    decision = detector.decision = decide(detector, runs, kept, run.args)
    add_to_checkpoint(best, system=SYSTEM, decision=None if decision is None else decision.plain())
    scores = detector.score(detector.select(runs, Choice()))
    run.log.line(auroc_line(scores))
    scores.tables["classes"].write(run.dir / "classes")
    told = in_words(decision, detector.undecided)
    remarks = sample_remarks(scores)
    return run.finish(state, summary(scores, decision), final=best, remarks=remarks, decision=told)
