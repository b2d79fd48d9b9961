"""Export a trained image detector: `python scripts/export.py --checkpoint FILE --format onnx|torch`."""

import sys
from collections.abc import Sequence

from anomaly_lib.config import command
from anomaly_lib.evaluation.export import ExportArgs, export


def main(argv: Sequence[str] | None = None) -> int:
    return command(ExportArgs, lambda args: export(args, print), argv, prog="export.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
