"""The body of the command `evaluate` and of evaluate.py: any checkpoint of any system to tables, figures, report."""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from anomaly_lib.command_line import PROGRAM, as_word
from anomaly_lib.detect.alarms import alarm_line, alarm_table
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.decision import CALIBRATE
from anomaly_lib.detect.figures import draw_every
from anomaly_lib.detect.scores import AT_DECISION, Evaluated, sample_remarks, summary
from anomaly_lib.detect.scoring import class_table, prediction_rows
from anomaly_lib.detect.tables import Table, plain
from anomaly_lib.detect.thresholds import choose_decision
from anomaly_lib.engine.record import record_of
from anomaly_lib.errors import UserError
from anomaly_lib.evaluation.checkpoints import find_checkpoints
from anomaly_lib.evaluation.figures import draw_figures, file_name
from anomaly_lib.evaluation.options import EvaluateArgs
from anomaly_lib.files import write_json, write_text
from anomaly_lib.systems.registry import Registry

DECIDED = [f"image_{name}" for name in AT_DECISION]


def evaluate_checkpoint(path: Path, args: EvaluateArgs, systems: Registry) -> Evaluated:
    """Load the detector of a checkpoint and let it score the chosen samples."""
    detector = systems.load(path, device=args.device, weights=args.weights, which=args.parameters)
    choice = Choice(**{f.name: getattr(args, f.name) for f in fields(Choice)})
    selection = detector.items(choice)
    scores = detector.score(selection)
    decision = detector.decision_for(selection)
    if scores.kind == "detection":
        decision = choose_decision(
            scores, decision, args.policy, false_alarms=args.false_alarms, support_quantile=args.support_quantile
        )
    scores.facts = {**detector.facts.shown, **scores.facts}
    short = [] if decision is None or args.false_alarms is None else decision.short_of(args.false_alarms)
    remarks = list(dict.fromkeys([*scores.notes, *detector.facts.remarks(), *sample_remarks(scores), *short]))
    return Evaluated(path, scores, decision, summary(scores, decision), remarks)


def evaluate(args: EvaluateArgs, systems: Registry, say: Callable[[str], object]) -> int:
    """Everything `evaluate` does; `say` prints a line."""
    texts = [args.checkpoint, *args.compare]
    found = [(path, str(text)) for text in texts for path in find_checkpoints(text)]
    done = []
    for path, _ in found:
        done.append(evaluate_checkpoint(path, args, systems))
        _say_metrics(done[-1], args, say)
    name_apart(done)
    sets = [text if args.compare else "" for _, text in found]
    table = class_table(done, bootstrap=args.bootstrap, fpr_limits=args.fpr_limits, sets=sets)
    folder = folder_of(args, found[0][0])
    say("\n" + table.text())
    written = write_results(folder, done, table, args)
    say(f"\nresults in {folder}: {', '.join(path.name for path in written)}")
    if args.visualize:
        pictures = Path(args.dirpath) if args.dirpath else folder / "visualizations"
        for one in done:
            place = pictures if len(done) == 1 else pictures / file_name(one.scores.name)
            say(f"{draw_every(place, one.scores)} pictures (image, truth, heat map) in {place}")
    if args.report:
        from anomaly_lib.evaluation.report import write_evaluation_report

        say(f"report: {write_evaluation_report(Path(args.report), done, table)} (open it in a browser)")
    if done[0].scores.image is not None:
        say(f"next: {PROGRAM} predict NEW_IMAGES --checkpoint {as_word(found[0][0])}")
    return 0


def folder_of(args: EvaluateArgs, checkpoint: Path) -> Path:
    """Where the tables and figures go."""
    return Path(args.output_dir) if args.output_dir else checkpoint.parent / "evaluation"


def name_apart(done: list[Evaluated]) -> None:
    """Two runs of one name (the same class trained twice) are told apart by where they lie."""
    names = [one.scores.name for one in done]
    for one in done:
        if names.count(one.scores.name) > 1:
            one.scores.name = f"{one.scores.name} ({one.checkpoint.parent.name}/{one.checkpoint.name})"
    names = [one.scores.name for one in done]
    for number, one in enumerate(done, start=1):
        if names.count(one.scores.name) > 1:
            one.scores.name += f" #{number}"


