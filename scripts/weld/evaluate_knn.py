"""k-NN protocol of a V4 checkpoint with another k or distance than it was trained with:

python scripts/weld/evaluate_knn.py --checkpoint runs/weld_supcon/.../best_model.pth --k 3 --metric euclidean
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import torch

from anomaly_lib.config import Options, arg, command
from anomaly_lib.errors import UserError
from anomaly_lib.files import write_json
from anomaly_lib.metrics.knn import METRICS
from anomaly_lib.systems.weld.data.manifest import select_runs
from anomaly_lib.systems.weld.supcon.detector import load_detector
from anomaly_lib.systems.weld.supcon.knn import knn_metrics, knn_report
from anomaly_lib.systems.weld.supcon.task import open_runs


@dataclass
class Args(Options):
    """Neighbours of the training split vote on a split."""

    checkpoint: Optional[str] = arg(None, "best_model.pth of scripts/weld/train_supcon.py", type=str)
    k: int = arg(5, "neighbours", at_least=1)
    metric: str = arg("cosine", "their distance", choices=list(METRICS))
    split: str = arg("test", "which split to judge", choices=["train", "val", "test"])
    data_path: Optional[str] = arg(None, "folder of the data; None = the data of the training run", type=str)
    batch_size: Optional[int] = arg(None, "runs encoded together; None = as in training", type=int, at_least=1)
    device: str = arg("auto", "auto, cpu, cuda or cuda:N")
    output: Optional[str] = arg(None, "also write the figures into this JSON file", type=str)


def run(args: Args) -> None:
    """Bank from TRAIN, queries from the split, figures and the confusion matrix."""
    if not args.checkpoint:
        raise UserError("--checkpoint is needed: a best_model.pth of scripts/weld/train_supcon.py")
    detector = load_detector(args.checkpoint, device=args.device)
    if args.batch_size:
        detector.args = replace(detector.args, batch_size=args.batch_size)
    runs = open_runs(replace(detector.args, data_path=args.data_path or detector.args.data_path))
    bank, bank_labels = detector.bank(runs)
    chosen = select_runs(runs, args.split)
    found, labels = detector.encode(chosen)["features"], torch.tensor([one.class_label for one in chosen])
    metrics = knn_metrics(bank, bank_labels, found, labels, k=args.k, metric=args.metric)
    for line in knn_report(bank, bank_labels, found, labels, k=args.k, metric=args.metric):
        print(line)
    print(", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    if args.output:
        write_json(Path(args.output), {"k": args.k, "metric": args.metric, "split": args.split, "metrics": metrics})


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, judge, leave with an exit code."""
    return command(Args, run, argv, prog="evaluate_knn.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
