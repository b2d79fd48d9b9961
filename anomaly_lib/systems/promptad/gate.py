"""Gate experiments: what each branch, each fusion and a per-image oracle reach on trained PromptAD checkpoints.

Names are those of the fork's tables: semantic = textual branch, memory = visual branch. Every figure is measured on the
branch's own scores and maps. `oracle` picks the better branch with the label in hand: an upper bound, not a method.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.config import shown
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.scores import Scores, summary
from anomaly_lib.engine.checkpoint import Checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_json
from anomaly_lib.fusion import fusion_by_name
from anomaly_lib.models.promptad.model import PromptAD
from anomaly_lib.models.promptad.scores import Branches, ImageFeatures, Scoring
from anomaly_lib.systems.promptad.detector import SYSTEM, PromptADDetector, load
from anomaly_lib.systems.promptad.features import Towers
from anomaly_lib.systems.promptad.options import GateArgs
from anomaly_lib.systems.registry import Registry

# <dir>/<dataset>/k_<k>/<class>/<task>_checkpoint.pth, and the original's
# <dir>/<dataset>/k_<k>/checkpoint/<TASK>-Seed_<s>-<class>-check_point.pt
TREE = re.compile(r"(?P<dataset>[^/]+)/k_(?P<k>\d+)/(?P<class>[^/]+)/(?P<task>cls|seg)_checkpoint\.pth$")
ORIGINAL = re.compile(
    r"(?P<dataset>[^/]+)/k_(?P<k>\d+)/checkpoint/(?P<task>CLS|SEG)-Seed_(?P<seed>\d+)-(?P<class>.+)-check_point\.pt$"
)


@dataclass(frozen=True)
class Found:
    """A checkpoint and what its path says."""

    path: Path
    dataset: str
    class_name: str
    k: int
    task: str
    seed: str


def find_checkpoints(args: GateArgs) -> list[Found]:
    """All checkpoints of both layouts below --checkpoint-dir that the filters let through, sorted."""
    if args.checkpoint_dir is None:
        raise UserError("give checkpoint_dir= the folder train_cls.py / train_seg.py saved their checkpoints in")
    root = Path(args.checkpoint_dir)
    if not root.is_dir():
        raise UserError(f"checkpoint_dir={root}: no such folder")
    found = [one for path in sorted(root.rglob("*.pt*")) if (one := _recognise(path, root)) is not None]
    kept = [
        one
        for one in found
        if one.task in args.task
        and (not args.dataset or one.dataset in args.dataset)
        and (not args.obj or one.class_name in args.obj)
        and (not args.shot or one.k in args.shot)
    ]
    if not kept:
        asked = [f"{name}={shown(value)}" for name in ("dataset", "obj", "shot", "task") if (value := vars(args)[name])]
        raise UserError(f"checkpoint_dir={root}: {len(found)} checkpoints, none of {', '.join(asked)}")
    return kept


def _recognise(path: Path, root: Path) -> Found | None:
    name = f"{root.name}/{path.relative_to(root).as_posix()}"
    match = TREE.search(name) or ORIGINAL.search(name)
    if match is None:
        return None
    parts = match.groupdict()
    return Found(
        path, parts["dataset"], parts["class"], int(parts["k"]), parts["task"].lower(), parts.get("seed") or ""
    )


# -- measuring ------------------------------------------------------------------------------------------------------


def run_gate(args: GateArgs, systems: Registry, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure every checkpoint not measured yet; one JSON file each, so that a killed run continues."""
    for mode in args.modes:
        fusion_by_name(mode)
    folder = Path(args.output_dir) / args.branch
    shared: dict[tuple[str, ...], Towers] = {}
    results: list[dict[str, Any]] = []
    notices: set[str] = set()
    checkpoints = find_checkpoints(args)
    for number, found in enumerate(checkpoints, start=1):
        file = _result_file(folder, found)
        stamp = {"checkpoint": str(found.path), "written": found.path.stat().st_mtime_ns, "modes": list(args.modes)}
        known = read_json(file) if file.is_file() and not args.fresh else {}
        if known.get("of") == stamp:
            results.append(known)
            continue
        checkpoint = systems.read(found.path)
        if checkpoint.system != SYSTEM:
            raise UserError(f"{found.path}: a checkpoint of {checkpoint.system}, not of PromptAD")
        detector = load(checkpoint, device=args.device, weights=args.weights, shared=shared)
        result = {"of": stamp, **origin_of(checkpoint), **measure(detector, found, args, folder)}
        write_json(file, result)
        results.append(result)
        notices |= {note for mode in args.modes for note in detector.with_fusion(mode).facts.notes}
        scores = ", ".join(f"{mode} {values['auroc']:.2f}" for mode, values in result["modes"].items())
        say(f"[{number}/{len(checkpoints)}] {found.dataset} {found.class_name} k={found.k} {found.task}: {scores}")
    for text in sorted(notices):
        say(text)
    return results


