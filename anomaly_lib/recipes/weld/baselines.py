"""The baseline ladder on one split with one protocol: A late-fused auto-encoders, B single modalities, C late and mid
fusion, D cross-attention. One row per model and seed, appended as it is done, so that an interrupted study goes on.

Models that need no defects (A, B, C-late) train on good runs; C-mid and D are supervised and use every class in TRAIN.
The weights of A and C-late are searched on VAL; every number in the table is from TEST.
"""

import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.config import arg
from anomaly_lib.data.weld.manifest import CLASSES, WeldRun, select_runs
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.errors import UserError
from anomaly_lib.files import write_text
from anomaly_lib.metrics import auroc, average_precision, f1_max, macro_f1
from anomaly_lib.models.weld.baselines import (
    AudioConvAE,
    MidFusion,
    OneClass,
    VideoFcAE,
    best_weights,
    pool_modalities,
    windowed_max,
)
from anomaly_lib.models.weld.supcon_quad import MODALITIES
from anomaly_lib.recipes.weld import supcon as weld_supcon
from anomaly_lib.recipes.weld.causal_film import build_features
from anomaly_lib.recipes.weld.causal_film_options import weld_settings
from anomaly_lib.recipes.weld.features import WeldFeatures
from anomaly_lib.recipes.weld.knn import hide, missing_subsets, subset_name
from anomaly_lib.recipes.weld.supcon_options import Args as QuadArgs
from anomaly_lib.recipes.weld.supcon_options import resolve

MODELS = ("A", "B-video", "B-images", "B-audio", "B-sensors", "C-late", "C-mid", "D")
FUSIONS = ("C-late", "C-mid", "D")
Scores = dict[str, Tensor]  # by split


@dataclass
class Args(QuadArgs):
    """The ladder: the options of V4, and which models and seeds."""

    models: list[str] = arg(list(MODELS), "which models; 'fusion' = late, mid and cross-attention only")
    seeds: list[int] = arg([0, 1, 2], "one row per model and seed", type=int)
    baseline_epochs: int = arg(50, "epochs of A, B and C", at_least=1)
    peak_lr: float = arg(1e-3, "one-cycle peak of A, B and C (published, at full size: 1e-4)", at_least=0)
    results: Optional[str] = arg(None, "folder of the table; None = runs/weld_baselines", type=str)


@dataclass
class Pool:
    """The features of every split, once for all models."""

    features: WeldFeatures
    runs: dict[str, list[WeldRun]]
    batches: dict[str, dict[str, Tensor]]
    pooled: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def labels(self, split: str) -> Tensor:
        return torch.tensor([run.label for run in self.runs[split]])

    def classes(self, split: str) -> Tensor:
        return torch.tensor([run.class_label for run in self.runs[split]])

    def good(self) -> Tensor:
        return self.labels("train") == 0


@dataclass
class Fitted:
    """Test-time answers of one model: anomaly scores by split, the class vote of supervised ones, its size."""

    scores: Scores
    parameters: int
    classes: Tensor | None = None
    note: str = ""


def prepare(args: Args) -> Pool:
    """Encode every split once; statistics and targets come from TRAIN."""
    device = pick_device(args.device)
    runs = weld_supcon.open_runs(args)
    features = build_features(cast(Any, args), device, weld_settings(cast(Any, args)))
    features.prepare(runs)
    chosen = {split: select_runs(runs, split) for split in ("train", "val", "test")}
    batches = {}
    for split, part in chosen.items():
        parts = [weld_supcon.quad_batch(features, part[i : i + 32]) for i in range(0, len(part), 32)]
        batches[split] = {name: torch.cat([one[name] for one in parts]) for name in parts[0]}
    pool = Pool(features, chosen, batches)
    pool.pooled = {split: pool_modalities(batch, MODALITIES) for split, batch in batches.items()}
    return pool


def fit(module: nn.Module, loss: Callable[[Tensor], Tensor], count: int, args: Args) -> None:
    """Adam under one cycle; `loss` is given the indices of a batch."""
    size = min(32, count)
    batches = max(1, count // size)
    optimizer = torch.optim.Adam(module.parameters(), lr=args.peak_lr)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.peak_lr, total_steps=args.baseline_epochs * batches)
    module.train()
    for _ in range(args.baseline_epochs):
        for indices in torch.randperm(count)[: batches * size].split(size):
            optimizer.zero_grad()
            loss(indices).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            cycle.step()
    module.eval()


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@torch.no_grad()
def by_split(score: Callable[[str], Tensor]) -> Scores:
    return {split: score(split).detach() for split in ("train", "val", "test")}


