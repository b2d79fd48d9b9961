"""Do decisions keep their promise? Measured false-alarm rates beside it, for every image detector.

Each data set's normal images are pooled and split at random: some fit and set the decision, the others are new parts.
Frozen features are encoded once. Whatever is fitted, PromptAD and SOWA are fitted anew in each split; the networks that
are trained (Reverse Distillation, DRAEM, DRAEM-SevNet) are trained once a data set, small and short, and the normal
images they have not been trained on are split. Low figures of detection are therefore no news; rates are what counts.

ANOMALY_LIB_DATA=DIR python benchmarks/false_alarms.py [--splits 20] [--output benchmarks/results/false_alarms.json]
Then python scripts/pages/false_alarm_table.py puts the table into docs/manual/decisions.md.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from false_alarm_splits import Outcome, Split, data_folder, memory, promptad, short, sowa, trained
from harness import BenchmarkArgs, finish, machine

from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.data.demo.items import CATEGORIES
from anomaly_lib.detect.calibration import decision_from, maxima_of
from anomaly_lib.detect.decision import Decision
from anomaly_lib.files import read_json
from anomaly_lib.metrics import f1_max_threshold


@dataclass
class Args(BenchmarkArgs):
    """False alarms."""

    splits: int = arg(20, "random splits", at_least=2)
    only: str = arg("", "regular expression of 'detector, data'; other rows of --output stay")


RATES = (0.01, 0.05, 0.1)
TWICE = ("mvtec_ad/bottle", "demo grid")  # where two shots and both ways of leaving an image out are compared
DEMO = tuple(f"demo {name}" for name in CATEGORIES)
TRAINED = {"reverse_distillation": 20, "draem": 20, "draem_sevnet": 20}  # epochs
ON_FEATURES = ("patchcore", "padim", "anomalydino", "subspacead", "visionad", "rad", "winclip")
REAL = ("mvtec_ad/bottle", "mtd/magnetic_tile", "battery_weld/weld")


# -- counting ---------------------------------------------------------------------------------------------------------


def count_split(outcome: Outcome, rate: float) -> dict[str, float]:
    """What the decision at `rate` does on new parts of one split."""
    decision: Decision = decision_from(outcome.known, rate, of="normal images")
    new, broken = (one.score.double() for one in (outcome.new, outcome.broken))
    oracle = f1_max_threshold(torch.cat([new, broken]), torch.cat([torch.zeros(len(new)), torch.ones(len(broken))]))
    assert decision.false_alarms is not None
    found = {
        "promised": decision.false_alarms,
        "false_alarms": float((new >= decision.threshold).double().mean()),
        "found": float((broken >= decision.threshold).double().mean()),
        "oracle_false_alarms": float((new >= oracle).double().mean()),
        "oracle_found": float((broken >= oracle).double().mean()),
        "shift": float((outcome.known.score.double().mean() - new.mean()) / new.std()),
    }
    tops = maxima_of(outcome.new)
    if len(tops) and decision.map_threshold is not None:
        found["region_false_alarms"] = float((tops.double() >= decision.map_threshold).double().mean())
    return found


def measured(detector: str, name: str, split: Split, splits: int) -> list[dict[str, Any]]:
    """A row for each asked rate: mean over the splits, its sample deviation and its standard error."""
    outcomes = [split(np.random.default_rng((7, number))) for number in range(splits)]
    out = []
    for rate in RATES:
        each = [count_split(outcome, rate) for outcome in outcomes]
        rates = np.array([one["false_alarms"] for one in each])
        means = {key: float(np.mean([one[key] for one in each])) for key in each[0]}
        out.append({
            "detector": detector, "data": short(name), "asked": rate, "known": len(outcomes[0].known.score),
            "new": len(outcomes[0].new.score), "broken": len(outcomes[0].broken.score), "splits": splits, **means,
            "deviation": float(rates.std(ddof=1)), "standard_error": float(rates.std(ddof=1) / splits**0.5),
        })  # fmt: skip
    return out


def works(args: Args) -> Iterator[tuple[str, str, Callable[[], Split], int]]:
    """(detector, data, how it is made, splits), real data first; nothing is read before it is made."""
    (weights,) = sorted((data_folder() / "weights").glob("resnet18*.pth"))
    for data in (*REAL, *DEMO):
        for model in ON_FEATURES:
            yield model, data, partial(memory, model, data, weights), args.splits
        for model, epochs in TRAINED.items():
            yield model, data, partial(trained, model, data, weights, epochs), args.splits
        if data in TWICE:
            yield "patchcore, masked", data, partial(memory, "patchcore", data, weights, masked=True), args.splits
        for shot in (4, 19) if data in TWICE else (4,):
            yield f"promptad k={shot}", data, partial(promptad, data, shot), args.splits
            yield f"sowa k={shot}", data, partial(sowa, data, shot), args.splits
    for few in (4, 8, 16):  # what leaving one out costs where there are few
        for model in ("patchcore", "padim"):
            yield f"{model} n={few}", REAL[0], partial(memory, model, REAL[0], weights, few), args.splits
        masked = partial(memory, "patchcore", REAL[0], weights, few, masked=True)
        yield f"patchcore n={few}, masked", REAL[0], masked, args.splits


def bench(args: Args) -> int:
    """Measure what --only names, and write the table after each detector and data set."""
    torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
    if args.output is not None and Path(args.output).is_file():
        rows = read_json(Path(args.output))["rows"]
        table = [row for row in rows if not re.search(args.only, f"{row['detector']}, {row['data']}")]
    for detector, data, make, splits in works(args):
        if not re.search(args.only, f"{detector}, {short(data)}"):
            continue
        start = time.process_time()
        torch.manual_seed(0)
        table += measured(detector, data, make(), splits)
        row = table[-2]
        print(
            f"{detector:22} {data:20} promised {row['promised']:.3f} measured {row['false_alarms']:.3f} "
            f"± {row['standard_error']:.3f}, shift {row['shift']:+.2f}, {time.process_time() - start:.0f} s",
            flush=True,
        )
        finish({"machine": machine(), "rows": table}, args.output)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="false_alarms.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