def _say_metrics(one: Evaluated, args: EvaluateArgs, say: Callable[[str], object]) -> None:
    scores = one.scores
    say(f"{one.checkpoint}: {scores.system}, {scores.name}, {len(scores)} samples of {args.split}")
    say("  " + ", ".join(f"{name} {value:.4f}" for name, value in one.metrics.items()))
    decided = one.decision is not None and scores.kind == "detection"
    if one.decision is not None and decided:
        say(f"  {alarm_line(scores, one.decision)}")
        table = alarm_table(scores, one.decision)
        if len(table.rows) > 2:  # classes or kinds of defect
            say("\n".join(f"    {line}" for line in table.text().splitlines()))
    elif scores.kind == "detection":
        say(f"  no decision: this detector has no scores of normal data; {CALIBRATE} gives it one")
    for own in scores.tables.values():
        say("\n".join(f"    {line}" for line in own.text().splitlines()))
    for note in [*one.remarks, *compare_with_training(one, args)]:
        say(f"  {note}")
    if args.verbose:
        for row in prediction_rows(one):
            say("  " + " ".join(f"{name}={value}" for name, value in row.items()))


def compare_with_training(one: Evaluated, args: EvaluateArgs) -> list[str]:
    """Does this process reach the numbers that training recorded? Asked only on the training run's own test data."""
    asked = (args.data_path, args.dataset, args.obj, args.shot)
    other_parameters = args.policy != "stored" or args.parameters != "auto" or args.false_alarms is not None
    if args.split != "test" or any(asked) or other_parameters:
        return []
    try:
        run = record_of(one.checkpoint.parent)
    except UserError as error:  # the checkpoint itself is whole
        return [f"not compared with training: {error}"]
    trained = run.get("metrics", {})
    if one.decision is not None and not any(one.decision.describe() in line for line in run.get("closing", ())):
        trained = {name: value for name, value in trained.items() if name not in DECIDED}  # calibrated since
    shared = {name: (trained[name], value) for name, value in one.metrics.items() if name in trained}
    other = [f"{name} {a:.4f} -> {b:.4f}" for name, (a, b) in shared.items() if not same(a, b)]
    if other:
        return [f"differs from what training recorded: {', '.join(other)}"]
    return [f"equals what training recorded ({len(shared)} metrics)"] if shared else []


def same(one: float, other: float) -> bool:
    """Equal, or both without a value."""
    return math.isclose(one, other, abs_tol=1e-4) or (math.isnan(one) and math.isnan(other))


def write_results(folder: Path, done: list[Evaluated], table: Table, args: EvaluateArgs) -> list[Path]:
    """metrics.json, table.*, predictions.csv and figures/; returns what was written."""
    written = [folder / "metrics.json", folder / "predictions.csv"]
    record: dict[str, Any] = {"split": args.split, "policy": args.policy, "runs": [_record(one) for one in done]}
    write_json(written[0], record)
    rows = [{"run": one.scores.name, **row} for one in done for row in prediction_rows(one)]
    write_text(written[1], rows_to_csv(rows))
    written += table.write(folder / "table")
    decided = [one for one in done if one.decision is not None and one.scores.kind == "detection"]
    for number, one in enumerate(decided):
        assert one.decision is not None
        stem = "decisions" if len(decided) == 1 else f"decisions_{number:02d}"
        written += alarm_table(one.scores, one.decision).write(folder / stem)
    for number, one in enumerate(done):
        for name, own in one.scores.tables.items():
            written += own.write(folder / (name if len(done) == 1 else f"{name}_{number:02d}"))
    if args.figures:
        written += draw_figures(folder / "figures", done, args)
    return written


def _record(one: Evaluated) -> dict[str, Any]:
    scores, decision = one.scores, one.decision
    return {
        "system": scores.system,
        "name": scores.name,
        "checkpoint": str(one.checkpoint),
        "metrics": {name: plain(float(value)) for name, value in one.metrics.items()},
        "decision": None if decision is None else decision.plain(),
        "samples": len(scores),
        "notes": one.remarks,
        "facts": scores.facts,
    }


def rows_to_csv(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="n/a", lineterminator="\n")  # of a run without a decision
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
