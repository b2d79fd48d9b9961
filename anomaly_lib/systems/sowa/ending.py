"""The end of a SOWA run: its detector, tables, figures and checkpoint."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch

from anomaly_lib.data import Item, class_names
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Selection
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Evaluated, Scores, sample_remarks, summary
from anomaly_lib.detect.scoring import class_table
from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.engine.checkpoint import TrainState
from anomaly_lib.engine.run import Run
from anomaly_lib.metrics import f1_max_threshold
from anomaly_lib.models.sowa.model import AnomalyCLIP
from anomaly_lib.systems.sowa.data import TestData, support_items, tested_place
from anomaly_lib.systems.sowa.detector import SowaDetector
from anomaly_lib.systems.sowa.options import Args
from anomaly_lib.systems.sowa.scoring import remember, score_items
from anomaly_lib.systems.sowa.taps import Taps
from anomaly_lib.types import RunResult


def finish(
    run: Run, state: TrainState, model: AnomalyCLIP, taps: Taps, learned: Sequence[Item], test: TestData
) -> RunResult:
    """Choose the weights, fill the memories, fix the threshold, score the test classes, write the checkpoint."""
    args: Args = run.args
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chosen = args.select == "best-on-test" and bool(state.best)
    if chosen:
        model.load_state_dict(state.best["model"])
        run.log.line(f"kept epoch {state.best['epoch'] + 1} ({args.select})")
    support = support_items(test.normal, args.shot, args.seed) if args.shot else {}
    memories = remember(model, taps, support)
    decision = decide(model, taps, args, learned, support)
    detector = SowaDetector(model, taps, args, memories=memories, decision=decision, epochs=len(state.history))
    choice = Choice(shot=args.shot, batch_size=args.batch_size, on_error=args.on_error)
    selection = detector.select(test, tested_place(args)[0], choice)
    scores = detector.score(selection)
    metrics = summary(scores, decision)
    remarks = [*detector.facts.remarks(), *scores.notes, *sample_remarks(scores)]
    write_tables(run, state, Evaluated(run.checkpoint, scores, decision, metrics, remarks))
    if args.ablate_stages:
        write_stages(run, detector, selection, remarks)
    state.extra = {
        "decision": None if decision is None else decision.plain(),
        "memories": {name: memory.state() for name, memory in memories.items()},
    }
    run.note(support={name: [item.path.as_posix() for item in items] for name, items in support.items()})
    if args.figures:
        run.note(figures=[path.name for path in draw(run.dir, detector, selection, scores)])
    final = run.save(state, len(state.history), "best_model.pt") if chosen else None
    if chosen:
        model.load_state_dict(last)
    described = None if decision is None else decision.describe()
    return run.finish(state, metrics, final=final, remarks=remarks, decision=described)


def decide(
    model: AnomalyCLIP, taps: Taps, args: Args, learned: Sequence[Item], support: Mapping[str, Sequence[Item]]
) -> Decision | None:
    """Few-shot: the largest score a support image may be expected to reach. Zero-shot: the best-F1 one in training."""
    if support:
        found = [score_items(model, taps, items, {}, args).score for items in support.values()]
        count = sum(map(len, found))
        # A normal image reaches the memory's reference, which scales to 1/2.
        return Decision.of(
            float((torch.cat(found).amax() + 0.5) / 2),
            f"mean of 1/2 and the largest zero-shot score of {count} support images",
        )
    scores = score_items(model, taps, learned, {}, args).score
    labels = torch.tensor([item.label for item in learned])
    both = 0 < int(labels.sum()) < len(labels)
    where = f"{len(learned)} training images of {', '.join(class_names(learned))}"
    return Decision.of(f1_max_threshold(scores, labels) if both else float("nan"), f"best F1 on the {where}")


# -- tables and figures ------------------------------------------------------------------------------------------------


def write_tables(run: Run, state: TrainState, done: Evaluated) -> None:
    """classes.*: the figures of each tested class; epochs.*: losses."""
    table = class_table([done])
    table.write(run.dir / "classes")
    run.log.line(table.text())
    epochs: list[dict[str, Cell]] = [dict(row) for row in state.history]
    if epochs:
        Table([*epochs[0]], epochs).write(run.dir / "epochs")


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
    first = next(item for item in selection.items if item.path.as_posix() == scores.paths[shown[0]])
    stages = model.stage_attention(taps.rows(taps.fill([first])))
    if stages:
        names = [f"stage {number} ({name})" for number, name in enumerate(model.visual_encoder.tap_names, start=1)]
        looks = overlay_grid(
            [seen[0]] * len(stages), [stage[0] for stage in stages], titles=names, caption="attention received"
        )
        written += save_figure(looks, folder / "stages.png")
    return written
