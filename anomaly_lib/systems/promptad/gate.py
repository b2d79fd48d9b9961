"""Gate experiments: what each branch, each fusion and a per-image oracle reach on trained PromptAD checkpoints.

Names are those of the fork's tables: semantic = textual branch, memory = visual branch. Every figure is measured on the
branch's own scores and maps. `oracle` picks the better branch with the label in hand: an upper bound, not a method.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_json
from anomaly_lib.fusion import fusion_by_name
from anomaly_lib.metrics import auroc, pixel_auroc
from anomaly_lib.models.promptad.scores import Branches, ImageFeatures, fuse_branches, render
from anomaly_lib.systems.promptad.data import test_items, truth_of
from anomaly_lib.systems.promptad.detector import Detector, load_detector
from anomaly_lib.systems.promptad.features import Towers

TASKS = ("cls", "seg")
# <dir>/<dataset>/k_<k>/<class>/<task>_checkpoint.pth, and the original's
# <dir>/<dataset>/k_<k>/checkpoint/<TASK>-Seed_<s>-<class>-check_point.pt
TREE = re.compile(r"(?P<dataset>[^/]+)/k_(?P<k>\d+)/(?P<class>[^/]+)/(?P<task>cls|seg)_checkpoint\.pth$")
ORIGINAL = re.compile(
    r"(?P<dataset>[^/]+)/k_(?P<k>\d+)/checkpoint/(?P<task>CLS|SEG)-Seed_(?P<seed>\d+)-(?P<class>.+)-check_point\.pt$"
)


@dataclass
class GateArgs(Options):
    """Gate experiment: branches, fusions and oracle of trained checkpoints."""

    checkpoint_dir: Optional[str] = arg(None, "tree of checkpoints written by train_cls.py / train_seg.py", type=str)
    branch: str = arg("gate", "name of this experiment; results go to OUTPUT/BRANCH/analysis")
    output_dir: str = arg("result", "folder of all experiments", aliases=["output", "root-dir"])
    dataset: list[str] = arg([], "only these data sets (folder names below --checkpoint-dir)", type=str)
    data_path: Optional[str] = arg(None, "folder of the data set; None = where each checkpoint was trained", type=str)
    obj: list[str] = arg([], "only these classes", type=str, aliases=["class-name"])
    shot: list[int] = arg([], "only these k", type=int, aliases=["k-shot"])
    task: list[str] = arg(["cls", "seg"], "cls, seg or both", type=str, choices=list(TASKS))
    modes: list[str] = arg(["max", "harmonic"], "fusions beside semantic, memory and oracle", type=str)
    weights: Optional[str] = arg(None, "backbone weights, where they have moved since training", type=str)
    device: str = arg("auto", "auto, cpu, cuda or cuda:N")
    figures: Switch = arg(True, "draw figures")
    fresh: Switch = arg(False, "measure again what has been measured", aliases=["force-retrain"])


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
        raise UserError("--checkpoint-dir: name the folder train_cls.py / train_seg.py saved their checkpoints in")
    root = Path(args.checkpoint_dir)
    if not root.is_dir():
        raise UserError(f"--checkpoint-dir {root}: no such folder")
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
        raise UserError(
            f"--checkpoint-dir {root}: {len(found)} checkpoints, none of the data, classes, k and tasks asked for"
        )
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


def run_gate(args: GateArgs, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure every checkpoint not measured yet; one JSON file each, so that a killed run continues."""
    for mode in args.modes:
        fusion_by_name(mode)
    folder = Path(args.output_dir) / args.branch
    shared: dict[tuple[Any, ...], Towers] = {}
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
        detector = load_detector(found.path, device=args.device, backbone_weights=args.weights, shared=shared)
        result = {"of": stamp, **measure(detector, found, args, folder)}
        write_json(file, result)
        results.append(result)
        notices |= {text for mode in args.modes if (text := detector.with_fusion(mode).fusion_notice())}
        scores = ", ".join(f"{mode} {values['auroc']:.2f}" for mode, values in result["modes"].items())
        say(f"[{number}/{len(checkpoints)}] {found.dataset} {found.class_name} k={found.k} {found.task}: {scores}")
    for text in sorted(notices):
        say(text)
    return results


def _result_file(folder: Path, found: Found) -> Path:
    name = f"{found.class_name}{f'_seed{found.seed}' if found.seed else ''}_{found.task}.json"
    return folder / found.dataset / f"k_{found.k}" / "gate_results" / name


