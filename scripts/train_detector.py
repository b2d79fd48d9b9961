"""Train PatchCore, PaDiM, Reverse Distillation, DRAEM or DRAEM-SevNet on one class of any image data set."""

import sys

from anomaly_lib.config import command
from anomaly_lib.systems.detectors.train import Args, train


def body(args: Args) -> None:
    result = train(args)
    state = "already done" if result.already_done else "done"
    print(f"{state}: {result.run_dir}  image AUROC {result.metrics['image_auroc']:.4f}")


def main(argv: list[str] | None = None) -> int:
    return command(Args, body, argv, prog="train_detector.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
