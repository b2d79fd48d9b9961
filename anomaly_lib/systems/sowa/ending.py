"""The end of a SOWA run: its detector, tables, figures and checkpoint."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch

from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Selection
from anomaly_lib.detect.decision import in_words
from anomaly_lib.detect.figures import draw_every
from anomaly_lib.detect.scores import Evaluated, Scores, sample_remarks, summary
from anomaly_lib.detect.scoring import class_table
from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.engine.checkpoint import TrainState
from anomaly_lib.engine.run import Run
from anomaly_lib.models.sowa.model import AnomalyCLIP
from anomaly_lib.systems.sowa.data import TestData, support_items, tested_place
from anomaly_lib.systems.sowa.decide import decide
from anomaly_lib.systems.sowa.detector import SowaDetector
from anomaly_lib.systems.sowa.options import Args
from anomaly_lib.systems.sowa.scoring import remember
from anomaly_lib.systems.sowa.taps import Taps
from anomaly_lib.types import RunResult


def finish(run: Run, state: TrainState, model: AnomalyCLIP, taps: Taps, test: TestData) -> RunResult:
    """Choose the weights, fill the memories, decide, score the test classes, write the checkpoint."""
    args: Args = run.args
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chosen = args.select == "best-on-test" and bool(state.best)
    if chosen:
        model.load_state_dict(state.best["model"])
        run.log.line(f"kept epoch {state.best['epoch'] + 1} ({args.select})")
    support = support_items(test.normal, args.shot, args.seed) if args.shot else {}
    memories = remember(model, taps, support)
    decisions = decide(model, taps, args, support, test.judged or {})
    detector = SowaDetector(model, taps, args, memories=memories, decisions=decisions, epochs=len(state.history))
    choice = Choice(shot=args.shot, batch_size=args.batch_size, on_error=args.on_error)
    selection = detector.select(test, tested_place(args)[0], choice)
    scores = detector.score(selection)
    decision = detector.decision_for(selection)
    metrics = summary(scores, decision)
    remarks = [*detector.facts.remarks(), *scores.notes, *sample_remarks(scores)]
    write_tables(run, state, Evaluated(run.checkpoint, scores, decision, metrics, remarks))
    if args.ablate_stages:
        write_stages(run, detector, selection, remarks)
    state.extra = {
        **decisions.plain(),
        "memories": {name: memory.state() for name, memory in memories.items()},
    }
    run.note(support={name: [item.path.as_posix() for item in items] for name, items in support.items()})
    if args.figures:
        run.note(figures=[path.name for path in draw(run.dir, detector, selection, scores)])
    if args.visualize:
        folder = Path(args.dirpath) if args.dirpath else run.dir / "visualizations"
        run.log.line(f"{draw_every(folder, scores)} pictures (image, truth, heat map) in {folder}")
    final = run.save(state, len(state.history), "best_model.pt") if chosen else None
    if chosen:
        model.load_state_dict(last)
    told = in_words(detector.decision, detector.undecided)
    return run.finish(state, metrics, final=final, remarks=remarks, decision=told)


# -- tables and figures ------------------------------------------------------------------------------------------------


def write_tables(run: Run, state: TrainState, done: Evaluated) -> None:
    """classes.*: the figures of each tested class; epochs.*: losses."""
    table = class_table([done])
    table.write(run.dir / "classes")
    run.log.line(table.text())
    epochs: list[dict[str, Cell]] = [dict(row) for row in state.history]
    if epochs:
        Table(list(dict.fromkeys(name for row in epochs for name in row)), epochs).write(run.dir / "epochs")


def write_stages(run: Run, detector: SowaDetector, selection: Selection, remarks: Sequence[str]) -> None:
    """stages.*: figures with the text map of one stage alone, for every stage, then with all of them."""
    names = detector.model.visual_encoder.tap_names
    chosen = {f"stage {n + 1} ({name})": [n] for n, name in enumerate(names)} | {"all": []}
    rows: list[dict[str, Cell]] = []
    for label, stages in chosen.items():
        alone = copy(detector)
        alone.args = replace(detector.args, stages=stages)
        rows.append({"stage": label, **summary(alone.score(selection))})
    table = Table([*rows[0]], rows, list(remarks))
    table.write(run.dir / "stages")
    run.log.line(table.text())


def draw(folder: Path, detector: SowaDetector, selection: Selection, scores: Scores) -> list[Path]:
    """(image, truth, heat map) of the most and least suspicious test images, and where each stage looks."""
    from anomaly_lib.viz import overlay_grid, save_figure

    model, taps = detector.model, detector.taps
    assert scores.image is not None
    order = torch.as_tensor(scores.scores).argsort(descending=True).tolist()
    shown = [i for i in order if scores.labels[i]][::5][:8] + [i for i in order if not scores.labels[i]][:4]
    seen = [scores.image(i) for i in shown]
    kinds = scores.defects or [""] * len(scores)
    figure = overlay_grid(
        seen,
        [scores.maps[i] for i in shown],
        masks=None if scores.masks is None else [scores.masks[i] for i in shown],
        titles=[f"{scores.groups[i]} {kinds[i]} {scores.scores[i]:.2f}" for i in shown],
    )
    written = save_figure(figure, folder / "maps.png")
    if len(taps.tiles) > 1:  # where each stage looks is a matter of one tile
        return written
    first = next(item for item in selection.items if item.path.as_posix() == scores.paths[shown[0]])
    stages = model.stage_attention(taps.rows(taps.fill([first])))
    if stages:
        names = [f"stage {number} ({name})" for number, name in enumerate(model.visual_encoder.tap_names, start=1)]
        looks = overlay_grid(
            [seen[0]] * len(stages), [stage[0] for stage in stages], titles=names, caption="attention received"
        )
        written += save_figure(looks, folder / "stages.png")
    return written
