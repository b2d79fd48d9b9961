"""One training step of V4 whose encoders learn, at the published sizes: seconds on a core and peak memory.

    python benchmarks/bench_weld_step.py [--page docs/manual/weld.md] [--output benchmarks/results/weld_step.json]

The encoders are built as their last block alone, untrained; what the feature store would keep below it is drawn, in
half precision. A step is that of `train_supcon.py --encoder-training last --encoder-blocks 1`: reading tokens by the
blocks, V4 at width 512, its losses, backward, clip, AdamW. Each row is a process of its own, so that its peak is its
own. What is left out: decoding and the frozen blocks below, which run once for each weld.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from harness import BenchmarkArgs, finish, machine
from torch import Tensor

from anomaly_lib.backbones.huggingface_names import KNOWN, Known
from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.engine.memory import highest_resident
from anomaly_lib.engine.optim import step
from anomaly_lib.files import write_between
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.inputs import build_features
from anomaly_lib.systems.weld.supcon.options import Args as QuadArgs
from anomaly_lib.systems.weld.supcon.task import build, objective, photo_vectors
from anomaly_lib.systems.weld.supcon.train import Learner

MARKS = ("<!-- bench_weld_step begins -->", "<!-- bench_weld_step ends -->")
NETS = {"video": "vjepa2-vitl", "image": "dinov2-base", "audio": "ast-14-14"}
# frames, their side and the photos' side: V4's defaults, and those that the encoders were published with
SIZES = {"V4's": (8, 224, 224), "the encoders'": (64, 256, 518)}


@dataclass
class Args(BenchmarkArgs):
    """Which steps."""

    repeats: int = arg(2, "steps of each row; the fastest is told", at_least=1)
    sizes: list[str] = arg(list(SIZES), "inputs of which size", choices=list(SIZES))
    batch_size: int = arg(2, "welds of a batch", at_least=2)
    page: Optional[str] = arg(None, "page whose table is renewed", type=str)
    row: Optional[str] = arg(None, "one row as JSON; the program starts itself with it", type=str)


def options(size: str, *, batch_size: int, recompute: bool) -> QuadArgs:
    """Those of the training, with encoders that are their last block alone."""
    frames, frame_side, photo_side = SIZES[size]
    for name in NETS.values():  # the embeddings below are built, too, and not used
        KNOWN[f"last-of-{name}"] = Known(KNOWN[name].family, "", {**KNOWN[name].config, "num_hidden_layers": 1})
    encoders: dict[str, Any] = {f"{part}_weights": "random" for part in NETS}
    encoders |= {f"{part}_backbone": f"last-of-{name}" for part, name in NETS.items()}
    return QuadArgs(
        data_path=".", dataset="weld", cache="ram", device="cpu", branches="1.mean", video_frames=frames,
        video_size=frame_side, image_size=[photo_side], batch_size=batch_size, encoder_training="last",
        encoder_recompute=recompute, **encoders,
    )  # fmt: skip


def drawn_rows(args: QuadArgs, features: WeldFeatures) -> dict[str, Tensor]:
    """What `WeldFeatures.read` would answer of a batch: states below the cut, stored in half precision."""
    generator, count = torch.Generator().manual_seed(0), args.batch_size
    encoders, present = features.encoders, torch.ones(count, dtype=torch.bool)
    places = {
        "video": args.video_frames // 2 * (args.video_size // 16) ** 2,
        "audio": 2 + encoders.audio_rows * ((1024 - 16) // 14 + 1),
        "state": 1 + (args.image_size[0] // 14) ** 2,
    }
    widths = {"video": encoders.video.width, "audio": encoders.audio.width, "state": encoders.image.width}

    def drawn(name: str, *views: int) -> Tensor:
        return torch.randn(count, *views, places[name], widths[name], generator=generator).half().float()

    return {
        "video": drawn("video"), "audio": drawn("audio"), "state": drawn("state", args.views),
        "views": torch.ones(count, args.views, dtype=torch.bool), "sensors": torch.randn(count, args.sensor_steps, 6),
        "has_video": present, "has_audio": present, "has_sensors": present,
    }  # fmt: skip


def one_row(size: str, *, batch_size: int, recompute: bool, repeats: int) -> dict[str, Any]:
    """Seconds and peak of the steps."""
    args = options(size, batch_size=batch_size, recompute=recompute)
    features = build_features(args, torch.device("cpu"))
    task = build(args, features).train()
    learner, features = Learner.of(args, task, features.device), features.seen_by(task.tops)
    rows, labels = drawn_rows(args, features), torch.arange(batch_size) // 2  # two of each class
    before, wall, core = highest_resident(), [], []
    for _ in range(repeats):
        started, on_core = time.perf_counter(), time.process_time()
        tokens = features.tokens(dict(rows))
        batch = {**tokens, "images": photo_vectors(tokens["images"]), "images_mask": tokens["views"]}
        loss = objective(args, task, batch, labels, None)["loss"]
        report = step(loss, learner.optimizer, clip=args.grad_clip)
        wall.append(time.perf_counter() - started)
        core.append(time.process_time() - on_core)
        assert not report.skipped
    assert task.tops is not None
    return {
        "size": size, "recompute": recompute, "batch_size": batch_size,
        "tokens": {name: list(rows[name].shape[1:-1]) for name in ("video", "state", "audio")},
        "learning": sum(p.numel() for p in task.tops.parameters() if p.requires_grad),
        "seconds": min(wall), "core_seconds": min(core), "held_mb": before, "peak_mb": highest_resident(),
    }  # fmt: skip


def bench(args: Args) -> None:
    """Every row in a process of its own, then the table."""
    if args.row is not None:
        print(json.dumps(one_row(**json.loads(args.row))))
        return
    rows = []
    for size in args.sizes:
        for recompute in (False, True):
            asked = {"size": size, "recompute": recompute, "batch_size": args.batch_size, "repeats": args.repeats}
            words = [sys.executable, __file__, "--row", json.dumps(asked)]
            done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]), flush=True)
    report = {"machine": machine("transformers"), "rows": rows, "load": os.getloadavg()[0]}
    if args.page is not None:
        write_between(Path(args.page), MARKS, table(report))
    finish(report, args.output)


def table(report: dict[str, Any]) -> str:
    """The page's table."""
    lines = [
        "| inputs | tokens of a weld: video, photos, sound | `--encoder-recompute` | core seconds of a step | "
        "held before | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        frames, frame_side, photo_side = SIZES[row["size"]]
        (video,), (views, state), (audio,) = row["tokens"].values()
        lines.append(
            f"| {row['size']}: {frames} frames of {frame_side} px, photos of {photo_side} px | "
            f"{video:,}, {views} x {state:,}, {audio} | {'yes' if row['recompute'] else 'no'} | "
            f"{row['core_seconds']:.1f} | {row['held_mb'] / 1000:.1f} GB | {row['peak_mb'] / 1000:.1f} GB |"
        )
    row, where = report["rows"][0], report["machine"]
    note = (
        f"{row['batch_size']} welds a batch, one thread, fp32; the last block of V-JEPA 2 ViT-L, DINOv2 B/14 and AST "
        f"learns, {row['learning']:,} parameters, under V4 at width 512; states below are drawn. "
        f"`python benchmarks/bench_weld_step.py`, commit {where['commit']}, {where['cpu']}."
    )
    return "\n".join([*lines, "", note])


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_weld_step.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
