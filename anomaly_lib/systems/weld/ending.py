"""How every weld training ends: what was kept, what it is worth, where it lies."""

from pathlib import Path

from anomaly_lib.engine.run import Run
from anomaly_lib.types import RunResult


def already_done(run: Run) -> RunResult:
    """The result of a finished run that was asked for again."""
    run.log.line(f"{run.dir} is done (--fresh starts over)")
    return told(run, run.result())


def chosen_checkpoint(run: Run, select: str, best_name: str) -> Path:
    """The best epoch by validation, or the last one."""
    best = run.dir / best_name
    return best if select == "val" and best.is_file() else run.checkpoint


def told(run: Run, result: RunResult) -> RunResult:
    """Say the result's figures and place."""
    run.log.line(", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items()))
    run.log.line(f"results in {result.run_dir}, checkpoint {result.checkpoint}")
    return result
