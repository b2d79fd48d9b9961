"""Measure branches, fusions and oracle of trained checkpoints.

python scripts/promptad/run_gate_experiment.py --checkpoint-dir result/harmonic_baseline --branch gate_harmonic \
    --dataset mvtec --data-path DATA
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_lib.command_line import command
from anomaly_lib.systems.promptad.options import GateArgs
from anomaly_lib.systems.registry import SYSTEMS


def run(args: GateArgs) -> None:
    """Measure, aggregate, print the averages."""
    from anomaly_lib.systems.promptad.analysis import analyse, averages, collect
    from anomaly_lib.systems.promptad.gate import run_gate

    run_gate(args, SYSTEMS, print)
    folder = Path(args.output_dir) / args.branch
    analyse(folder, figures=args.figures)
    rows = collect(folder)
    for task in sorted({row["task"] for row in rows}):
        print(f"\nmean AUROC (%), {task}")
        print(averages([row for row in rows if row["task"] == task]).text(2))
    print(f"\ntables and figures in {folder / 'analysis'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, leave with an exit code."""
    return command(GateArgs, run, argv, prog="run_gate_experiment.py", description=GateArgs.__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