def standardised(pool: Pool, scores: Scores) -> Scores:
    """z-score by the good training runs."""
    normal = scores["train"][pool.good()]
    spread = float(normal.std(unbiased=False))
    return {split: (values - normal.mean()) / (spread if spread > 1e-6 else 1.0) for split, values in scores.items()}


def model_a(pool: Pool, args: Args) -> Fitted:
    """Audio convolutional AE (mean over frames) and video AE (largest moving average), convex combination."""
    good = pool.good()
    audio, video = pool.batches["train"]["audio"][good].transpose(1, 2), pool.batches["train"]["video"][good]
    ears = AudioConvAE(bins=audio.shape[1], bottleneck=8, width=min(1024, 4 * audio.shape[1]))
    eyes = VideoFcAE(dim=video.shape[-1])
    fit(ears, lambda i: ears.frame_scores(audio[i]).mean(), len(audio), args)
    fit(eyes, lambda i: eyes.frame_scores(video[i]).mean(), len(video), args)
    heard = by_split(lambda split: ears.frame_scores(pool.batches[split]["audio"].transpose(1, 2)).mean(1))
    seen = by_split(lambda split: windowed_max(eyes.frame_scores(pool.batches[split]["video"]), 60))
    return combine(pool, [heard, seen], ("audio", "video"), parameters(ears, eyes))


def combine(pool: Pool, columns: Sequence[Scores], names: Sequence[str], size: int) -> Fitted:
    """Convex combination of standardised scores, weights searched on VAL."""
    ready = [standardised(pool, scores) for scores in columns]
    stacked = {split: torch.stack([scores[split] for scores in ready], dim=1).double() for split in ready[0]}
    weights, _ = best_weights(stacked["val"], pool.labels("val"))
    scores = {split: values @ weights for split, values in stacked.items()}
    shown = ", ".join(f"{name} {float(w):.2f}" for name, w in zip(names, weights, strict=True))
    return Fitted(scores, size, note=shown)


def one_modality(pool: Pool, args: Args, name: str) -> Fitted:
    """A one-class auto-encoder on the pooled features of good runs."""
    good = pool.pooled["train"][name][pool.good()]
    head = OneClass(dim=good.shape[1])
    head.fit_scale(good)
    fit(head, lambda i: head(good[i]).mean(), len(good), args)
    return Fitted(by_split(lambda split: head(pool.pooled[split][name])), parameters(head))


def late(pool: Pool, args: Args) -> Fitted:
    parts = [one_modality(pool, args, name) for name in MODALITIES]
    return combine(pool, [part.scores for part in parts], MODALITIES, sum(part.parameters for part in parts))


def mid(pool: Pool, args: Args) -> Fitted:
    """Concatenation of pooled features, one MLP, supervised; score = 1 - P(good)."""
    pooled, present, labels = pool.pooled["train"], pool.batches["train"]["present"], pool.classes("train")
    net = MidFusion({name: pooled[name].shape[1] for name in MODALITIES}, classes=len(CLASSES))

    def loss(i: Tensor) -> Tensor:
        return F.cross_entropy(net({name: pooled[name][i] for name in MODALITIES}, present[i]), labels[i])

    fit(net, loss, len(labels), args)
    with torch.no_grad():
        logits = {split: net(pool.pooled[split], pool.batches[split]["present"]) for split in pool.pooled}
    scores = {split: 1 - values.softmax(1)[:, 0] for split, values in logits.items()}
    return Fitted(scores, parameters(net), classes=logits["test"].argmax(1))


def cross_attention(pool: Pool, args: Args) -> Fitted:
    """D: the V4 model, trained by its own recipe; score = 1 - P(good)."""
    folder = Path(args.results or "runs/weld_baselines") / f"D-seed{args.seed}"
    known = {name: getattr(args, name) for name in QuadArgs.__dataclass_fields__}
    result = weld_supcon.train(QuadArgs(**{**known, "output_dir": str(folder)}))
    assert result.checkpoint is not None
    detector = weld_supcon.load_detector(result.checkpoint, features=pool.features)
    found = {split: detector.encode(runs)["logits"] for split, runs in pool.runs.items()}
    scores = {split: 1 - logits.softmax(1)[:, 0] for split, logits in found.items()}
    return Fitted(scores, parameters(detector.task), classes=found["test"].argmax(1))


def ladder() -> dict[str, Callable[[Pool, Args], Fitted]]:
    single = {f"B-{name}": (lambda pool, args, name=name: one_modality(pool, args, name)) for name in MODALITIES}
    return {"A": model_a, **single, "C-late": late, "C-mid": mid, "D": cross_attention}


