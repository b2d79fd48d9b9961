"""The models of the baseline ladder, each fitted on one shared pool of features: A late-fused auto-encoders, D
cross-attention, and what fits any of them (`single.py`: B and C, their fusions; `ladder.py`: the table).

Models that need no defects (A, frozen B) train on good runs; the others are supervised and use every class in TRAIN.
The weights of A and C-late are searched on VAL.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.optim import param_groups
from anomaly_lib.metrics.knn import knn_vote
from anomaly_lib.models.weld.baselines import (
    AudioConvAE,
    MidFusion,
    VideoFcAE,
    best_weights,
    pool_modalities,
    windowed_max,
)
from anomaly_lib.models.weld.quad_config import MODALITIES
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld.data.manifest import CLASSES, WeldRun, select_runs
from anomaly_lib.systems.weld.data.runs import load_raw
from anomaly_lib.systems.weld.data.signal import magnitude_frames
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.inputs import build_features
from anomaly_lib.systems.weld.supcon.detector import QuadDetector, load
from anomaly_lib.systems.weld.supcon.knn import Bank, defect_margin
from anomaly_lib.systems.weld.supcon.options import Args as QuadArgs
from anomaly_lib.systems.weld.supcon.task import classes_of, open_runs, quad_batches
from anomaly_lib.systems.weld.supcon.train import train
from scripts.weld.studies.options import LadderArgs, TrainingsArgs

Scores = dict[str, Tensor]  # by split
AT_ONCE = 16  # spectra in work
SPECTRA_KEPT = 250e6  # bytes of spectra that stay in memory; the others are made again


@dataclass
class Pool:
    """The features of every split, once for all models."""

    features: WeldFeatures
    runs: dict[str, list[WeldRun]]
    present: dict[str, Tensor]  # [N, 4] bool by split
    pooled: dict[str, dict[str, Tensor]]  # one vector a run and modality, by split
    clips: dict[str, Tensor]  # video tokens averaged over space [N, time steps, D], by split
    series: dict[str, Tensor] = field(default_factory=dict)  # of the sensors [N, S, channels], by split
    below: WeldFeatures | None = None  # for encoders that learn: the states below their last blocks, once asked for
    spectra: dict[str, Tensor] = field(default_factory=dict)  # by run, as many as `SPECTRA_KEPT` allows

    def labels(self, split: str) -> Tensor:
        return torch.tensor([run.label for run in self.runs[split]])

    def classes(self, split: str) -> Tensor:
        return classes_of(self.runs[split])

    def good(self) -> Tensor:
        return self.labels("train") == 0

    def has(self, name: str, split: str) -> Tensor:
        """Which runs of a split have a modality."""
        return self.present[split][:, MODALITIES.index(name)].bool()


@dataclass
class Fitted:
    """Test-time answers of one model: anomaly scores by split, the class vote of supervised ones, its size."""

    scores: Scores
    parameters: int
    classes: Tensor | None = None
    note: str = ""
    features: dict[str, Tensor] = field(default_factory=dict)  # what its last layer reads [N, D], by split


def prepare(args: TrainingsArgs) -> Pool:
    """Encode every split once; statistics and targets come from TRAIN."""
    device = pick_device(args.device)
    runs = open_runs(args)
    features = build_features(args, device)
    features.fit_sensors(select_runs(runs, "train"), args.sensor_norm)
    features.prepare(runs)
    return pool_of(features, runs, steps=max(1, args.video_frames // 2))


def pool_of(features: WeldFeatures, runs: Sequence[WeldRun], *, steps: int) -> Pool:
    """What A to C read of every run, gathered a few runs at a time: the tokens themselves are not kept.

    `steps`: time steps of the video tokens; the video encoder makes one of two frames.
    """
    chosen = {split: select_runs(runs, split) for split in ("train", "val", "test")}
    pool = Pool(features, chosen, {}, {}, {})
    for split, part in chosen.items():
        present, clips, pooled, series = [], [], [], []
        for batch in quad_batches(features, part):
            present.append(batch["present"].cpu())
            series.append(batch["sensors"].cpu())
            clips.append(batch["video"].unflatten(1, (steps, -1)).mean(2).cpu())
            pooled.append({name: one.cpu() for name, one in pool_modalities(batch, MODALITIES).items()})
        pool.present[split], pool.clips[split], pool.series[split] = map(torch.cat, (present, clips, series))
        pool.pooled[split] = {name: torch.cat([one[name] for one in pooled]) for name in MODALITIES}
    return pool


def fit(
    module: nn.Module, loss: Callable[[Tensor], Tensor], count: int, *, epochs: int, batch_size: int, peak_lr: float,
    lr_of: Mapping[str, float] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Adam under one cycle; `loss` is given the indices of a batch. `lr_of`: as in `param_groups`."""
    size = min(batch_size, count)
    batches = max(1, count // size)
    optimizer = torch.optim.Adam(param_groups(module, 0.0, lr_of=dict(lr_of)), lr=peak_lr)
    peaks = [group["lr"] for group in optimizer.param_groups]
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=epochs * batches)
    module.train()
    for _ in range(epochs):
        for indices in torch.randperm(count)[: batches * size].split(size):
            optimizer.zero_grad()
            loss(indices).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            cycle.step()
    module.eval()


