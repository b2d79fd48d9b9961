"""Evaluate any checkpoint of any system: metrics, per-class tables, figures, an HTML report.

python evaluate.py --checkpoint runs/promptad/demo-brushed_metal-k1-1a2b3c4d
python evaluate.py --checkpoint 'result/**/cls_checkpoint.pth' --policy false-alarms --report report
"""

import sys
from collections.abc import Sequence

from anomaly_lib.command_line import command
from anomaly_lib.evaluation.options import EvaluateArgs
from anomaly_lib.systems.registry import SYSTEMS


def body(args: EvaluateArgs) -> int:
    from anomaly_lib.evaluation.evaluate import evaluate  # loads torch: --help and wrong options need none

    return evaluate(args, SYSTEMS, print)


def main(argv: Sequence[str] | None = None) -> int:
    return command(EvaluateArgs, body, argv, prog="evaluate.py", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
