"""Means, deviations and paired tests over the repeats of HDMAP experiments, and the source x target matrix."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.systems.detectors.hdmap.analysis import analyze, collect, summary_rows


@dataclass
class Args(Options):
    """Analysis of repeated experiments."""

    results_dir: str = arg("results", "folder below which the results lie")
    output_dir: Optional[str] = arg(None, "where tables and figures go; None = the results folder", type=str)


def run(args: Args) -> None:
    for row in summary_rows(collect(args.results_dir)):
        spread = f" +- {row['avg_target_auroc_std']:.4f}" if row["repeats"] > 1 else ""
        means = {name: row[f"{name}_mean"] for name in ("source_auroc", "avg_target_auroc", "transfer_ratio")}
        print(
            f"{row['model']:>20} {row['experiment']:<36} {row['repeats']} repeats, source {means['source_auroc']:.4f}, "
            f"targets {means['avg_target_auroc']:.4f}{spread}, transfer ratio {means['transfer_ratio']:.3f}"
            + (f", {row['failed']} failed" if row["failed"] else "")
        )
    for path in analyze(args.results_dir, args.output_dir):
        print(path)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, run, argv, prog="analyze_experiment_results.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
