"""Publication figures from alpha_values.npz: gates by cell size, target, element and atom. Large alpha = much text."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.errors import UserError
from anomaly_lib.files import write_atomic


@dataclass
class FigureArgs(Options):
    """Where from and where to."""

    input: str = arg("alpha_values.npz", "what 1.extract_alpha_final.py wrote")
    output_dir: str = arg("paper_figures", "folder of the figures (.pdf, .png, .svg) and the element table")
    min_atoms: int = arg(50, "an element is shown from this many atoms on", at_least=1)


def draw(args: FigureArgs) -> None:
    """Three figures and one table."""
    if not Path(args.input).is_file():
        raise UserError(f"input={args.input}: no such file; run 1.extract_alpha_final.py first")
    import numpy as np

    from anomaly_lib.systems.crystal.diagnosis import Alphas
    from anomaly_lib.viz.crystal import alpha_by_element_figure, alpha_heatmap_figure, gate_analysis_figure
    from anomaly_lib.viz.style import save_figure

    with np.load(args.input, allow_pickle=False) as saved:
        label = str(saved["property"])
        found = Alphas(**{name: saved[name] for name in ("alphas", "atom_types", "offsets", "targets", "jids")})
    rows = found.by_element(args.min_atoms)
    if not rows:
        rows = found.by_element()
        print(f"no element has {args.min_atoms} atoms: all {len(rows)} are shown")
    figures = {
        "figure_gate_analysis": gate_analysis_figure(found.per_crystal, found.targets, label),
        "figure_alpha_by_element": alpha_by_element_figure(rows),
        "figure_alpha_heatmap_materials": alpha_heatmap_figure(found.per_crystal, list(found.jids)),
    }
    folder = Path(args.output_dir)
    for name, figure in figures.items():
        for path in save_figure(figure, folder / name, formats=("pdf", "png", "svg")):
            print(path)

    def fill(stream: object) -> None:
        writer = csv.writer(stream, lineterminator="\n")  # type: ignore[arg-type]
        writer.writerow(["Element", "Mean", "Std", "Count"])
        writer.writerows([name, f"{mean:.6f}", f"{std:.6f}", count] for name, mean, std, count in rows)

    write_atomic(folder / "element_alpha_statistics.csv", fill, mode="w")
    print(folder / "element_alpha_statistics.csv")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    return command(FigureArgs, draw, argv, prog="2.create_paper_alpha_figures.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
