"""PatchCore and PaDiM with real ResNet-18 weights on real categories, beside anomalib's own modules when installed.

    ANOMALY_LIB_DATA=DIR python scripts/check_real_detectors.py --coreset-ratio 0.01 --seeds 0 1 2
    ANOMALY_LIB_DATA=DIR python scripts/check_real_detectors.py --models patchcore --coreset-ratio 0.1 --write-docs

DIR holds FOLDER/CATEGORY in MVTec's layout and weights/resnet18*.pth. Both libraries see the same images, weights,
sizes and metrics. Each draws its own channels (PaDiM) or coreset (PatchCore); a third run, `same_draws`, is our
detector with anomalib's draw and upsampling, so that what is left between the two is arithmetic; for PatchCore a fourth
has anomalib's draw and our bilinear resize of the map. Rows already in --output are kept.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_lib.config import Options, Switch, arg, command
from anomaly_lib.engine.run import machine_facts
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_between, write_json
from anomaly_lib.metrics import aupro, auroc, pixel_auroc
from anomaly_lib.models.detectors.anomalib_keys import load_anomalib
from anomaly_lib.ops import greedy_coreset
from anomaly_lib.systems.detectors.build import build, make_extractor
from anomaly_lib.systems.detectors.options import resolve
from anomaly_lib.systems.detectors.train import Args as DetectorArgs
from anomaly_lib.systems.detectors.train import open_class, score_batches, stack_images
from anomaly_lib.types import Prediction

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts import each other from the repository root

from scripts.pages.beside_peer import key, table

ROOT = Path(__file__).resolve().parents[1]
MARKS = ("<!-- real-data:begin -->", "<!-- real-data:end -->")
LAYERS = {"patchcore": ["layer2", "layer3"], "padim": ["layer1", "layer2", "layer3"]}
CPU = torch.device("cpu")


@dataclass
class Args(Options):
    """Real-data check of PatchCore and PaDiM."""

    output: str = arg("benchmarks/results/real_detectors.json", "JSON file; its rows are kept and added to")
    categories: list[str] = arg(["mvtec_ad/bottle", "mtd/magnetic_tile", "battery_weld/weld"], "FOLDER/CATEGORY")
    models: list[str] = arg(["patchcore", "padim"], "which detectors", choices=["patchcore", "padim"])
    image_size: int = arg(224, "side of the images", at_least=32)
    coreset_ratio: float = arg(0.1, "share of patches that PatchCore keeps", at_least=0, at_most=1)
    seeds: list[int] = arg([0], "seeds of the draws")
    peer: Switch = arg(True, "also run anomalib's modules when they can be imported")
    write_docs: Switch = arg(False, "put the table into docs/manual/hdmap.md")


def options(model: str, category: str, args: Args, seed: int) -> Any:
    root = Path(os.environ.get("ANOMALY_LIB_DATA", ""))
    found = sorted((root / "weights").glob("resnet18*.pth"))
    if not found:
        raise UserError("set ANOMALY_LIB_DATA to a folder with weights/resnet18*.pth and mvtec_ad/bottle")
    folder, _, name = category.partition("/")
    return resolve(
        DetectorArgs(
            model=model, dataset="mvtec", data_path=str(root / folder), obj=name, backbone="resnet18",
            weights=str(found[0]), layers=LAYERS[model], image_size=[args.image_size] * 2, figures=False,
            coreset_ratio=args.coreset_ratio, seed=seed,
        )
    )  # fmt: skip


class Remembering(nn.Module):
    """A frozen network that answers each batch once; the batches are kept, so their addresses name them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.known: dict[int, dict[str, Tensor]] = {}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if images.data_ptr() not in self.known:
            self.known[images.data_ptr()] = self.net(images)
        return self.known[images.data_ptr()]


class Category:
    """Images, truth and frozen features of one category, read once for all runs."""

    def __init__(self, name: str, args: Args) -> None:
        opts = options("padim", name, args, 0)
        _, normal, test = open_class(opts)
        self.name, self.count = name, len(normal)
        self.train = [stack_images(normal, rows) for rows in torch.arange(len(normal)).split(32)]
        self.test = [stack_images(test, rows) for rows in torch.arange(len(test)).split(32)]
        self.labels = torch.tensor([item.label for item in test.items])
        self.masks = torch.stack([test[i]["mask"] for i in range(len(test))])
        self.extractor = Remembering(make_extractor(opts)).eval()

    def measures(self, prediction: Prediction) -> dict[str, float]:
        return {
            "image_auroc": auroc(prediction.score, self.labels),
            "pixel_auroc": pixel_auroc(prediction.map, self.masks),
            "aupro": aupro(prediction.map, self.masks),
        }


