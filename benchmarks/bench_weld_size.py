"""Do V4 and the ladder A-D train on the whole data set within memory? Runs of the real token sizes, drawn, not encoded.

    python benchmarks/bench_weld_size.py [--runs 3231] [--hidden-dim 512] [--output weld_size.json]

The tokens of a run are those of V-JEPA 2 (8 frames), DINOv2 (5 photos) and AST; nothing of them is kept between
batches, as when they lie in the feature store. Peak: highest resident memory of the process, everything included.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from harness import BenchmarkArgs, finish, machine
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ladder lies among the scripts

from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.engine.memory import PeakMemory, highest_resident
from anomaly_lib.systems.weld.data.manifest import CLASSES, WeldRun
from anomaly_lib.systems.weld.supcon.task import open_runs
from scripts.weld.studies.baselines import Fitted, cross_attention, pool_of
from scripts.weld.studies.ladder import ladder
from scripts.weld.studies.options import LadderArgs

SHAPES = {"video": (784, 1024), "images": (5, 1, 768), "audio": (659, 768), "sensors": (128, 6)}
SHARES = {"good": 819, "porosity": 340, "overlap": 160}  # of 4,040; the rest is spread over the other classes


@dataclass
class Args(BenchmarkArgs):
    """How large."""

    runs: int = arg(3231, "runs to train on; a quarter of it is validated and tested", at_least=48)
    hidden_dim: int = arg(512, "width of V4", at_least=8)
    models: list[str] = arg(["A", "B-video", "C-late", "C-mid", "D"], "rows of the ladder")


class DrawnTokens:
    """Stands for `WeldFeatures`: rows of the real sizes, made when they are asked for."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        net = {name: SimpleNamespace(width=shape[-1]) for name, shape in SHAPES.items()}
        self.encoders = SimpleNamespace(
            video=net["video"], image=net["images"], audio=net["audio"], branches=(0,), weights={"drawn": "random"},
            parameter_count=0, learning_copy=lambda _: None, video_steps=4, audio_rows=12,
        )  # fmt: skip
        self.device, self.settings, self.sensor_statistics = torch.device("cpu"), None, None
        self.cache = "off"

    def batch(self, runs: Sequence[WeldRun], *, training: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Tokens that tell the classes apart."""
        shift = torch.tensor([run.class_label + hash(run.run_id) % 7 / 10 for run in runs])

        def drawn(name: str) -> Tensor:
            return self.rows[name] * shift.view(-1, *[1] * self.rows[name].ndim)

        present = torch.ones(len(runs), 4, dtype=torch.bool)
        views = torch.ones(len(runs), SHAPES["images"][0], dtype=torch.bool)
        named = {name: drawn(name) for name in ("video", "audio", "sensors")}
        return {**named, "images": [drawn("images")], "views": views, "present": present}

    def modality(self, runs: Sequence[WeldRun], name: str) -> Tensor:
        """Tokens of one modality."""
        tokens = self.batch(runs)["images"][0].mean(2) if name == "images" else self.batch(runs)[name]
        return cast(Tensor, tokens)

    def seen_by(self, _: object) -> "DrawnTokens":
        """No encoder learns."""
        return self

    def nothing(self, *_: object, **__: object) -> list[str]:
        """What filling and describing a store comes to."""
        return []

    prepare = fill = fit_sensors = read_sensors = nothing


def write_manifest(root: Path, train: int) -> None:
    """A data set of folders with a sensor table each; classes in the shares of the published one."""
    rows = ["CATEGORY,SUBDIRS,SPLIT"]
    for split, count in (("TRAIN", train), ("VAL", train // 8), ("TEST", train // 8)):
        for i in range(count):
            place = i * 4040 // count % 4040
            name = "good" if place < SHARES["good"] else CLASSES[1 + i % (len(CLASSES) - 1)]
            folder = f"{name}/{split}-{i:05d}-{name}"
            (root / folder).mkdir(parents=True)
            (root / folder / "sensor.csv").write_text("a\n1\n")
            rows.append(f"{name},{folder},{split}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")


def bench(args: Args) -> None:
    """Fit every model once and say the peak after each."""
    features: Any = DrawnTokens()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_manifest(root / "data", args.runs)
        options = LadderArgs(
            data_path=str(root / "data"), results=str(root / "out"), epochs=1, hidden_dim=args.hidden_dim,
            figures=False, baseline_epochs=1, audio_width=64, models=args.models, sampler="stratified", cache="ram",
        )  # fmt: skip
        started = time.process_time()
        pool = pool_of(features, open_runs(options), steps=4)
        pool.below = features
        rows["pool of features"] = {"core_seconds": time.process_time() - started, "peak_mb": highest_resident()}
        models = ladder() | {"D": cross_attention}
        for model in args.models:
            started = time.process_time()
            with PeakMemory(features.device):  # what the model before has freed goes back first, as in the ladder
                fitted: Fitted = models[model](pool, options.seeded(0))
            assert all(torch.isfinite(scores).all() for scores in fitted.scores.values())
            rows[model] = {"core_seconds": time.process_time() - started, "peak_mb": highest_resident()}
            print(f"{model:18} {rows[model]['core_seconds']:9.1f} s  peak {rows[model]['peak_mb']:7.0f} MB", flush=True)
    peak = max(row["peak_mb"] for row in rows.values())
    each = sum(row.nbytes for row in features.rows.values()) / 2e6  # in half precision
    print(f"{args.runs} runs to train on, {each:.1f} MB each: peak {peak:.0f} MB")
    finish({"machine": machine(), "runs": args.runs, "hidden_dim": args.hidden_dim, "rows": rows}, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_weld_size.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
