"""Train with `max` and with `harmonic`, score both alike, and write the table of the document's step 6.

    python scripts/promptad/compare_fusions.py --datasets mvtec --data-path MVTEC --classes key --k-shots 1 2 4
    python scripts/promptad/compare_fusions.py --protocol clean --fusion-in-loss --seeds 1 2 3 4 5

The second compares trainings of each fusion without and with the fused score in the loss. A killed comparison goes on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly_lib.command_line import command, parse
from anomaly_lib.systems.promptad.options import Args, FusionsArgs, GateArgs, SegArgs, SweepArgs
from anomaly_lib.systems.registry import SYSTEMS

ROOT = Path(__file__).resolve().parents[2]
Rows = list[dict[str, Any]]


def train_and_measure(args: FusionsArgs, fusion: str, *, in_loss: bool) -> Rows:
    """Rows of full_results.csv for the trainings with one fusion, of all seeds."""
    from anomaly_lib.systems.promptad.analysis import collect
    from anomaly_lib.systems.promptad.gate import run_gate
    from anomaly_lib.systems.promptad.sweep import sweep_jobs

    rows: Rows = []
    name, flag = (f"{fusion}_in_loss", "--fusion-in-loss") if in_loss else (fusion, "")
    for seed in args.seeds:
        folder = Path(args.output_dir) / f"seed_{seed}"
        runs = SweepArgs(
            datasets=args.datasets, data_path=args.data_path, classes=args.classes, k_shots=args.k_shots,
            tasks=args.tasks, epochs=args.epochs, fusion_mode=fusion, output_dir=str(folder / name),
            train_flags=f"--protocol {args.protocol} --seed {seed} {flag} {args.train_flags}",
        )  # fmt: skip
        for job in sweep_jobs(runs, ROOT):
            SYSTEMS["promptad"].train(parse(Args if job.key["task"] == "cls" else SegArgs, job.argv[2:]))
        gate = GateArgs(
            checkpoint_dir=str(folder / name), branch=f"gate_{name}", output_dir=str(folder), task=args.tasks,
            modes=list(dict.fromkeys([*args.fusions, args.mode])), figures=False,
        )  # fmt: skip
        run_gate(gate, SYSTEMS, print)
        rows += collect(folder / gate.branch)
    return rows


def run(args: FusionsArgs) -> None:
    """Train, measure, write OUTPUT/NAME.* (a row a data set and task) and OUTPUT/NAME_rows.*, print the summary."""
    from anomaly_lib.systems.promptad.analysis import KEYS
    from anomaly_lib.systems.promptad.comparison import by_task, compare

    found = {fusion: train_and_measure(args, fusion, in_loss=False) for fusion in args.fusions}
    if args.fusion_in_loss:
        learned = {fusion: train_and_measure(args, fusion, in_loss=True) for fusion in args.fusions}
        pairs = {f"{fusion}_in_loss": (found[fusion], learned[fusion], fusion) for fusion in args.fusions}
    else:
        first, second = args.fusions
        pairs = {f"{first}_to_{second}_scored_{args.mode}": (found[first], found[second], args.mode)}
    for name, (before, after, mode) in pairs.items():
        comparison = compare(before, after, mode=mode, keys=(*KEYS, "seed"))
        table = by_task(comparison)
        table.notes = [name.replace("_", " "), *comparison.summary]
        table.write(Path(args.output_dir) / name)
        comparison.table.write(Path(args.output_dir) / f"{name}_rows")
        print(f"\n{table.text(2)}")
    print(f"\ntables in {args.output_dir}: {', '.join(pairs)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, compare, leave with an exit code."""
    return command(FusionsArgs, run, argv, prog="compare_fusions.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