def origin_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Which epoch a checkpoint holds (None: its authors do not say), and a digest of its contexts.

    Of a checkpoint without contexts it is that of the text prototypes, all that came of them.
    """
    state, best = checkpoint["model"], checkpoint.get("best") or {}
    kept = [state[name] for name in sorted(state) if name.startswith("learner.")] or [state["text_features"]]
    digest = sha256(b"".join(tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in kept)).hexdigest()
    chosen = checkpoint.args.get("select") != "last" and "epoch" in best
    return {"epoch": best["epoch"] + 1 if chosen else checkpoint.get("epoch"), "contexts": digest[:16]}


def _result_file(folder: Path, found: Found) -> Path:
    name = f"{found.class_name}{f'_seed{found.seed}' if found.seed else ''}_{found.task}.json"
    return folder / found.dataset / f"k_{found.k}" / "gate_results" / name


@torch.no_grad()
def measure(detector: PromptADDetector, found: Found, args: GateArgs, folder: Path) -> dict[str, Any]:
    """AUROC (percent) of the branches, the fusions and the oracle on the test set; per-image signals beside it."""
    selection = detector.items(Choice(data_path=args.data_path))
    if len(detector.towers.tiles) > 1:
        raise UserError(f"{selection.name}: is trained on tiles; a gate experiment compares whole images")
    features = detector.towers.features(selection.items, test=True)
    branches = detector.model.branches(features, neighbours=2)
    scores = detector.scores_from(selection, branches)
    if detector.args.task == "seg" and scores.masks is None:
        raise UserError(f"{found.path}: the test images of {found.class_name} have no masks; give task=cls")
    per_sample = list(_signals(detector, features, branches, scores))
    place = folder / found.dataset / f"k_{found.k}" / "per_sample" / found.task
    write_json(place / f"{found.class_name}_seed{detector.args.seed}_per_sample.json", per_sample)
    semantic = sum(one["oracle_choice"] == 0 for one in per_sample) / len(per_sample)
    rows = _mode_rows(detector, branches, scores, args.modes)
    rows["oracle"] |= {"oracle_semantic_ratio": 100 * semantic, "oracle_memory_ratio": 100 * (1 - semantic)}
    return {
        "dataset": found.dataset,
        "class": found.class_name,
        "k_shot": found.k,
        "task": found.task,
        "seed": detector.args.seed,
        "trained_fusion": detector.model.config.fusion_mode,
        "select": detector.args.select,
        "memory_nn_margin_mean": float(branches.margin.mean()),
        "memory_nn_margin_std": float(branches.margin.std(correction=0)),
        "modes": rows,
    }


def _mode_rows(
    detector: PromptADDetector, branches: Branches, scores: Scores, modes: list[str]
) -> dict[str, dict[str, float]]:
    """AUROC (percent) of every mode: its scores [N] (cls) or maps [N, H, W] (seg) are made a part of `scores`."""
    textual, visual, scoring = branches.textual, branches.visual, detector.scoring
    anomalous = torch.as_tensor(scores.labels, device=textual.device).bool().reshape(-1, *[1] * (textual.ndim - 1))
    parts = {"semantic": textual, "memory": visual}
    parts |= {mode: Scoring(detector.with_fusion(mode).args, scoring.normal).fuse(textual, visual) for mode in modes}
    parts["oracle"] = torch.where(anomalous, torch.maximum(textual, visual), torch.minimum(textual, visual))
    seg = detector.args.task == "seg"
    drawn = {mode: scoring.render(part) for mode, part in parts.items()} if seg else parts
    figures = summary(replace(scores, maps=None, parts=drawn))
    values = {mode: 100 * figures[f"{mode}_pixel_auroc" if seg else f"{mode}_auroc"] for mode in parts}
    best = {"semantic_auroc": values["semantic"], "memory_auroc": values["memory"]}
    return {mode: {"auroc": value, **best, "gap": value - max(best.values())} for mode, value in values.items()}


def _signals(
    detector: PromptADDetector, features: ImageFeatures, branches: Branches, scores: Scores
) -> Iterator[dict[str, Any]]:
    """Per image: branch scores, the oracle's choice (0 semantic, 1 memory) and how reliable each branch looks.

    r_mem_margin    mean over patches of (second nearest - nearest) distance
    r_mem_entropy   entropy of the patch scores as a distribution, divided by log(patches): 1 = no patch stands out
    r_mem_centroid  (1 - cos) / 2 between the image's mean patch and the memory's mean, averaged over taps
    r_sem_prompt_var     variance over anomaly prompts of their cosine with the image
    r_sem_prompt_margin  mean cosine with anomaly prompts minus mean cosine with normal prompts
    r_sem_extremity      2 |textual score - 1/2|

    The two of the prompts are missing for checkpoints of PromptAD's authors, which hold no prompts.
    """
    model = detector.model
    textual = branches.textual.flatten(1).amax(1) if branches.textual.ndim > 1 else branches.textual
    visual = branches.visual.flatten(1).amax(1) if branches.visual.ndim > 1 else branches.visual
    share = branches.visual_grid.flatten(1)
    share = share / share.sum(1, keepdim=True).clamp_min(1e-12)
    entropy = -(share * share.clamp_min(1e-12).log()).sum(1) / torch.tensor(float(share.shape[1])).log()
    centroid = torch.stack([
        (1 - F.normalize(tap.mean(1), dim=-1) @ F.normalize(gallery.mean(0), dim=-1)) / 2
        for tap, gallery in zip(features.taps, model.galleries, strict=True)
    ]).mean(0)  # fmt: skip
    columns = {
        "semantic_score": textual,
        "memory_score": visual,
        "r_mem_margin": branches.margin,
        "r_mem_entropy": entropy,
        "r_mem_centroid": centroid,
        **(_prompt_signals(model, features.pooled) if model.normal is not None else {}),
        "r_sem_extremity": 2 * (textual - 0.5).abs(),
    }
    plain = {name: column.tolist() for name, column in columns.items()}
    for index, name in enumerate(scores.paths):
        label = int(scores.labels[index])
        memory_wins = (plain["memory_score"][index] > plain["semantic_score"][index]) == bool(label)
        row = {"sample_id": name, "gt_label": label, "oracle_choice": int(memory_wins)}
        yield row | {column: values[index] for column, values in plain.items()}


def _prompt_signals(model: PromptAD, pooled: Tensor) -> dict[str, Tensor]:
    text = model.encode_prompts()
    abnormal = pooled @ F.normalize(text.abnormal, dim=-1).T  # [N, M]
    normal = pooled @ F.normalize(text.normal, dim=-1).T
    return {
        "r_sem_prompt_var": abnormal.var(1, correction=0),
        "r_sem_prompt_margin": abnormal.mean(1) - normal.mean(1),
    }