@torch.no_grad()
def measure(detector: Detector, found: Found, args: GateArgs, folder: Path) -> dict[str, Any]:
    """AUROC (percent) of the branches, the fusions and the oracle on the test set; per-image signals beside it."""
    options = replace(
        detector.args, data_path=args.data_path or detector.args.data_path, obj=detector.facts["class_name"]
    )
    items = test_items(options)
    features = detector.towers.features(items, test=True)
    labels, masks = truth_of(items, detector.transform, options.resolution)
    branches = detector.branches(features, neighbours=2)
    per_sample = list(_signals(detector, features, branches, labels, [item.path.as_posix() for item in items]))
    seed = f"_seed{options.seed}"
    write_json(
        folder
        / found.dataset
        / f"k_{found.k}"
        / "per_sample"
        / found.task
        / f"{found.class_name}{seed}_per_sample.json",
        per_sample,
    )
    measured = _mode_scores(detector, branches, labels, args.modes)
    if found.task == "seg" and masks is None:
        raise UserError(f"{found.path}: the test images of {found.class_name} have no masks; --task cls")

    def value(scores: Tensor) -> float:
        return 100 * (auroc(scores, labels) if masks is None or found.task == "cls" else pixel_auroc(scores, masks))

    values = {mode: value(scores) for mode, scores in measured.items()}
    best = max(values["semantic"], values["memory"])
    rows = {
        mode: {
            "auroc": figure,
            "semantic_auroc": values["semantic"],
            "memory_auroc": values["memory"],
            "gap": figure - best,
        }
        for mode, figure in values.items()
    }
    semantic = sum(one["oracle_choice"] == 0 for one in per_sample) / len(per_sample)
    rows["oracle"] |= {"oracle_semantic_ratio": 100 * semantic, "oracle_memory_ratio": 100 * (1 - semantic)}
    return {
        "dataset": found.dataset,
        "class": found.class_name,
        "k_shot": found.k,
        "task": found.task,
        "seed": options.seed,
        "trained_fusion": detector.trained_fusion,
        "select": detector.facts["select"],
        "memory_nn_margin_mean": float(branches.margin.mean()),
        "memory_nn_margin_std": float(branches.margin.std(correction=0)),
        "modes": rows,
    }


def _mode_scores(detector: Detector, branches: Branches, labels: Tensor, modes: list[str]) -> dict[str, Tensor]:
    """Scores [N] (cls) or maps [N, H, W] (seg) of every mode."""
    settings = detector.settings
    textual, visual = branches.textual, branches.visual
    anomalous = labels.to(textual.device).bool().reshape(-1, *[1] * (textual.ndim - 1))
    raw = {"semantic": textual, "memory": visual}
    raw |= {mode: fuse_branches(textual, visual, replace(settings, fusion=mode)) for mode in modes}
    raw["oracle"] = torch.where(anomalous, torch.maximum(textual, visual), torch.minimum(textual, visual))
    if settings.task == "cls":
        return raw
    return {mode: render(grid, settings) for mode, grid in raw.items()}


def _signals(
    detector: Detector, features: ImageFeatures, branches: Branches, labels: Tensor, names: list[str]
) -> Iterator[dict[str, Any]]:
    """Per image: branch scores, the oracle's choice (0 semantic, 1 memory) and how reliable each branch looks.

    r_mem_margin    mean over patches of (second nearest - nearest) distance
    r_mem_entropy   entropy of the patch scores as a distribution, divided by log(patches): 1 = no patch stands out
    r_mem_centroid  (1 - cos) / 2 between the image's mean patch and the memory's mean, averaged over taps
    r_sem_prompt_var     variance over anomaly prompts of their cosine with the image
    r_sem_prompt_margin  mean cosine with anomaly prompts minus mean cosine with normal prompts
    r_sem_extremity      2 |textual score - 1/2|
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
    text = model.encode_prompts(detector.towers.text)
    pooled = features.for_task("cls")
    abnormal = pooled @ F.normalize(text.abnormal, dim=-1).T  # [N, M]
    normal = pooled @ F.normalize(text.normal, dim=-1).T
    extremity = 2 * (textual - 0.5).abs()
    columns = {
        "semantic_score": textual,
        "memory_score": visual,
        "r_mem_margin": branches.margin,
        "r_mem_entropy": entropy,
        "r_mem_centroid": centroid,
        "r_sem_prompt_var": abnormal.var(1, correction=0),
        "r_sem_prompt_margin": abnormal.mean(1) - normal.mean(1),
        "r_sem_extremity": extremity,
    }
    plain = {name: column.tolist() for name, column in columns.items()}
    for index, name in enumerate(names):
        label = int(labels[index])
        memory_wins = (plain["memory_score"][index] > plain["semantic_score"][index]) == bool(label)
        row = {"sample_id": name, "gt_label": label, "oracle_choice": int(memory_wins)}
        yield row | {column: values[index] for column, values in plain.items()}
