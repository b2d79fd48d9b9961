"""What a trained V4 model is worth in use: calibration, uncertainty, missing modalities, other forms, explanations."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.errors import UserError, reason_of
from anomaly_lib.files import write_json
from anomaly_lib.metrics import auroc, expected_calibration_error
from anomaly_lib.models.uncertainty import deep_ensemble, fit_temperature, mc_dropout, predictive_entropy
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld.data.manifest import WeldRun, select_runs
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.supcon.detector import SYSTEM, QuadDetector, load
from anomaly_lib.systems.weld.supcon.knn import hide, missing_subsets, subset_name
from anomaly_lib.systems.weld.supcon.task import classes_of, open_runs, quad_batch
from anomaly_lib.viz import save_figure, training_lines
from scripts.weld.studies.explanations import explain
from scripts.weld.studies.forms import deployment, margin_auroc
from scripts.weld.studies.options import StudyArgs
from scripts.weld.studies.study_data import found_shifts, synthetic_defect_probe


def read_v4(option: str, path: str, features: WeldFeatures | None) -> QuadDetector:
    """The detector of a checkpoint, which has to be one of V4 on the features handed in."""
    checkpoint = SYSTEMS.read(path)
    if checkpoint.system != SYSTEM:
        raise UserError(f"{option}={path}: a checkpoint of {checkpoint.system}; this program studies V4 only")
    try:
        return load(checkpoint, features=features)
    except RuntimeError as error:  # of tensors that do not fit
        raise UserError(f"{option}={path}: does not fit the data of the others ({reason_of(error)})") from None


def run_study(args: StudyArgs, say: Callable[[str], object], *, features: WeldFeatures | None = None) -> dict[str, Any]:
    """Every part, printed and written to study.json. `features` shares an encoding of the checkpoint's data."""
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    detector = read_v4("checkpoint", str(args.checkpoint), features)
    runs = open_runs(detector.args)
    others = [read_v4("ensemble", path, detector.features) for path in args.ensemble]
    each = [calibration(one, runs) for one in (detector, *others)]
    results: dict[str, Any] = {"calibration": {name: mean_of(row[name] for row in each) for name in each[0]}}
    say("calibration: " + spell(results["calibration"]))
    results["uncertainty"] = uncertainty(detector, runs, [one.task.model for one in others], passes=args.passes)
    say("uncertainty: " + spell(results["uncertainty"]))
    results["missing"] = missing_study([detector, *others], runs)
    for row in results["missing"]:
        say(f"  {row['present']:30} AUROC {row['auroc']:.4f}")
    save_figure(missing_figure(results["missing"]), folder / "missing")
    results["deployment"] = deployment(detector, runs, folder, pruning=args.pruning)
    for row in results["deployment"]:
        say("  " + spell(row))
    defects = [run for run in select_runs(runs, "test") if run.label]
    results["explanations"] = [explain(detector, run, folder) for run in defects[:3]]
    if not detector.args.data_path:
        results["found_shifts"] = found_shifts(detector.features, select_runs(runs, "test"))
        say("time shifts: " + spell(results["found_shifts"]))
        train, test = select_runs(runs, "train"), select_runs(runs, "test")
        results["drawn_defects"] = synthetic_defect_probe(detector.features, train, test)
        say("a probe of drawn defects on real ones, AUROC: " + spell(results["drawn_defects"]))
    write_json(folder / "study.json", results)
    say(f"written to {folder}")
    return results


def mean_of(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def spell(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def calibration(detector: QuadDetector, runs: Sequence[WeldRun]) -> dict[str, float]:
    """Temperature from VAL; expected calibration error on TEST before and after."""
    val, test = select_runs(runs, "val"), select_runs(runs, "test")
    logits, labels = detector.encode(val)["logits"], classes_of(val)
    temperature = fit_temperature(logits, labels)
    found, truth = detector.encode(test)["logits"], [run.class_label for run in test]
    errors = [expected_calibration_error((found / t).softmax(1).numpy(), truth) for t in (1.0, temperature)]
    return {"temperature": temperature, "ece_before": float(errors[0]), "ece_after": float(errors[1])}


def uncertainty(
    detector: QuadDetector, runs: Sequence[WeldRun], others: Sequence[nn.Module], *, passes: int
) -> dict[str, float]:
    """How large uncertainty is, and how well it finds the model's own mistakes (AUROC of entropy and spread)."""
    test = select_runs(runs, "test")
    detector.features.prepare(test)
    batch = quad_batch(detector.features, test)
    truth = classes_of(test)

    def probabilities(model: nn.Module) -> Tensor:
        return model(batch)["logits"].softmax(1).cpu()  # type: ignore[no-any-return]

    out: dict[str, float] = {}
    mean, std = mc_dropout(detector.task.model, probabilities, passes=passes)
    answers = {"mc_dropout": (mean, std)}
    if others:
        answers["ensemble"] = deep_ensemble([detector.task.model, *others], probabilities)
    for name, (mean, std) in answers.items():
        wrong = mean.argmax(1) != truth
        out[f"{name}_accuracy"] = float((~wrong).float().mean())
        out[f"{name}_spread"] = float(std.mean())
        if bool(wrong.any()) and not bool(wrong.all()):
            out[f"{name}_entropy_finds_errors"] = auroc(predictive_entropy(mean), wrong)
            out[f"{name}_spread_finds_errors"] = auroc(std.sum(1), wrong)
    return out


def missing_study(detectors: Sequence[QuadDetector], runs: Sequence[WeldRun]) -> list[dict[str, Any]]:
    """AUROC on TEST for every subset of modalities, mean over detectors: what is lost when something is missing."""
    test, features = select_runs(runs, "test"), detectors[0].features
    features.prepare(test)
    labels = torch.tensor([run.label for run in test])
    judges = [margin_auroc(one) for one in detectors]
    batch, rows = quad_batch(features, test), []
    for keep in missing_subsets():
        part = hide(batch, keep)
        with torch.no_grad():
            found = [one.task.model(part)["features"] for one in detectors]
        value = mean_of(judge(one, labels) for judge, one in zip(judges, found, strict=True))
        rows.append({"present": subset_name(keep), "missing": 4 - sum(keep), "auroc": round(value, 4)})
    return rows


def missing_figure(rows: Sequence[dict[str, Any]]) -> Any:
    """AUROC against the number of missing modalities: best, mean and worst subset."""
    counts = sorted({row["missing"] for row in rows})
    groups = [[row["auroc"] for row in rows if row["missing"] == count] for count in counts]
    series = {
        "best subset": [max(group) for group in groups],
        "mean": [sum(group) / len(group) for group in groups],
        "worst subset": [min(group) for group in groups],
    }
    return training_lines(series, x=counts, xlabel="missing modalities", ylabel="AUROC")
