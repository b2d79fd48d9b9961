"""How the learned scale of the text moved during training, from the run folder (every epoch is logged there)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg


@dataclass
class MonitorArgs(Options):
    """The evolution of text_scale."""

    checkpoint_dir: str = arg("", "run folder, e.g. outputs/x/formation_energy_peratom")
    output_plot: str = arg("text_scale_evolution.png", "figure to write (.png, and .svg beside it)")
    checkpoint_pattern: Optional[str] = arg(
        None, "read these checkpoint files instead of the log, e.g. 'checkpoint_*.pt'", type=str
    )


def monitor(args: MonitorArgs) -> None:
    """Print the movement of each scale and draw it."""
    import numpy as np

    from anomaly_lib.systems.crystal.scales import initial_scale, scale_history
    from anomaly_lib.viz.crystal import text_scale_figure
    from anomaly_lib.viz.style import save_figure

    epochs, history = scale_history(Path(args.checkpoint_dir), args.checkpoint_pattern)
    for name, values in history.items():
        first, last = values[0], values[-1]
        percent = f" ({100 * (last - first) / abs(first):+.1f} %)" if first else ""
        print(f"{name}: {len(values)} points, epoch {epochs[0] + 1} to {epochs[-1] + 1}")
        print(f"  first {first:.4f}, last {last:.4f}, change {last - first:+.4f}{percent}")
        print(f"  min {min(values):.4f}, max {max(values):.4f}, mean {np.mean(values):.4f}, std {np.std(values):.4f}")
        if len(values) > 10:
            spread = float(np.std(values[-10:]))
            state = "converged" if spread < 0.5 else "nearly converged" if spread < 1.0 else "still moving"
            print(f"  last 10 epochs: std {spread:.4f}, {state}")
        if last > 20:
            print(f"  the text is weak: try --middle_fusion_initial_scale {1.2 * last:.1f}")
        elif abs(last) < 0.1:
            print("  the text is switched off: it may not help this task; try --use_contrastive True")
    figure = text_scale_figure([epoch + 1 for epoch in epochs], history, initial_scale(Path(args.checkpoint_dir)))
    written = save_figure(figure, args.output_plot)
    print(f"figure: {written[0]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    return command(MonitorArgs, monitor, argv, prog="monitor_text_scale.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
