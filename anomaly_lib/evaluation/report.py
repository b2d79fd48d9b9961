"""The HTML report of an evaluation."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from anomaly_lib.detect.scores import Evaluated
from anomaly_lib.detect.tables import Table
from anomaly_lib.metrics.inputs import to_numpy
from anomaly_lib.viz.overlays import map_range
from anomaly_lib.viz.report import ReportImage, ReportRun, report_image, tile_size, write_report


def write_evaluation_report(folder: Path, done: list[Evaluated], table: Table) -> Path:
    """One page with a tab a checkpoint; regressions have no images and appear in the table only."""
    shown = [one for one in done if one.scores.kind != "regression"]
    size = tile_size(sum(len(one.scores) for one in shown))
    runs = [
        ReportRun(
            one.scores.name,
            _images(one, size),
            threshold=None if one.decision is None else one.decision.threshold,
            promised=None if one.decision is None else one.decision.false_alarms,
            decision="no decision" if one.decision is None else one.decision.describe(),
            facts={"system": one.scores.system, **one.scores.facts},
            link=_link(folder, one.checkpoint.parent / "run.json"),
        )
        for one in shown
    ]
    title = "Evaluation of " + (done[0].scores.name if len(done) == 1 else f"{len(done)} checkpoints")
    notes = table.notes
    for one in done:  # a page that is passed on says nothing of the machine it was made on
        notes = [note.replace(f"{_root(one.scores.paths)}/", "") for note in notes]
    columns, rows = table.shown_columns(), table.cells(3)
    own = {
        f"{name} of {one.scores.name}": (found.shown_columns(), found.cells(3))
        for one in done
        for name, found in one.scores.tables.items()
    }
    return write_report(folder, runs, title=title, columns=columns, rows=rows, notes=notes, tables=own, tile=size)


def _root(paths: Sequence[str]) -> str:
    """The folder that all of these files lie below, or a name of none."""
    folders = [os.path.dirname(path) for path in paths]
    alike = len({os.path.isabs(folder) for folder in folders}) == 1
    return (os.path.commonpath(folders).replace(os.sep, "/") if alike else "") or "\0"


def shown_path(path: str, root: str) -> str:
    """A file's name below `root`, or the whole of it where it lies elsewhere."""
    return path.removeprefix(f"{root.rstrip('/')}/")


def _link(folder: Path, target: Path) -> str | None:
    return os.path.relpath(target, folder).replace(os.sep, "/") if target.is_file() else None


def _images(one: Evaluated, size: int) -> Iterator[ReportImage]:
    evaluation, found = one.scores, one.decided
    scores, labels = to_numpy(evaluation.scores), to_numpy(evaluation.labels)
    maps = None if evaluation.maps is None else to_numpy(evaluation.maps)
    value_range = (0.0, 1.0) if maps is None else map_range(maps[:: max(1, len(maps) // 500)])
    root = _root(evaluation.paths)
    for index, path in enumerate(evaluation.paths):
        yield report_image(
            shown_path(path, root),
            evaluation.groups[index],
            int(labels[index]),
            float(scores[index]),
            size=size,
            defect="" if evaluation.defects is None else evaluation.defects[index],
            image=None if evaluation.image is None else evaluation.image(index),
            score_map=None if maps is None else maps[index],
            value_range=value_range,
            mask=None if evaluation.masks is None else to_numpy(evaluation.masks[index]),
            region=None if found.region is None else found.region[index].numpy(),
            p_value=None if found.p_value is None else float(found.p_value[index]),
        )