class Protocol(TypedDict):
    """How `fit` trains."""

    epochs: int
    batch_size: int
    peak_lr: float


def protocol(args: LadderArgs) -> Protocol:
    """The one training protocol of A, B and C."""
    return {"epochs": args.baseline_epochs, "batch_size": args.baseline_batch, "peak_lr": args.peak_lr}


def parameters(*modules: nn.Module) -> int:
    """How many learn."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


@torch.no_grad()
def by_split(score: Callable[[str], Tensor]) -> Scores:
    return {split: score(split).detach() for split in ("train", "val", "test")}


def standardised(pool: Pool, scores: Scores, name: str) -> Scores:
    """z-score by the good training runs; a run without the modality says nothing (0)."""
    normal = scores["train"][pool.good() & pool.has(name, "train")]
    spread = float(normal.std(unbiased=False))
    return {
        split: torch.where(pool.has(name, split), (values - normal.mean()) / (spread if spread > 1e-6 else 1.0), 0.0)
        for split, values in scores.items()
    }


def spectra(pool: Pool, args: LadderArgs, runs: Sequence[WeldRun]) -> Iterator[Tensor]:
    """Magnitude spectra [n, bins, frames] of runs, a few at a time; silence where there is no sound."""
    fft, frames = args.spectrum_fft, args.spectrum_frames

    def one(run: WeldRun) -> Tensor:
        if run.run_id in pool.spectra:
            return pool.spectra[run.run_id]
        wave = load_raw(run, pool.features.settings, ("audio",)).audio
        found = torch.zeros(fft // 2 + 1, frames)
        if wave is not None:
            found = magnitude_frames(torch.from_numpy(wave), n_fft=fft, frames=frames)
        if (len(pool.spectra) + 1) * found.nbytes < SPECTRA_KEPT:
            pool.spectra[run.run_id] = found
        return found

    for start in range(0, len(runs), AT_ONCE):
        yield torch.stack([one(run) for run in runs[start : start + AT_ONCE]])


def model_a(pool: Pool, args: LadderArgs) -> Fitted:
    """Audio convolutional AE (mean over frames) and video AE (largest moving average), convex combination."""
    seen, good = pool.clips, pool.good()
    heard = [run for run, it in zip(pool.runs["train"], good & pool.has("audio", "train"), strict=True) if it]
    audio = torch.empty(len(heard), args.spectrum_fft // 2 + 1, args.spectrum_frames)
    for some, part in zip(audio.split(AT_ONCE), spectra(pool, args, heard), strict=True):
        some.copy_(part)  # joining a list of parts would hold all of them twice
    video = seen["train"][good & pool.has("video", "train")]
    ears = AudioConvAE(bins=audio.shape[1], bottleneck=48, width=args.audio_width)
    eyes = VideoFcAE(dim=video.shape[-1])
    fit(ears, lambda i: ears.frame_scores(audio[i]).mean(), len(audio), **protocol(args))
    fit(eyes, lambda i: eyes.frame_scores(video[i]).mean(), len(video), **protocol(args))
    loud = by_split(
        lambda split: torch.cat([ears.frame_scores(part).mean(1) for part in spectra(pool, args, pool.runs[split])])
    )
    strange = by_split(lambda split: windowed_max(eyes.frame_scores(seen[split]), args.video_window))
    return combine(pool, [loud, strange], ("audio", "video"), parameters(ears, eyes))


def combine(pool: Pool, columns: Sequence[Scores], names: Sequence[str], size: int) -> Fitted:
    """Convex combination of standardised scores, weights searched on VAL."""
    ready = [standardised(pool, scores, name) for scores, name in zip(columns, names, strict=True)]
    return weighted(pool, ready, names, size)


def weighted(pool: Pool, ready: Sequence[Scores], names: Sequence[str], size: int) -> Fitted:
    """Convex combination of scores on one scale, weights searched on VAL."""
    stacked = {split: torch.stack([scores[split] for scores in ready], dim=1).double() for split in ready[0]}
    weights, _ = best_weights(stacked["val"], pool.labels("val"))
    scores = {split: values @ weights for split, values in stacked.items()}
    shown = ", ".join(f"{name} {float(w):.2f}" for name, w in zip(names, weights, strict=True))
    return Fitted(scores, size, note=shown)


def joined(pool: Pool, vectors: Mapping[str, Mapping[str, Tensor]], args: LadderArgs) -> Fitted:
    """One MLP over concatenated vectors, by split and modality, supervised; score = 1 - P(good)."""
    train, present, labels = vectors["train"], pool.present["train"], pool.classes("train")
    net = MidFusion({name: train[name].shape[1] for name in MODALITIES}, classes=len(CLASSES))

    def loss(i: Tensor) -> Tensor:
        return F.cross_entropy(net({name: train[name][i] for name in MODALITIES}, present[i]), labels[i])

    fit(net, loss, len(labels), **protocol(args))
    with torch.no_grad():
        logits = {split: net(vectors[split], pool.present[split]) for split in vectors}
    scores = {split: 1 - values.softmax(1)[:, 0] for split, values in logits.items()}
    return Fitted(scores, parameters(net), classes=logits["test"].argmax(1))


def mid_frozen(pool: Pool, args: LadderArgs) -> Fitted:
    """Mid fusion of what D reads: mean tokens of the frozen encoders and mean levels of the sensors."""
    return joined(pool, pool.pooled, args)


def cross_attention(pool: Pool, args: LadderArgs) -> Fitted:
    """D: the V4 model, trained by its own recipe and judged by its own protocol: neighbours among the training runs."""
    detector = fit_model(pool, args.of_model(output_dir=str(Path(args.results) / f"D-seed{args.seed}")))
    found = {split: detector.encode(runs)["features"] for split, runs in pool.runs.items()}
    bank = Bank(found["train"], pool.classes("train"))
    scores = {split: defect_margin(bank, features) for split, features in found.items()}
    voted, _ = knn_vote(*bank, found["test"], k=min(args.k, len(bank.classes)), metric=args.metric)
    return Fitted(scores, parameters(detector.task), classes=voted)


def fit_model(pool: Pool, args: QuadArgs) -> QuadDetector:
    """V4, trained with these options on the features of the pool."""
    result = train(args, features=pool.features)
    assert result.checkpoint is not None
    return load(SYSTEMS.read(result.checkpoint), features=pool.features)
