"""Cross-validation splits of few runs: whole configurations are tested together, never seen in training."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from anomaly_lib.errors import UserError
from anomaly_lib.systems.weld.data.manifest import WeldRun

FOLD_SEED = 42


def fold_of_groups(runs: Sequence[WeldRun], folds: int) -> dict[str, int]:
    """The fold (from 0) of each configuration: classes spread evenly, large configurations first."""
    members: dict[str, list[WeldRun]] = defaultdict(list)
    for run in runs:
        members[group_of(run)].append(run)
    if folds > len(members):
        raise UserError(f"folds={folds}: there are {len(members)} configurations, which stay whole; give fewer folds")
    order = sorted(members)
    random.Random(FOLD_SEED).shuffle(order)
    order.sort(key=lambda group: -len(members[group]))
    held: list[Counter[str]] = [Counter() for _ in range(folds)]
    places: dict[str, int] = {}
    for group in order:
        kinds = Counter(run.class_name for run in members[group])
        kind = kinds.most_common(1)[0][0]
        normal = kind == "good"

        def load(fold: int, kind: str = kind, normal: bool = normal) -> tuple[int, int, int]:
            count = held[fold]
            alike = count["good"] if normal else count.total() - count["good"]
            return count[kind], alike, count.total()

        places[group] = min(range(folds), key=load)
        held[places[group]] += kinds
    return places


def group_of(run: WeldRun) -> str:
    """The configuration of a run; a run without one stands alone."""
    return run.group or run.run_id


def fold_splits(runs: Sequence[WeldRun], *, folds: int, fold: int, supervised: bool = False) -> list[WeldRun]:
    """Fold number `fold` (from 1) is TEST, the next one VAL, the rest TRAIN.

    Unsupervised: defects of the rest join VAL, since only good runs train.
    """
    places = fold_of_groups(runs, folds)

    def split(run: WeldRun) -> str:
        place = (places[group_of(run)] - (fold - 1)) % folds
        if place == 0:
            return "test"
        return "val" if place == 1 or (run.label and not supervised) else "train"

    return [replace(run, split=split(run)) for run in runs]


NEEDED = (
    ("train", (0,), "good run to train on"),
    ("val", (0,), "good run to validate on"),
    ("test", (0, 1), "run to test"),
)


def check_fold(runs: Sequence[WeldRun], seen: Sequence[WeldRun], *, folds: int, fold: int, what: str) -> None:
    """Refuse a fold of `runs` that lacks what it needs among those `seen`, which have `what`."""
    known = {run.run_id for run in seen}
    there = {(run.split, run.label) for run in fold_splits(runs, folds=folds, fold=fold) if run.run_id in known}
    for split, labels, need in NEEDED:
        if not any((split, label) in there for label in labels):
            raise UserError(
                f"folds={folds}: fold {fold} would have no {need}: of {len(runs)} runs {len(known)} have {what}; give "
                "fewer folds, or leave folds= out"
            )