def row_of(pool: Pool, fitted: Fitted, *, model: str, seed: int, seconds: float) -> dict[str, Any]:
    """What the table keeps of one model and seed."""
    scores, labels = fitted.scores["test"], pool.labels("test")
    classes = pool.classes("test")
    each = {}
    for index, name in enumerate(CLASSES[1:], start=1):
        chosen = (classes == 0) | (classes == index)
        if bool((classes == index).any()):
            each[name] = round(auroc(scores[chosen], labels[chosen]), 4)
    return {
        "model": model,
        "seed": seed,
        "auroc": round(auroc(scores, labels), 4),
        "auprc": round(average_precision(scores, labels), 4),
        "f1_max": round(f1_max(scores, labels), 4),
        "macro_f1": None if fitted.classes is None else round(macro_f1(fitted.classes, classes), 4),
        "per_defect": each,
        "parameters": fitted.parameters,
        "seconds": round(seconds, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "note": fitted.note,
    }


def run_ladder(args: Args, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """Every model and seed that the table does not hold yet; returns all rows."""
    args = cast(Args, resolve(args))
    wanted = list(FUSIONS) if args.models == ["fusion"] else args.models
    unknown = sorted(set(wanted) - set(MODELS))
    if unknown:
        raise UserError(f"--models {' '.join(unknown)}: choose from {', '.join(MODELS)} or 'fusion'")
    folder = Path(args.results or "runs/weld_baselines")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() and not args.fresh else []
    done = {(row["model"], row["seed"]) for row in rows}
    todo = [(model, seed) for model in wanted for seed in args.seeds if (model, seed) not in done]
    pool = prepare(args) if todo else None
    for model, seed in todo:
        assert pool is not None
        seed_everything(seed)
        started = time.monotonic()
        fitted = ladder()[model](pool, replace(args, seed=seed))
        row = row_of(pool, fitted, model=model, seed=seed, seconds=time.monotonic() - started)
        rows.append(row)
        write_text(path, json.dumps(rows, indent=1) + "\n")
        say(f"{model} seed {seed}: AUROC {row['auroc']:.4f} in {row['seconds']:.1f} s {row['note']}")
    rows = [row for row in rows if row["model"] in wanted and row["seed"] in args.seeds]
    text = "\n".join(table(rows))
    write_text(folder / "table.md", text + "\n")
    say(text)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: mean +- std over seeds and the gain over A."""
    base = np.mean([row["auroc"] for row in rows if row["model"] == "A"] or [np.nan])
    lines = [
        "| model | AUROC | AUPRC | macro-F1 | gain over A | parameters | s | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in [name for name in MODELS if any(row["model"] == name for row in rows)]:
        mine = [row for row in rows if row["model"] == model]

        def spread(name: str, mine: list[dict[str, Any]] = mine) -> str:
            values = [row[name] for row in mine if row[name] is not None]
            return f"{np.mean(values):.4f} +- {np.std(values):.4f}" if values else "-"

        gain = np.mean([row["auroc"] for row in mine]) - base
        lines.append(
            f"| {model} | {spread('auroc')} | {spread('auprc')} | {spread('macro_f1')} | {gain:+.4f} | "
            f"{mine[0]['parameters']:,} | {np.mean([row['seconds'] for row in mine]):.1f} | {mine[0]['peak_mb']} |"
        )
    names = sorted({name for row in rows for name in row["per_defect"]})
    lines += ["", "| AUROC by defect | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for model in [name for name in MODELS if any(row["model"] == name for row in rows)]:
        mine = [row["per_defect"] for row in rows if row["model"] == model]
        cells = [f"{np.mean([one[name] for one in mine if name in one]):.3f}" for name in names]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines


def missing_study(checkpoint: str | Path) -> list[dict[str, Any]]:
    """AUROC of a trained D for every subset of modalities: what is lost when something is missing."""
    detector = weld_supcon.load_detector(checkpoint)
    runs = select_runs(weld_supcon.open_runs(detector.args), "test")
    detector.features.prepare(runs)
    labels = torch.tensor([run.label for run in runs])
    rows = []
    batch = weld_supcon.quad_batch(detector.features, runs)
    for keep in missing_subsets():
        with torch.no_grad():
            logits = detector.task.model(hide(batch, keep))["logits"]
        score = 1 - logits.softmax(1)[:, 0]
        rows.append({"present": subset_name(keep), "missing": 4 - sum(keep), "auroc": round(auroc(score, labels), 4)})
    return rows
