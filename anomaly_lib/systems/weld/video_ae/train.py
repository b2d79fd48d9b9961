"""Video auto-encoder of normal welds on frozen DINOv2 clip vectors (`late_fusion.py` adds it to Causal-FiLM)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor

from anomaly_lib.backbones import FrozenBackbone, create_backbone
from anomaly_lib.backbones.identity import weight_remarks, weights_of
from anomaly_lib.config import Options, arg, override
from anomaly_lib.detect.contract import EvaluateArgs, Evaluation
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import TrainState, check_weights, load_checkpoint
from anomaly_lib.engine.distributed import epoch_batches, single_process_only
from anomaly_lib.engine.log import progress
from anomaly_lib.engine.optim import step
from anomaly_lib.engine.run import Run
from anomaly_lib.errors import UserError
from anomaly_lib.features import FeatureSpec, FeatureStore, extract
from anomaly_lib.metrics import auroc
from anomaly_lib.models.weld.video_ae import VideoAE
from anomaly_lib.options import CacheArgs, DataArgs, OptimArgs, RunArgs, TrackArgs
from anomaly_lib.systems.weld.causal_film.report import split_metrics
from anomaly_lib.systems.weld.data.manifest import WeldRun, select_runs
from anomaly_lib.systems.weld.data.runs import WeldSettings, load_raw, process_video
from anomaly_lib.systems.weld.ending import already_done, told
from anomaly_lib.systems.weld.features import run_key
from anomaly_lib.systems.weld.inputs import WeldDemoArgs, open_runs
from anomaly_lib.types import Prediction, RunResult

SYSTEM = "video_ae"
BEST = "best_model.pt"


@dataclass
class VideoAEArgs(Options):
    """The clip vectors."""

    backbone: Optional[str] = arg(
        None, "frozen image encoder; None = dinov2-base (built-in data: tiny-dinov2)", type=str
    )
    weights: Optional[str] = arg(None, "weight file or folder; 'random' = untrained", type=str)
    layer: Optional[int] = arg(
        None, "block whose tokens are averaged, from 1; None = 11 (tiny: 2)", type=int, at_least=1
    )
    video_frames: int = arg(16, "frames of a clip", at_least=1)
    video_size: Optional[int] = arg(None, "side of a frame; None = 224 (built-in data: 64)", type=int, at_least=8)


@dataclass
class Args(RunArgs, TrackArgs, DataArgs, WeldDemoArgs, VideoAEArgs, OptimArgs, CacheArgs):
    """Video auto-encoder on normal welds."""

    dataset: str = override(DataArgs, "dataset", "demo", choices=["demo", "weld"])
    wandb_project: str = override(TrackArgs, "wandb_project", "weld-anomaly-detection")
    epochs: int = override(OptimArgs, "epochs", 30)
    seed: int = override(RunArgs, "seed", 42)


def resolve(args: Args) -> Args:
    """Sizes by data."""
    tiny = not args.data_path
    return replace(
        args,
        backbone=args.backbone or ("tiny-dinov2" if tiny else "dinov2-base"),
        weights=args.weights or ("random" if tiny else None),
        layer=args.layer or (2 if tiny else 11),
        video_size=args.video_size or (64 if tiny else 224),
    )


@dataclass
class ClipEncoder:
    """Runs to one frozen vector each: tokens of one block, averaged over tokens, then over frames."""

    backbone: FrozenBackbone
    settings: WeldSettings
    layer: int
    store: FeatureStore
    device: torch.device

    @classmethod
    def of(cls, args: Args, device: torch.device) -> "ClipEncoder":
        assert args.backbone and args.layer and args.video_size  # noqa: PT018
        block = args.layer - 1
        backbone = create_backbone(args.backbone, weights=args.weights, layers=[block, f"prefix.{block}"])
        settings = WeldSettings(video_frames=args.video_frames, video_size=args.video_size, video_norm="imagenet")
        spec = FeatureSpec(
            backbone=backbone.name, weights=backbone.weights_id, outputs=("clip",), transform=str(asdict(settings)),
            views=f"mean of block {block}",
        )  # fmt: skip
        store = FeatureStore(spec, root=args.cache_dir, cache="ram" if args.cache == "off" else args.cache)
        return cls(backbone.to(device), settings, args.layer, store, device)

    def __call__(self, runs: Sequence[WeldRun]) -> Tensor:  # [N, dim]
        def load(run: WeldRun) -> Tensor:
            video, there = process_video(load_raw(run, self.settings, ("video",)), self.settings)
            if not there:
                raise UserError(f"{run.folder}: this run has no video; the video auto-encoder cannot score it")
            return video

        def encode(clips: Tensor) -> Mapping[str, Tensor]:  # [B, T, 3, S, S]
            found = self.backbone.encode(clips.flatten(0, 1))
            block = self.layer - 1
            tokens = torch.cat([found[f"prefix.{block}"], found[f"layer.{block}"]], dim=1)
            return {"clip": tokens.mean(1).unflatten(0, clips.shape[:2]).mean(1)}

        keys = extract(encode, list(runs), self.store, load=load, key=run_key, device=self.device, track=progress)
        return self.store.rows(keys)["clip"].float().to(self.device)


def build(args: Args, device: torch.device, *, dim: int = 768) -> VideoAE:
    """The untrained auto-encoder."""
    del args
    return VideoAE(dim=dim).to(device)


def train(args: Args) -> RunResult:
    """Fit the auto-encoder on normal clips; the epoch with the lowest training loss is kept."""
    args = resolve(args)
    single_process_only("the video auto-encoder", "its trained part is small; start it without torchrun")
    device = pick_device(args.device)
    with Run.open(SYSTEM, args, name="demo" if not args.data_path else Path(args.data_path).name) as run:
        if run.finished:
            return already_done(run)
        runs = open_runs(args)
        encoder = ClipEncoder.of(args, device)
        run.note(weights=weights_of(encoder.backbone))
        clips = encoder(select_runs(runs, "train", normal_only=True))
        model = build(args, device, dim=clips.shape[1])
        optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
        state = TrainState(model=model, optimizer=optimizer)
        for epoch in range(run.restore(state, best_name=BEST), args.epochs):
            losses = []
            for indices, _ in epoch_batches(len(clips), args.batch_size, seed=args.seed, epoch=epoch):
                loss = model.score(clips[indices]).mean()
                step(loss, optimizer, clip=args.grad_clip)
                losses.append(float(loss.detach()))
            mean = sum(losses) / len(losses)
            better = mean < state.best.get("loss", float("inf"))
            if better:
                state.best = {"loss": mean, "epoch": epoch + 1}
            run.end_epoch(state, epoch, {"loss": mean}, best=BEST if better else None)
        if not state.history:
            run.save(state, 0, BEST)
        best = run.dir / BEST
        test = select_runs(runs, "test")
        scores = load_detector(best, encoder=encoder).score_runs(test)
        value = auroc(scores, torch.tensor([one.label for one in test]))
        run.log.line(f"video auto-encoder alone: AUROC {value:.4f} on {len(test)} test runs")
        return told(run, run.finish(state, {"image_auroc": value}, final=best))


@dataclass
class VideoDetector:
    """A trained auto-encoder with its clip encoder."""

    model: VideoAE
    encoder: ClipEncoder
    args: Args
    epoch: int
    threshold: float | None = None

    @torch.no_grad()
    def score_runs(self, runs: Sequence[WeldRun]) -> Tensor:
        """Anomaly scores [N]."""
        return self.model.score(self.encoder(runs)).cpu()

    def predict(self, runs: Sequence[WeldRun]) -> Prediction:
        """Scores of whole runs (`read_manifest(folder)` lists them)."""
        return predict(self, runs)


def predict(model: VideoDetector, batch: Sequence[WeldRun]) -> Prediction:
    """Reconstruction error of each run's clip vector."""
    return Prediction(score=model.score_runs(batch))


