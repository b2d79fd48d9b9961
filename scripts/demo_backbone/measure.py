"""What the built-in demo CLIP is worth on the demo data: zero-shot from text alone, and a memory of k normal images.

    python scripts/demo_backbone/measure.py [--weights demo_clip.safetensors] [--shot 4] [--seed 0] [--write-docs]

Random weights of the same architecture are measured beside it. `seen` categories are drawn for training, too, with
other seeds; the things of the `held out` ones (capsule, circuit board) are not.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, Switch, arg

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts import each other from the repository root


@dataclass
class Args(Options):
    """Evaluation of the demo backbone."""

    weights: Optional[str] = arg(None, "weight file; None = the packaged one", type=str)
    shot: int = arg(4, "normal images in the memory", at_least=1)
    seed: int = arg(0, "seed of the demo data", at_least=0)
    test_good: int = arg(20, "normal test images a category", at_least=2)
    per_defect: int = arg(5, "test images a defect", at_least=1)
    image_size: list[int] = arg([], "side of the input; none = the trained 128 px", type=int, at_least=64, length=1)
    sigma: float = arg(4.0, "Gaussian smoothing of maps, in pixels", at_least=0)
    output: Optional[str] = arg(None, "write the table to this JSON file as well", type=str)
    by_defect: Switch = arg(False, "image AUROC of every kind of defect alone as well")
    write_docs: Switch = arg(False, "put the table into docs/notebook/demo_backbone.md")


def body(args: Args) -> None:
    from scripts.demo_backbone.measurement import run  # loads torch: --help and wrong options need none

    run(args)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, body, argv, prog="measure.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
