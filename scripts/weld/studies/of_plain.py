"""What is measured of the plain model of the extension study once it is trained: calibrated, uncertain, smaller,
exported and explained."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.metrics import auroc
from anomaly_lib.models.uncertainty import deep_ensemble, mc_dropout
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.supcon.detector import QuadDetector, load
from anomaly_lib.systems.weld.supcon.knn import defect_margin
from anomaly_lib.systems.weld.supcon.task import quad_batch
from scripts.weld.studies.baselines import Pool
from scripts.weld.studies.explanations import explain, pixels_found
from scripts.weld.studies.forms import deployment
from scripts.weld.studies.options import MEASURED, ExtensionArgs
from scripts.weld.studies.study import calibration, uncertainty
from scripts.weld.studies.study_rows import Row

FORMS = MEASURED["deployment"]
SHOWN = ("crater_cracks", "porosity", "spatter")  # classes of which a weld is explained in pictures


@dataclass
class Plain:
    """The plain model of a seed, and those of the other seeds."""

    args: ExtensionArgs
    detector: QuadDetector
    others: list[QuadDetector]
    runs: dict[str, list[WeldRun]]
    folder: Path
    labels: Tensor = field(init=False)  # of the test runs

    def __post_init__(self) -> None:
        self.detector.features.prepare(self.runs["test"])
        self.labels = torch.tensor([run.label for run in self.runs["test"]])

    @classmethod
    def of(cls, args: ExtensionArgs, pool: Pool, seed: int) -> "Plain":
        """Of the trainings in the folder of the study."""

        def trained(one: int) -> QuadDetector:
            folder = Path(args.results) / f"plain-seed{one}"
            best = folder / "best_model.pth"
            return load(SYSTEMS.read(best if best.is_file() else folder / "checkpoint.pt"), features=pool.features)

        folder = Path(args.results) / f"of_plain-seed{seed}"
        folder.mkdir(exist_ok=True)
        return cls(args, trained(seed), [trained(one) for one in args.seeds if one != seed], pool.runs, folder)

    @property
    def all_runs(self) -> list[WeldRun]:
        return [run for part in self.runs.values() for run in part]

    @cached_property
    def auroc(self) -> float:
        return self.judge(self.detector.score_runs(self.runs["test"]))

    @cached_property
    def deployed(self) -> dict[str, dict[str, Any]]:
        """Every form of the model by its name."""
        names = ["float32", *(name for name in FORMS if name in self.args.variants)]
        found = deployment(self.detector, self.all_runs, self.folder, pruning=self.args.pruning, names=names)
        return {row["form"]: row for row in found}

    @cached_property
    def doubts(self) -> dict[str, float]:
        others: list[nn.Module] = [one.task.model for one in self.others]
        return uncertainty(self.detector, self.all_runs, others, passes=self.args.passes)

    def judge(self, scores: Tensor) -> float:
        return float(auroc(scores, self.labels))


def measure_plain(plain: Plain, variant: str) -> Row:
    """The row of one measurement: AUROC where it has one, what else it is judged by, and further figures."""
    if variant in FORMS:
        return form(plain, variant)
    return {"temperature": temperature, "mc-dropout": dropout, "ensemble": ensemble, "grad-cam": cam}[variant](plain)


def form(plain: Plain, name: str) -> Row:
    row, whole = plain.deployed[name], plain.deployed["float32"]
    further = {
        "times the bytes": row["bytes"] / whole["bytes"],
        "times the milliseconds": row["ms_ratio"],
        "largest change": row["largest_change"],
    }
    judged = {"name": "AUROC", "value": row["auroc"], "reference": whole["auroc"], "better": "higher"}
    return {"image_auroc": round(row["auroc"], 4), "judged": judged, "further": further}


def temperature(plain: Plain) -> Row:
    found = calibration(plain.detector, plain.all_runs)
    judged = {"name": "ECE", "value": found["ece_after"], "reference": found["ece_before"], "better": "lower"}
    further = {"ECE before": found["ece_before"], "ECE after": found["ece_after"], "T": found["temperature"]}
    return {"image_auroc": round(plain.auroc, 4), "judged": judged, "further": further}


def dropout(plain: Plain) -> Row:
    """The mean margin over passes."""
    batch = quad_batch(plain.detector.features, plain.runs["test"])
    model, bank = plain.detector.task.model, plain.detector.bank
    torch.manual_seed(plain.detector.args.seed)
    margins, _ = mc_dropout(model, lambda m: defect_margin(bank, m(batch)["features"].cpu()), passes=plain.args.passes)
    return {"image_auroc": round(plain.judge(margins), 4), "further": doubt(plain, "mc_dropout")}


def ensemble(plain: Plain) -> Row:
    """The mean margin of the models of all seeds, each with its own bank, beside the model of one."""
    batch, every = quad_batch(plain.detector.features, plain.runs["test"]), [plain.detector, *plain.others]
    banks = {id(one.task.model): one.bank for one in every}
    margins, _ = deep_ensemble(
        [one.task.model for one in every], lambda m: defect_margin(banks[id(m)], m(batch)["features"].cpu())
    )
    return {"image_auroc": round(plain.judge(margins), 4), "further": doubt(plain, "ensemble")}


def doubt(plain: Plain, name: str) -> dict[str, float]:
    """How well entropy and spread of the class head find its own mistakes, where it makes some."""
    wanted = {
        f"{name}_entropy_finds_errors": "entropy finds mistakes",
        f"{name}_spread_finds_errors": "spread finds them",
    }
    return {said: plain.doubts[key] for key, said in wanted.items() if key in plain.doubts}


def cam(plain: Plain) -> Row:
    """Grad-CAM against the drawn damage; pictures of a few welds."""
    for name in SHOWN:
        for run in [one for one in plain.runs["test"] if one.class_name == name][:1]:
            explain(plain.detector, run, plain.folder)
    if any(run.render is None for run in plain.runs["test"]):
        return {"image_auroc": round(plain.auroc, 4), "further": {}}  # recordings carry no masks
    found = pixels_found(plain.detector, plain.runs["test"])
    judged = {"name": "pixel AUROC, of 0.5:", "value": found, "reference": 0.5, "better": "higher"}
    return {"image_auroc": round(plain.auroc, 4), "judged": judged, "further": {"pixel AUROC": found}}
