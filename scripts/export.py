"""Export a trained image detector: `python scripts/export.py --checkpoint FILE --format onnx|torch`."""

import sys
from collections.abc import Sequence

from anomaly_lib.command_line import command
from anomaly_lib.evaluation.options import ExportArgs
from anomaly_lib.systems.registry import SYSTEMS


def body(args: ExportArgs) -> int:
    from anomaly_lib.evaluation.export import export  # loads torch: --help and wrong options need none

    return export(args, SYSTEMS, print)


def main(argv: Sequence[str] | None = None) -> int:
    return command(ExportArgs, body, argv, prog="export.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
