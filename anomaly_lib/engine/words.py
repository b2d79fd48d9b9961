"""What a run says of itself, in words: its data, its epochs, its end."""

from collections.abc import Mapping, Sequence
from typing import Any

from anomaly_lib.command_line import PROGRAM, as_word
from anomaly_lib.types import RunResult


def data_in_words(args: Any) -> str:
    """The data that the options name."""
    path, dataset = getattr(args, "data_path", None), getattr(args, "dataset", None)
    if path is None:
        return (
            "no --data-path: running on the BUILT-IN demo data (see --dataset, --data-path, --backbone for real ones)"
        )
    return f"{path} (layout {dataset})"


def closing_lines(result: RunResult, *, remarks: Sequence[str], decision: str | None) -> list[str]:
    """Metrics, decision, where the checkpoint lies, and what to do next."""
    figures = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items() if "threshold" not in name)
    lines = ["result: " + figures + "".join(f" [{remark}]" for remark in remarks)]
    if decision:
        lines.append(f"decision: {decision}")
    lines.append(f"run folder: {result.run_dir}")
    if result.checkpoint is not None:
        lines += [f"checkpoint: {result.checkpoint}", f"next: {PROGRAM} report {as_word(result.checkpoint)}"]
    return lines


def told_each_epoch(values: Mapping[str, float], *, most: int = 8) -> list[str]:
    """Names of the figures that fit on an epoch's line, in their order: loss, rate and what selects before the rest."""
    first = [n for n in values if n in ("loss", "lr") or n.lower().endswith(("auroc", "accuracy", "mae", "_loss"))]
    kept = [*first, *(name for name in values if name not in first)][:most]
    return [name for name in values if name in kept]
