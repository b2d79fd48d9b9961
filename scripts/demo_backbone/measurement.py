"""The figures of the demo CLIP on the demo data, with trained and with random weights."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.backbones import create_backbone
from anomaly_lib.data.demo.items import CATEGORIES, demo_items
from anomaly_lib.data.transforms import clip_transform
from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.files import write_between, write_json
from anomaly_lib.metrics import auroc, pixel_auroc
from anomaly_lib.ops import nearest_neighbours, upsample_and_smooth
from scripts.demo_backbone.measure import Args
from scripts.demo_backbone.objective import MEMORY_TAPS, TEXT_SHARE, strongest
from scripts.demo_backbone.pictures import captions

SEEN = ("woven", "brushed_metal", "grid")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "notebook" / "demo_backbone.md"
MARKS = ("<!-- measured -->", "<!-- end of measured -->")
SHOWN = ("zero-shot image", "zero-shot pixel", "memory image", "memory pixel")  # of the docs' table
Measured = dict[str, dict[str, float]]


def encode(backbone: nn.Module, images: Tensor) -> dict[str, Tensor]:
    parts = [backbone.encode(part) for part in images.split(32)]  # type: ignore[operator]
    return {name: torch.cat([part[name].float() for part in parts]) for name in parts[0]}


def as_map(scores: Tensor, size: int, sigma: float) -> np.ndarray:
    """Patch scores [B, P] -> [B, size, size]."""
    side = round(scores.shape[1] ** 0.5)
    return upsample_and_smooth(scores.unflatten(1, (side, side)), (size, size), sigma=sigma).numpy()


def direction(backbone: nn.Module, name: str) -> Tensor:
    """[D] from the averaged normal prompts of a category to its damaged ones."""
    noun = name.replace("_", " ")
    groups = (captions.NORMAL_STATES, captions.DAMAGED_STATES)
    prompts = [[f"a photo of a {state.format(noun)}." for state in states] for states in groups]
    normal, damaged = (F.normalize(backbone.text.encode_text(texts).float(), dim=-1).mean(0) for texts in prompts)
    return damaged - normal


def memory(train: dict[str, Tensor], test: dict[str, Tensor]) -> Tensor:
    """Distance [B, P] of each patch to the nearest normal patch, features of two layers side by side."""

    def rows(features: dict[str, Tensor]) -> Tensor:
        return torch.cat([F.normalize(features[f"layer.{layer}"], dim=-1) for layer in MEMORY_TAPS], -1)

    queries, bank = rows(test), rows(train)
    distance, _ = nearest_neighbours(queries.flatten(0, 1), bank.flatten(0, 1), 1)
    return distance.reshape(queries.shape[:2])


def scores_of(backbone: nn.Module, train: Tensor, test: Tensor, towards: Tensor, views: int) -> dict[str, Tensor]:
    """Scores from the memory and from text: pooled [B], the others [B, P]; means over turned and mirrored views."""
    found: dict[str, list[Tensor]] = {}
    for view in range(views):
        turn, mirrored = view // 2, view % 2 == 1

        def seen(images: Tensor, turn: int = turn, mirrored: bool = mirrored) -> Tensor:
            return torch.rot90(images.flip(-1) if mirrored else images, turn, (-2, -1))

        def unseen(scores: Tensor, turn: int = turn, mirrored: bool = mirrored) -> Tensor:
            side = round(scores.shape[1] ** 0.5)
            grid = torch.rot90(scores.unflatten(1, (side, side)), -turn, (-2, -1))
            return (grid.flip(-1) if mirrored else grid).flatten(1)

        known, asked = (encode(backbone, seen(images)) for images in (train, test))
        names = ("patch_tokens", "vv_tokens")
        one = {name: unseen(F.normalize(asked[name], dim=-1) @ towards) for name in names}
        one |= {"memory": unseen(memory(known, asked)), "pooled": F.normalize(asked["pooled"], dim=-1) @ towards}
        for name, scores in one.items():
            found.setdefault(name, []).append(scores)
    return {name: torch.stack(parts).mean(0) for name, parts in found.items()}


def measure(backbone: nn.Module, args: Args, *, views: int = 1) -> Measured:
    """AUROC by category."""
    size = int(backbone.image_size[0])  # type: ignore[index]
    transform = clip_transform(size)
    table = {}
    for name in CATEGORIES:
        items = demo_items(
            categories=[name],
            size=256,
            train=args.shot,
            test_good=args.test_good,
            per_defect=args.per_defect,
            seed=args.seed,
        )
        train, test = ([item for item in items if item.split == split] for split in ("train", "test"))
        pixels = [torch.stack([transform(item.image) for item in part]) for part in (train, test)]
        labels = np.array([item.label for item in test])
        masks = np.stack([transform.mask(item.mask).numpy() for item in test])
        scores = scores_of(backbone, *pixels, direction(backbone, name), views)
        tokens = strongest(scores["patch_tokens"], TEXT_SHARE)
        images = {"zero-shot image": scores["pooled"] + tokens, "memory image": strongest(scores["memory"])}
        images |= {"zero-shot pooled": scores["pooled"], "zero-shot patches": tokens}
        maps = {"zero-shot pixel": "patch_tokens", "zero-shot pixel vv": "vv_tokens", "memory pixel": "memory"}
        row = {key: auroc(values, labels) for key, values in images.items()}
        row |= {key: pixel_auroc(as_map(scores[kind], size, args.sigma), masks) for key, kind in maps.items()}
        table[name] = {key: round(float(value), 4) for key, value in row.items()}
        if args.by_defect:
            kinds = np.array([item.defect for item in test])
            for kind in sorted(set(kinds[labels == 1])):
                some = (labels == 0) | (kinds == kind)
                table[f"{name}: {kind}"] = {key: auroc(values[some], labels[some]) for key, values in images.items()}
    keys = list(table[SEEN[0]])
    held_out = tuple(name for name in CATEGORIES if name not in SEEN)
    for group, members in (("seen", SEEN), ("held out", held_out), ("all", (*SEEN, *held_out))):
        table[group] = {key: round(float(np.mean([table[name][key] for name in members])), 4) for key in keys}
    return table


def run(args: Args) -> None:
    """Measure the trained and the random network and print both tables."""
    outputs = [*MEMORY_TAPS, "pooled", "patch_tokens", "vv_tokens"]
    size = args.image_size[0] if args.image_size else None
    trained = create_backbone("demo-clip", weights=args.weights, layers=outputs, image_size=size)
    random = create_backbone("demo-clip", weights="random", layers=outputs, image_size=size)
    results = {"trained": measure(trained, args), "trained, 8 views": measure(trained, args, views=8)}
    results["random"] = measure(random, args)
    for kind, table in results.items():
        print(kind)
        for name, row in table.items():
            print(f"  {name:{max(map(len, table))}} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    if args.output:
        write_json(Path(args.output), results)
    if args.write_docs:
        write_between(PAGE, MARKS, as_table(results).markdown().strip())


def as_table(results: dict[str, Measured]) -> Table:
    """Every category, and the means with random weights and with all views below."""
    rows: list[dict[str, Cell]] = []
    for kind, table in results.items():
        groups = ["seen", "held out", "all"]
        names = [*CATEGORIES, *groups] if kind == "trained" else groups
        rows += [
            {"weights": kind, "category": n.replace("_", " "), **{key: table[n][key] for key in SHOWN}} for n in names
        ]
    return Table(["weights", "category", *SHOWN], rows)
