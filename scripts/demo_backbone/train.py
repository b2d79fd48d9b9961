"""Train the built-in demo CLIP from scratch on procedurally drawn, captioned pictures; one to two hours on two cores.

    python scripts/demo_backbone/train.py --output-dir runs/demo_clip  # draws, trains, writes the two files
    python scripts/demo_backbone/train.py --start runs/demo_clip/demo_clip.safetensors --output-dir runs/more  # goes on
    python scripts/demo_backbone/measure.py --weights runs/demo_clip/demo_clip.safetensors    # (or --evaluate here)

Three stages with about as many patches a step: windows of 8 x 8 patches, of 12 x 12, whole pictures. Captions are
contrasted with pictures, with single patches (is this spot damaged? how?) and with value-value patches; patches of
blocks 1 and 3 learn to be near those of another piece of the same product unless they are damaged.
The same command continues an interrupted run. docs/notebook/demo_backbone.md has the two commands behind the packaged
weights.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, Switch, arg

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts import each other from the repository root


@dataclass
class TrainArgs(Options):
    """Everything that decides the weights."""

    output_dir: str = arg("runs/demo_clip", "folder for the pool of pictures, the checkpoint and the weights")
    products: int = arg(16000, "drawn products: a normal piece, another one, and that one damaged", at_least=8)
    staged: Switch = arg(True, "every second product staged and photographed as the demo data are")
    validation_products: int = arg(512, "products drawn with another seed, for the figures of the log", at_least=16)
    start: Optional[str] = arg(None, "weights to begin with; None = from scratch", type=str)
    steps: int = arg(4000, "optimiser steps", at_least=1)
    learning_rate: float = arg(2e-3, "peak learning rate of Muon, for the matrices of the image tower", at_least=0)
    other_rate: float = arg(1.5e-3, "peak learning rate of AdamW, for everything else", at_least=0)
    weight_decay: float = arg(0.05, "decoupled weight decay", at_least=0)
    warmup: int = arg(100, "steps of linear warm-up", at_least=0)
    ema_decay: float = arg(0.997, "decay of the average that is exported", at_least=0, at_most=1)
    precision: str = arg("fp32", "matrix work: bf16 pays on a CPU with AMX only", choices=["bf16", "fp32"])
    seed: int = arg(2026, "seed of the pictures and of training", at_least=0)
    threads: int = arg(2, "CPU threads", at_least=1)
    save_every: int = arg(300, "steps between checkpoints", at_least=1)
    evaluate: Switch = arg(False, "after training (or at once, if it is done) measure the weights on the demo data")


def body(options: TrainArgs) -> int:
    """Train what is left to train, then measure if asked to."""
    from scripts.demo_backbone import measure
    from scripts.demo_backbone.training import train  # loads torch: --help and wrong options need none

    print(json.dumps(asdict(options)))
    weights = train(options)
    print(f"weights in {weights}")
    return measure.main(["--weights", str(weights)]) if options.evaluate else 0


def main(argv: Sequence[str] | None = None) -> int:
    return command(TrainArgs, body, argv, prog="train.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