class Peer(nn.Module):
    """anomalib's module on the same frozen features."""

    def __init__(self, model: str, extractor: nn.Module) -> None:
        super().__init__()
        if model == "patchcore":
            from anomalib.models.image.patchcore.torch_model import PatchcoreModel as Model
        else:
            from anomalib.models.image.padim.torch_model import PadimModel as Model
        self.module = Model(layers=LAYERS[model], backbone="resnet18", pre_trained=False)
        self.module.feature_extractor = extractor

    def forward(self, images: Tensor) -> Prediction:
        found = self.module(images)
        return Prediction(found.pred_score.flatten(), found.anomaly_map.squeeze(1))

    @torch.no_grad()
    def fit(self, batches: list[Tensor], ratio: float) -> None:
        self.module.train()
        self.module.feature_extractor.eval()
        for images in batches:
            self.module(images)
        if hasattr(self.module, "subsample_embedding"):
            with quick_greedy():
                self.module.subsample_embedding(ratio)
        else:
            self.module.fit()
        self.eval()


@contextmanager
def quick_greedy() -> Iterator[None]:
    """anomalib's selection of a coreset, its own projection and first pick, without its loop of hours.

    `greedy_coreset` picks what that loop picks (bench_memory_bank.py and tests/parity compare the two).
    """
    from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy

    def select(self: Any) -> list[int]:
        self.model.fit(self.embedding)
        start = int(torch.randint(high=self.n_observations, size=(1,)))
        found: list[int] = greedy_coreset(self.model.transform(self.embedding), self.coreset_size, start=start).tolist()
        return found

    original, KCenterGreedy.select_coreset_idxs = KCenterGreedy.select_coreset_idxs, select
    try:
        yield
    finally:
        KCenterGreedy.select_coreset_idxs = original


def detector_on(data: Category, opts: Any) -> nn.Module:
    detector = build(opts, CPU)
    detector.extractor = data.extractor
    return detector.eval()


def same_draws(data: Category, opts: Any, peer: Peer) -> Any:
    """Our detector with anomalib's bank and nearest upsampling, or fitted here on anomalib's channels."""
    detector: Any = detector_on(data, opts)
    if opts.model == "patchcore":
        load_anomalib(detector, {"model.memory_bank": peer.module.memory_bank})
        detector.upsample = "nearest"
    else:
        detector.channels = peer.module.idx.clone()
        detector.fit(data.train)
    return detector


def check(data: Category, opts: Any, with_peer: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"category": data.name, "model": opts.model, "seed": opts.seed, "size": opts.image_size[0]}
    row |= {"train_images": data.count, "test_images": len(data.labels)}
    row["coreset_ratio"] = opts.coreset_ratio if opts.model == "patchcore" else None
    row["commit"] = machine_facts()["git_commit"]
    ours: Any = detector_on(data, opts)
    row["here"] = data.measures(score_batches(ours.fit(data.train), data.test, CPU))
    if not with_peer:
        return row
    torch.manual_seed(opts.seed)  # anomalib draws from the global generators, torch's and (for its projection) numpy's
    np.random.seed(opts.seed)  # noqa: NPY002
    peer = Peer(opts.model, data.extractor)
    peer.fit(data.train, opts.coreset_ratio)
    theirs = score_batches(peer, data.test, CPU)
    row["anomalib"] = data.measures(theirs)
    twin = same_draws(data, opts, peer)
    matched = score_batches(twin, data.test, CPU)
    row["same_draws"] = data.measures(matched)
    row["same_draws_largest_score_difference"] = relative(matched.score, theirs.score)
    row["same_draws_largest_map_difference"] = relative(matched.map, theirs.map)
    if opts.model == "patchcore":
        twin.upsample = opts.upsample
        row["same_draws_our_resize"] = data.measures(score_batches(twin, data.test, CPU))
    return row


def relative(ours: Any, theirs: Any) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def run(args: Args) -> None:
    path = Path(args.output)
    rows = read_json(path)["rows"] if path.is_file() else []
    for name in args.categories:
        wanted = [options(model, name, args, seed) for model in args.models for seed in args.seeds]
        data: Category | None = None
        for opts in wanted:
            ratio = opts.coreset_ratio if opts.model == "patchcore" else None
            if any(key(row) == (name, opts.model, ratio, args.image_size, opts.seed) for row in rows):
                continue
            data = data or Category(name, args)
            begin = time.perf_counter()
            rows.append(check(data, opts, args.peer))
            print(f"{name} {opts.model} seed {opts.seed}: {time.perf_counter() - begin:.0f} s", flush=True)
            write_json(path, {"rows": rows, "machine": machine_facts()})
    text = table(rows)
    print(text)
    if args.write_docs:
        write_between(ROOT / "docs" / "manual" / "hdmap.md", MARKS, text)


def main(argv: Sequence[str] | None = None) -> int:
    return command(
        Args, run, argv, prog="check_real_detectors.py", description="Real-data check of PatchCore and PaDiM."
    )


if __name__ == "__main__":
    sys.exit(main())
