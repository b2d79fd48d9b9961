"""k-NN protocol of a V4 checkpoint with another k or distance than it was trained with:

python scripts/weld/evaluate_knn.py --checkpoint runs/weld_supcon/.../best_model.pth --k 3 --metric euclidean
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg, override
from anomaly_lib.detect.choice import Choice
from anomaly_lib.errors import OptionError
from anomaly_lib.files import write_json
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld.supcon.options import SupConTrainArgs


@dataclass
class Args(Options):
    """Neighbours of the training split vote on a split."""

    checkpoint: Optional[str] = arg(None, "best_model.pth of scripts/weld/train_supcon.py", type=str)
    k: int = override(SupConTrainArgs, "k")
    metric: str = override(SupConTrainArgs, "metric")
    split: str = override(Choice, "split", help="which split to judge")
    data_path: Optional[str] = override(Choice, "data_path")
    batch_size: int = override(Choice, "batch_size", help="runs encoded together")
    device: str = arg("auto", "auto, cpu, cuda or cuda:N")
    output: Optional[str] = arg(None, "also write the figures into this JSON file", type=str)

    def check(self) -> None:
        if not self.checkpoint:
            raise OptionError("give checkpoint=, a best_model.pth of scripts/weld/train_supcon.py")


def run(args: Args) -> None:
    """Bank from TRAIN, queries from the split, figures and the confusion matrix."""
    from anomaly_lib.detect.scores import summary

    detector = SYSTEMS.load(str(args.checkpoint), device=args.device)
    if detector.system != "weld_supcon":
        raise OptionError(
            f"checkpoint={args.checkpoint}: a checkpoint of {detector.system}; this program judges V4 only"
        )
    detector.args = replace(detector.args, k=args.k, metric=args.metric)
    choice = Choice(split=args.split, data_path=args.data_path, batch_size=args.batch_size)
    scores = detector.score(detector.items(choice))
    metrics = summary(scores)
    for line in scores.notes:
        print(line)
    print(", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    if args.output:
        write_json(Path(args.output), {"k": args.k, "metric": args.metric, "split": args.split, "metrics": metrics})


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, judge, leave with an exit code."""
    return command(Args, run, argv, prog="evaluate_knn.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
