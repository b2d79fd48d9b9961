"""Video auto-encoder of normal welds on frozen DINOv2 clip vectors (`late_fusion.py` adds it to Causal-FiLM)."""

import torch

from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.scores import summary
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import Checkpoint, TrainState, load_checkpoint
from anomaly_lib.engine.distributed import epoch_batches, single_process_only
from anomaly_lib.engine.optim import step
from anomaly_lib.engine.run import Run
from anomaly_lib.models.weld.video_ae import VideoAE
from anomaly_lib.systems.weld.data.manifest import WeldRun, select_runs
from anomaly_lib.systems.weld.inputs import data_name, data_words, open_runs
from anomaly_lib.systems.weld.video_ae.clips import ClipEncoder
from anomaly_lib.systems.weld.video_ae.detector import SYSTEM, load
from anomaly_lib.systems.weld.video_ae.options import Args
from anomaly_lib.types import RunResult

BEST = "best_model.pt"


def train(args: Args) -> RunResult:
    """Fit the auto-encoder on normal clips; the epoch with the lowest training loss is kept."""
    single_process_only("the video auto-encoder", "its trained part is small; start it without torchrun")
    device = pick_device(args.device)
    with Run.open(SYSTEM, args, name=data_name(args)) as run:
        if run.finished:
            return run.repeat()
        runs = open_runs(args)
        encoder = ClipEncoder.of(args, device)
        run.opening(
            "Video auto-encoder of normal welds",
            weights=weights_of(encoder.backbone),
            cost=[f"{len(runs)} clips of {args.video_frames} frames to encode once, then {args.epochs} short epochs"],
            data=data_words(args),
        )
        if args.on_error == "skip":
            runs, skipped = encoder.readable(runs)
            run.note(skipped=skipped)
            run.log.line(f"{len(skipped)} runs without a readable video are skipped (listed in run.json)")
        clips = encoder(select_runs(runs, "train", normal_only=True))  # [N, dim]
        model = VideoAE(dim=clips.shape[1]).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
        scaler = make_scaler(device, args.precision)
        state = TrainState(model=model, optimizer=optimizer, scaler=scaler)
        for epoch in range(run.restore(state, best_name=BEST), args.epochs):
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
        return finish(run, state, encoder, runs)


def finish(run: Run, state: TrainState, encoder: ClipEncoder, runs: list[WeldRun]) -> RunResult:
    """Score the test split with the best epoch, exactly as evaluate.py does."""
    best = run.dir / BEST
    if not state.history:
        run.save(state, 0, BEST)
    detector = load(Checkpoint(best, load_checkpoint(best, system=SYSTEM)), encoder=encoder)
    scores = detector.score(detector.select(runs, Choice()))
    return run.finish(state, summary(scores, detector.decision), final=best)