def load_detector(path: str | Path, *, device: str = "auto", encoder: ClipEncoder | None = None) -> VideoDetector:
    """The auto-encoder of a checkpoint with its own preprocessing."""
    saved = load_checkpoint(path, system=SYSTEM)
    args = resolve(Args(**{k: v for k, v in saved["args"].items() if k in Args.__dataclass_fields__}))
    encoder = encoder or ClipEncoder.of(args, pick_device(device))
    check_weights(path, saved["extra"], weights_of(encoder.backbone))
    model = build(args, encoder.device, dim=saved["model"]["net.0.weight"].shape[1])
    model.load_state_dict(saved["model"])
    return VideoDetector(model.eval(), encoder, args, int(saved["epoch"]))


def evaluate(checkpoint: Path, args: EvaluateArgs) -> Evaluation:
    """Score a split with the checkpoint's own preprocessing."""
    detector = load_detector(checkpoint, device=args.device)
    own = detector.args
    runs = open_runs(replace(own, data_path=args.data_path or own.data_path))
    chosen, val = select_runs(runs, args.split), select_runs(runs, "val")
    scores, val_scores = detector.score_runs(chosen), detector.score_runs(val)
    val_labels = torch.tensor([run.label for run in val])
    return Evaluation(
        system=SYSTEM,
        name="demo" if not own.data_path else Path(own.data_path).name,
        metrics=split_metrics(scores, chosen),
        scores=scores.numpy(),
        labels=[run.label for run in chosen],
        paths=[str(run.folder) for run in chosen],
        groups=["weld"] * len(chosen),
        defects=[run.class_name for run in chosen],
        normal_scores=val_scores[val_labels == 0].numpy(),
        validation=(val_scores.numpy(), val_labels.numpy()),
        notes=weight_remarks(weights_of(detector.encoder.backbone)),
        facts={"epoch": detector.epoch, "seed": own.seed},
    )


def tiny() -> Args:
    """Seconds on a CPU."""
    return Args(epochs=2, demo_train=8, demo_good=2, demo_defects=1, video_frames=2, video_size=28)
