"""Evaluate any checkpoint of any system: metrics, per-class tables, figures, an HTML report.

python evaluate.py --checkpoint runs/promptad/demo-brushed_metal-k1-1a2b3c4d
python evaluate.py --checkpoint 'result/**/cls_checkpoint.pth' --policy false-alarms --report report
"""

import sys
from collections.abc import Sequence

from anomaly_lib.config import command
from anomaly_lib.detect.contract import EvaluateArgs
from anomaly_lib.evaluation.evaluate import evaluate


def main(argv: Sequence[str] | None = None) -> int:
    return command(EvaluateArgs, lambda args: evaluate(args, print), argv, prog="evaluate.py", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
