"""PatchCore and PaDiM with real ResNet-18 weights on real categories, beside anomalib's own modules when installed.

    ANOMALY_LIB_DATA=DIR python scripts/check_real_detectors.py --output-dir runs/real

DIR holds mvtec_ad/CATEGORY in MVTec's layout and weights/resnet18*.pth. Both libraries see the same images, weights and
sizes. Writes results.json, and the table between the marks of docs/hdmap.md with --write-docs.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anomaly_lib.config import Switch, arg, command
from anomaly_lib.engine.run import machine_facts
from anomaly_lib.errors import UserError
from anomaly_lib.files import write_json, write_text
from anomaly_lib.metrics import aupro, auroc, pixel_auroc
from anomaly_lib.recipes.detectors.build import make_extractor
from anomaly_lib.recipes.detectors.options import resolve
from anomaly_lib.recipes.detectors.recipe import Args as DetectorArgs
from anomaly_lib.recipes.detectors.recipe import build, open_class, score_batches, stack_images
from anomaly_lib.types import Prediction

ROOT = Path(__file__).resolve().parents[1]
MARKS = ("<!-- real-data:begin -->", "<!-- real-data:end -->")


@dataclass
class Args:
    """Real-data check of PatchCore and PaDiM."""

    output_dir: str = arg("runs/real_detectors", "folder for results.json")
    categories: list[str] = arg(["bottle"], "classes below mvtec_ad/")
    image_size: int = arg(224, "side of the images", at_least=32)
    train_images: int = arg(0, "first normal images used; 0 = all", at_least=0)
    coreset_ratio: float = arg(0.1, "share of patches that PatchCore keeps", at_least=0, at_most=1)
    peer: Switch = arg(True, "also run anomalib's modules when they can be imported")
    write_docs: Switch = arg(False, "put the table into docs/hdmap.md")


def options(model: str, category: str, args: Args) -> Any:
    root = Path(os.environ.get("ANOMALY_LIB_DATA", ""))
    found = sorted((root / "weights").glob("resnet18*.pth"))
    if not found:
        raise UserError("set ANOMALY_LIB_DATA to a folder with weights/resnet18*.pth and mvtec_ad/CATEGORY")
    layers = ["layer2", "layer3"] if model == "patchcore" else []
    return resolve(
        DetectorArgs(
            model=model, dataset="mvtec", data_path=str(root / "mvtec_ad"), obj=category, backbone="resnet18",
            weights=str(found[0]), layers=layers, image_size=[args.image_size] * 2, figures=False,
            coreset_ratio=args.coreset_ratio,
        )
    )  # fmt: skip


def measures(prediction: Prediction, labels: torch.Tensor, masks: torch.Tensor) -> dict[str, float]:
    return {
        "image_auroc": auroc(prediction.score, labels),
        "pixel_auroc": pixel_auroc(prediction.map, masks),
        "aupro": aupro(prediction.map, masks),
    }


class Normalised(nn.Module):
    """anomalib's module behind the same normalisation and the same frozen network."""

    def __init__(self, module: nn.Module, extractor: nn.Module) -> None:
        super().__init__()
        module.feature_extractor = extractor
        self.module = module

    def forward(self, images: torch.Tensor) -> Prediction:
        found = self.module(images)
        return Prediction(found.pred_score.flatten(), found.anomaly_map.squeeze(1))


def peer_of(args: Any) -> nn.Module:
    extractor = make_extractor(args)[0]
    if args.model == "patchcore":
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        return Normalised(PatchcoreModel(layers=args.layers, backbone="resnet18", pre_trained=False), extractor)
    from anomalib.models.image.padim.torch_model import PadimModel

    return Normalised(PadimModel(layers=args.layers, backbone="resnet18", pre_trained=False), extractor)


def fit_peer(peer: Any, batches: list[torch.Tensor], args: Any) -> None:
    peer.module.train()
    peer.module.feature_extractor.eval()
    with torch.no_grad():
        for images in batches:
            peer.module(images)
    if args.model == "patchcore":
        peer.module.subsample_embedding(args.coreset_ratio)
    else:
        peer.module.fit()
    peer.eval()


def check(category: str, model: str, args: Args) -> dict[str, Any]:
    opts = options(model, category, args)
    _, normal, test = open_class(opts)
    count = args.train_images or len(normal)
    train = [stack_images(normal, rows) for rows in torch.arange(count).split(32)]
    batches = [stack_images(test, rows) for rows in torch.arange(len(test)).split(32)]
    labels = torch.tensor([item.label for item in test.items])
    masks = torch.stack([test[i]["mask"] for i in range(len(test))])
    device = torch.device("cpu")
    detector = build(opts, device)
    detector.eval().fit(train)
    row = {"category": category, "model": model, "size": args.image_size, "train_images": count}
    row["coreset_ratio"] = opts.coreset_ratio
    row["here"] = measures(score_batches(detector, batches, device), labels, masks)
    if args.peer:
        try:
            peer = peer_of(opts)
        except ImportError:
            return row
        fit_peer(peer, train, opts)
        row["anomalib"] = measures(score_batches(peer, batches, device), labels, masks)
    return row


def table(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    lines = [
        "| category | detector | image AUROC | pixel AUROC | AUPRO | anomalib: image | pixel | AUPRO |",
        "|" + "---|" * 8,
    ]
    for row in rows:
        cells = [row["category"], row["model"]]
        for side in ("here", "anomalib"):
            values = row.get(side, {})
            cells += [f"{values[k]:.4f}" if k in values else "-" for k in ("image_auroc", "pixel_auroc", "aupro")]
        lines.append("| " + " | ".join(cells) + " |")
    about = f"ResNet-18, {rows[0]['size']} x {rows[0]['size']}, {rows[0]['train_images']} normal images, "
    about += f"coreset {100 * rows[0]['coreset_ratio']:g} %"
    return "\n".join([*lines, "", f"{about}, seed 0, commit {facts['git_commit']}, torch {facts['torch']}."])


def run(args: Args) -> None:
    rows = [check(category, model, args) for category in args.categories for model in ("patchcore", "padim")]
    facts = machine_facts()
    write_json(Path(args.output_dir) / "results.json", {"rows": rows, "machine": facts})
    text = table(rows, facts)
    print(text)
    if args.write_docs:
        page = ROOT / "docs" / "hdmap.md"
        whole = page.read_text(encoding="utf-8")
        block = f"{MARKS[0]}\n{text}\n{MARKS[1]}"
        write_text(page, re.sub(f"{MARKS[0]}.*?{MARKS[1]}", lambda _: block, whole, flags=re.DOTALL))


def main(argv: Sequence[str] | None = None) -> int:
    return command(
        Args, run, argv, prog="check_real_detectors.py", description="Real-data check of PatchCore and PaDiM."
    )


if __name__ == "__main__":
    sys.exit(main())
