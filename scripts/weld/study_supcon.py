"""Calibration, uncertainty, missing modalities, deployment and explanations of a trained V4 model:

python scripts/weld/study_supcon.py --checkpoint runs/weld_supcon/.../best_model.pth --output runs/weld_study
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_lib.command_line import command

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts import each other from the repository root

from scripts.weld.studies.options import StudyArgs


def run(args: StudyArgs) -> None:
    """Every part of the study, printed and written."""
    from scripts.weld.studies.study import run_study

    run_study(args, print)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, study, print."""
    return command(StudyArgs, run, argv, prog="study_supcon.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
