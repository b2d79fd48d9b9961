"""What the crash judge kills: a run of every system, the feature store, tables and the predictions of a stream.

A case is made once, in a folder of its own (weights, data, features that are no part of it), and answers the work that
is then done, killed and repeated in a fresh folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from anomaly_lib.engine.results import ResultsTable
from anomaly_lib.features import FeatureSpec, FeatureStore, array_key, extract
from anomaly_lib.systems.registry import SYSTEMS

Work = Callable[[Path], object]


def pictures(root: Path, size: int = 32) -> Path:
    """A class "nut" in the layout of MVTec AD, with masks."""
    rng = np.random.default_rng(0)
    for place, count in {"train/good": 6, "test/good": 3, "test/hole": 3}.items():
        for number in range(count):
            picture = rng.integers(90, 140, (size, size, 3), dtype=np.uint8)
            mask = np.zeros((size, size), np.uint8)
            if place == "test/hole":
                picture[8:16, 8:16], mask[8:16, 8:16] = 0, 255
                truth = root / "nut" / "ground_truth" / "hole" / f"{number:03d}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(truth)
            (root / "nut" / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(root / "nut" / place / f"{number:03d}.png")
    return root


def run_of(system: str, **options: Any) -> Callable[[Path], Work]:
    """A run of a system at tiny size; what it encodes is encoded once, before."""

    def case(place: Path) -> Work:
        if system in ("promptad", "detectors"):
            options.setdefault("data_path", str(pictures(place / "data")))
        return lambda root: SYSTEMS[system].train(SYSTEMS[system].tiny(output_dir=str(root), **options))

    return case


def weld_run(system: str) -> Callable[[Path], Work]:
    """A run of a weld system on features that are there."""

    def case(_: Path) -> Work:
        from anomaly_lib.systems.weld.inputs import build_features, open_runs
        from anomaly_lib.systems.weld.supcon.task import open_runs as open_supervised

        args = SYSTEMS[system].tiny(cache="ram")
        features = build_features(args, torch.device("cpu"))
        runs = (open_supervised if system == "weld_supcon" else open_runs)(args)
        features.prepare(runs)
        module = __import__(
            f"anomaly_lib.systems.weld.{'supcon' if system == 'weld_supcon' else system}.train", fromlist=["train"]
        )
        return lambda root: module.train(SYSTEMS[system].tiny(cache="ram", output_dir=str(root)), features=features)

    return case


def engine_run(place: Path) -> Work:
    from tests.support.tiny_recipe import Args, train

    return lambda root: train(Args(output_dir=str(root), epochs=4, save_path=str(root / "published" / "model.pt")))


def store_fill(place: Path) -> Work:
    """A store of thirty rows, filled by two processes' worth of batches; afterwards every row is read."""
    spec = FeatureSpec(backbone="net", weights="00", outputs=("tokens", "pooled"), transform="none")

    def rows(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        values = batch.float().view(-1, 1, 1) + torch.arange(8.0)
        return {"tokens": values.expand(-1, 4, -1), "pooled": values.mean(1)}

    def work(root: Path) -> None:
        with FeatureStore(spec, root=root / "cache", cache="disk") as store:
            keys = extract(
                rows, list(range(30)), store, load=torch.tensor, key=lambda i: array_key(np.array(i)), batch_size=4
            )
            found = store.rows(keys)
        torch.save(found, root / "found.pt")

    return work


def tables(place: Path) -> Work:
    """A results table that grows row by row."""

    def work(root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        table = ResultsTable(root / "results.csv", key=["class"])
        for number in range(4):
            table.put({"class": f"c{number}", "auroc": number / 10, **({"late": 1} if number > 2 else {})})

    return work


def predictions(place: Path) -> Work:
    """A stream of pictures with overlays, scored by a trained detector."""
    from anomaly_lib.evaluation.options import PredictArgs
    from anomaly_lib.evaluation.predict import predict_stream

    data = pictures(place / "data")
    done = SYSTEMS["detectors"].train(
        SYSTEMS["detectors"].tiny(dataset="mvtec", data_path=str(data), image_size=[32, 32], coreset_size=8,
                                  output_dir=str(place / "run"))
    )  # fmt: skip
    return lambda root: predict_stream(
        PredictArgs(
            checkpoint=str(done.checkpoint), input=[str(data / "nut" / "test")], output_dir=str(root), overlays=True,
            batch_size=2,
        ),
        SYSTEMS,
        lambda _: None,
    )  # fmt: skip


IMAGES: dict[str, Any] = {"dataset": "mvtec", "obj": "nut"}
CASES: dict[str, Callable[[Path], Work]] = {
    "engine": engine_run,
    "store": store_fill,
    "tables": tables,
    "predictions": predictions,
    "promptad": run_of("promptad", **IMAGES, save_every=1),
    "detectors": run_of(  # at 64 pixels batch norm has four values a channel, where a rank has one image
        "detectors", **IMAGES, model="draem", image_size=[64, 64], repair_width=4, segment_width=4, epochs=2
    ),
    "hdmap": run_of("hdmap", model="draem", repair_width=4, segment_width=4),
    "sowa": run_of("sowa", dataset="demo"),
    "causal_film": weld_run("causal_film"),
    "video_ae": run_of("video_ae"),
    "weld_supcon": weld_run("weld_supcon"),
    "crystal": run_of("crystal"),
}
