"""Publication figures from alpha_values.npz: gates by cell size, target, element and atom. Large alpha = much text."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.errors import UserError
from anomaly_lib.files import write_text

if TYPE_CHECKING:  # torch is loaded where there is work: --help and mistakes come at once
    from anomaly_lib.systems.crystal.diagnosis import Alphas


@dataclass
class FigureArgs(Options):
    """Where from and where to."""

    input: str = arg("alpha_values.npz", "what 1.extract_alpha_final.py wrote")
    output_dir: str = arg("paper_figures", "folder of the figures (.pdf, .png, .svg) and the element table")
    min_atoms: int = arg(50, "an element is shown from this many atoms on", at_least=1)


def draw(args: FigureArgs) -> None:
    """Three figures and one table of each layer; those of further layers carry its name."""
    if not Path(args.input).is_file():
        raise UserError(f"input={args.input}: no such file; run 1.extract_alpha_final.py first")
    import numpy as np

    from anomaly_lib.systems.crystal.diagnosis import Alphas

    with np.load(args.input, allow_pickle=False) as saved:
        label = str(saved["property"])
        found = Alphas(**{name: saved[name] for name in ("alphas", "atom_types", "offsets", "targets", "jids")})
        others = {name.removeprefix("alphas"): saved[name] for name in saved.files if name.startswith("alphas_")}
    draw_layer(found, args, label, "")
    for ending, alphas in others.items():
        draw_layer(replace(found, alphas=alphas), args, label, ending)


def draw_layer(found: "Alphas", args: FigureArgs, label: str, ending: str) -> None:
    """The figures and the table of one layer; file names end in `ending`."""
    from anomaly_lib.viz.crystal import alpha_by_element_figure, alpha_heatmap_figure, gate_analysis_figure
    from anomaly_lib.viz.style import save_figure

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
        for path in save_figure(figure, folder / f"{name}{ending}", formats=("pdf", "png", "svg")):
            print(path)
    table = [f"{name},{mean:.6f},{std:.6f},{count}" for name, mean, std, count in rows]
    path = folder / f"element_alpha_statistics{ending}.csv"
    write_text(path, "\n".join(["Element,Mean,Std,Count", *table]) + "\n")
    print(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    return command(FigureArgs, draw, argv, prog="2.create_paper_alpha_figures.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
