"""Video auto-encoder on frozen DINOv2 clip vectors, and its late fusion with Causal-FiLM.

A bead's shape is visible while it is made: where the process-result model is weak, appearance may help.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor

from anomaly_lib.backbones import FrozenBackbone, create_backbone
from anomaly_lib.config import arg, override
from anomaly_lib.data.weld.manifest import WeldRun, select_runs
from anomaly_lib.data.weld.runs import WeldSettings, load_raw, process_video
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import TrainState, load_checkpoint
from anomaly_lib.engine.distributed import epoch_batches
from anomaly_lib.engine.log import progress
from anomaly_lib.engine.optim import step
from anomaly_lib.engine.run import Run
from anomaly_lib.errors import UserError
from anomaly_lib.features import FeatureSpec, FeatureStore, extract
from anomaly_lib.fusion import z_score_calibration
from anomaly_lib.metrics import auroc
from anomaly_lib.models.weld.causal_film_loss import SCORE_KINDS
from anomaly_lib.models.weld.video_ae import VideoAE
from anomaly_lib.options import CacheArgs, DataArgs, OptimArgs, RunArgs, TrackArgs
from anomaly_lib.recipes.weld.causal_film import load_detector as load_causal_film
from anomaly_lib.recipes.weld.causal_film import open_runs
from anomaly_lib.recipes.weld.causal_film_options import WeldDemoArgs
from anomaly_lib.recipes.weld.features import run_key
from anomaly_lib.types import RunResult

SYSTEM = "video_ae"


@dataclass
class VideoAEArgs:
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
    device = pick_device(args.device)
    with Run.open(SYSTEM, args, name="demo" if not args.data_path else Path(args.data_path).name) as run:
        if run.finished:
            run.log.line(f"{run.dir} is done (--fresh starts over)")
            return run.result()
        runs = open_runs(args)
        encoder = ClipEncoder.of(args, device)
        clips = encoder(select_runs(runs, "train", normal_only=True))
        model = build(args, device, dim=clips.shape[1])
        optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
        state = TrainState(model=model, optimizer=optimizer)
        for epoch in range(run.restore(state, best_name="best_model.pt"), args.epochs):
            run.stop.check()
            losses = []
            for indices, _ in epoch_batches(len(clips), args.batch_size, seed=args.seed, epoch=epoch):
                loss = model.score(clips[indices]).mean()
                step(loss, optimizer, clip=args.grad_clip)
                losses.append(float(loss.detach()))
            mean = sum(losses) / len(losses)
            if mean < state.best.get("loss", float("inf")):
                state.best = {"loss": mean, "epoch": epoch + 1}
                run.save(state, epoch + 1, "best_model.pt")
            run.end_epoch(state, epoch, {"loss": mean})
        if not state.history:
            run.save(state, 0, "best_model.pt")
        run.save(state, len(state.history))
        best = run.dir / "best_model.pt"
        test = select_runs(runs, "test")
        scores = VideoDetector.load(best, encoder=encoder).score_runs(test)
        value = auroc(scores, torch.tensor([one.label for one in test]))
        run.log.line(f"video auto-encoder alone: AUROC {value:.4f} on {len(test)} test runs")
        return run.finish(state, {"image_auroc": value}, final=best)


@dataclass
class VideoDetector:
    """A trained auto-encoder with its clip encoder."""

    model: VideoAE
    encoder: ClipEncoder
    args: Args

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", encoder: ClipEncoder | None = None) -> "VideoDetector":
        saved = load_checkpoint(path, system=SYSTEM)
        args = resolve(Args(**{k: v for k, v in saved["args"].items() if k in Args.__dataclass_fields__}))
        encoder = encoder or ClipEncoder.of(args, pick_device(device))
        dim = saved["model"]["net.0.weight"].shape[1]
        model = build(args, encoder.device, dim=dim)
        model.load_state_dict(saved["model"])
        return cls(model.eval(), encoder, args)

    @torch.no_grad()
    def score_runs(self, runs: Sequence[WeldRun]) -> Tensor:
        return self.model.score(self.encoder(runs)).cpu()


# -- late fusion --------------------------------------------------------------------------------------------------


@dataclass
class FusionArgs:
    """Late fusion of Causal-FiLM (A) and the video auto-encoder (B)."""

    causal_checkpoint: Optional[str] = arg(
        None, "trained Causal-FiLM, e.g. runs/weld/causal_film/best_model.pth", type=str
    )
    video_checkpoint: Optional[str] = arg(
        None, "trained video auto-encoder, e.g. runs/weld/video_ae/best_model.pt", type=str
    )
    split: str = arg("test", "which split to score", choices=["train", "val", "test"])
    statistics: str = arg(
        "val", "whose normal runs give the z-scores; transductive = mean and std of the evaluated split itself",
        choices=["val", "train", "transductive"],
    )  # fmt: skip
    score_kind: Optional[str] = arg(
        None,
        "score of model A; None = as trained (the original's script: mean_abs)",
        type=str,
        choices=list(SCORE_KINDS),
    )
    device: str = arg("auto", "auto, cpu, cuda or cuda:N")
    output_dir: Optional[str] = arg(
        None, "write scores and results as JSON into this folder", type=str, aliases=["output"]
    )


@dataclass
class FusionResult:
    """AUROC of both models and of the sum of their z-scores."""

    metrics: dict[str, float]
    scores: dict[str, list[float]]
    ids: list[str]
    labels: list[int]


def evaluate_fusion(args: FusionArgs) -> FusionResult:
    """z_A + z_B on a split; both checkpoints must exist and are never replaced by untrained models."""
    for flag, path in (("--causal-checkpoint", args.causal_checkpoint), ("--video-checkpoint", args.video_checkpoint)):
        if not path or not Path(path).is_file():
            raise UserError(
                f"{flag} {path or '(not given)'}: no such checkpoint; train it first (scripts/weld/train_*.sh)"
            )
    causal = load_causal_film(str(args.causal_checkpoint), device=args.device)
    if args.score_kind:
        causal.task.score_kind = args.score_kind
    video = VideoDetector.load(str(args.video_checkpoint), device=args.device)
    runs = open_runs(causal.args)
    asked = select_runs(runs, args.split)
    reference = asked
    if args.statistics != "transductive":
        reference = select_runs(runs, args.statistics, normal_only=True)
    labels = torch.tensor([run.label for run in asked])
    scores = {}
    for name, model in (("causal_film", causal), ("video_ae", video)):
        normalise = z_score_calibration(model.score_runs(reference))
        scores[name] = normalise(model.score_runs(asked).double())
    scores["fusion"] = scores["causal_film"] + scores["video_ae"]
    metrics = {f"{name}_auroc": auroc(values, labels) for name, values in scores.items()}
    return FusionResult(
        metrics, {k: v.tolist() for k, v in scores.items()}, [run.run_id for run in asked], labels.tolist()
    )
