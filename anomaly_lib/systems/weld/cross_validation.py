"""Cross-validation of a weld system: a run for each fold, and one table of what each said of runs it had not seen."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomaly_lib.config import given_options, note_given
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.scores import Scores, sample_remarks
from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.engine.distributed import single_process_only
from anomaly_lib.engine.log import Log
from anomaly_lib.engine.run import options_hash
from anomaly_lib.errors import UserError
from anomaly_lib.fusion import z_score_calibration
from anomaly_lib.metrics import Interval, auroc
from anomaly_lib.systems.weld.data.folds import group_of
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.figures import class_table, in_words
from anomaly_lib.types import RunResult

REPEATS = 1000
PREDICTED = ("run", "class", "label", "fold", "score", "z")


@dataclass
class Fold:
    """The test runs of a fold, their scores, and these as z-scores of its good validation runs [N]."""

    number: int
    runs: list[WeldRun]
    scores: Scores
    z: np.ndarray

    @classmethod
    def of(cls, number: int, detector: Any, choice: Choice) -> "Fold":
        """What the detector of fold `number` says."""
        tested = detector.items(choice)
        scores = detector.score(tested)
        normal = [run for run in detector.items(replace(choice, split="val")).items if not run.label]
        if not normal:
            raise UserError(f"the validation runs of fold {number} hold no good one: give fewer folds=")
        normalise = z_score_calibration(detector.score_runs(normal))
        return cls(number, list(tested.items), scores, normalise(torch.as_tensor(scores.scores)).numpy())

    def row(self) -> dict[str, Cell]:
        """Its line of the table of folds."""
        defects = sum(run.label for run in self.runs)
        both = 0 < defects < len(self.runs)
        found = float(auroc(self.scores.scores, self.scores.labels)) if both else None
        return {"fold": self.number, "good": len(self.runs) - defects, "defective": defects, "auroc": found}


def cross_validate(
    system: str, args: Any, name: str, train: Callable[[Any], RunResult], load: Callable[[Path], Any]
) -> RunResult:
    """Train and test every fold (one that is done is not done again), then pool what they say of their runs.

    `train(args)` is a run of the system with ``fold=`` set, `load(path)` the detector of its checkpoint.
    """
    single_process_only(f"cross-validation of {system}", "start it without torchrun, or train one fold by fold=")
    folder = Path(args.output_dir or Path("runs") / system / f"{name}-folds-{options_hash(args)}")
    folder.mkdir(parents=True, exist_ok=True)
    log, done = Log(folder), []
    for number in range(1, args.folds + 1):
        log.line(f"fold {number} of {args.folds}")
        one = copy.copy(args)
        one.fold, one.output_dir = number, str(folder / f"fold{number}")
        note_given(one, given_options(args))
        result = train(one)
        assert result.checkpoint is not None
        done.append(Fold.of(number, load(result.checkpoint), Choice(on_error=args.on_error)))
    return report(folder, done, log)


def report(folder: Path, done: Sequence[Fold], log: Log) -> RunResult:
    """Write folds.*, classes.* and predictions.* of all test runs and say the AUROC with its interval."""
    runs, z = [run for one in done for run in one.runs], np.concatenate([one.z for one in done])
    labels = np.array([run.label for run in runs])
    folds = Table(["fold", "good", "defective", "auroc"], [one.row() for one in done])
    found = grouped_interval(z, labels, [group_of(run) for run in runs])
    pooled = Scores("", "", z, labels, [run.run_id for run in runs], ["weld"] * len(runs))
    folds.notes = [
        f"AUROC of all folds together {in_words(found)}{''.join(f' [{one}]' for one in sample_remarks(pooled))}",
        f"95 % of {REPEATS} resamples of whole configurations; scores are z-scores of each fold's good validation runs",
    ]
    classes = class_table(torch.from_numpy(z), runs)
    predictions = Table(
        list(PREDICTED),
        [
            dict(zip(PREDICTED, (run.run_id, run.class_name, run.label, one.number, float(s), float(v)), strict=True))
            for one in done
            for run, s, v in zip(one.runs, one.scores.scores, one.z, strict=True)
        ],
    )
    for stem, table in (("folds", folds), ("classes", classes), ("predictions", predictions)):
        table.write(folder / stem)
    for line in [*classes.text().splitlines(), *folds.text().splitlines(), f"tables in {folder}"]:
        log.line(line)
    return RunResult(
        folder, None, {"image_auroc": found.value, "image_auroc_low": found.low, "image_auroc_high": found.high}
    )


def grouped_interval(scores: np.ndarray, labels: np.ndarray, groups: Sequence[str], *, seed: int = 0) -> Interval:
    """AUROC and its 95 % interval over resampled configurations: runs of one configuration differ little."""
    if labels.min() == labels.max():
        raise UserError("the test runs of all folds are of one kind: good and defective ones are needed")
    draws = [auroc(scores[rows], labels[rows]) for rows in _resampled(labels, groups, seed)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(auroc(scores, labels)), float(low), float(high))


def _resampled(labels: np.ndarray, groups: Sequence[str], seed: int) -> Iterator[np.ndarray]:
    """Rows of resampled configurations, of good and of defective runs apart, so that both kinds are always there."""
    members: dict[tuple[int, str], list[int]] = defaultdict(list)
    for row, (label, group) in enumerate(zip(labels.tolist(), groups, strict=True)):
        members[label, group].append(row)
    kinds = [[rows for (label, _), rows in sorted(members.items()) if label == kind] for kind in (0, 1)]
    generator = np.random.default_rng(seed)
    for _ in range(REPEATS):
        yield np.concatenate([kind[i] for kind in kinds for i in generator.integers(len(kind), size=len(kind))])
