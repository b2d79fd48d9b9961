"""The record of a run (run.json), damaged in every way, before whatever reads it."""

import contextlib
import functools
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_lib.engine.sweep import Job, run_metrics, why_of
from anomaly_lib.evaluation.checkpoints import find_checkpoints
from anomaly_lib.systems.detectors.hdmap.experiment import experiment_folder
from anomaly_lib.systems.detectors.hdmap.experiment_utils import extract_training_info
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.types import RunResult
from scripts.pages.results_page import finished_runs
from tests.fuzz.detectors import HOME, trained
from tests.fuzz.oracle import Case, program
from tests.fuzz.pictures import NO_FILES
from tests.fuzz.programs import main_of
from tests.support import tiny_recipe

Damage = Callable[[Path], object]
SAYS = r"run\.json"


@functools.cache
def tiny_run() -> tuple[Path, RunResult]:
    """A finished run of the smallest recipe, made once."""
    folder = Path(HOME.name) / "tiny"
    return folder, trains_again(folder)


def trains_again(folder: Path, **options: Any) -> RunResult:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return tiny_recipe.train(tiny_recipe.Args(epochs=2, output_dir=str(folder), **options))


def changed(**parts: Any) -> Damage:
    """Set parts of the record; ``...`` takes one away."""

    def change(path: Path) -> None:
        record = json.loads(path.read_text()) | parts
        path.write_text(json.dumps({name: value for name, value in record.items() if value is not ...}))

    return change


def text(change: Callable[[str], str | bytes]) -> Damage:
    def rewrite(path: Path) -> None:
        found = change(path.read_text(encoding="utf-8"))
        path.write_bytes(found if isinstance(found, bytes) else found.encode())

    return rewrite


ODD: dict[str, list[Any]] = {  # no value of these parts
    "system": [None, 3, ["tiny"], {}, True, "\ud800"],
    "status": [None, 3, "", "done", ["finished"], "FINISHED", True, {}],
    "args": [None, [], "epochs=2", 3, True],
    "metrics": [None, [], "x", {"loss": "0.5"}, {"loss": None}, {"loss": [1]}, {"loss": True}, {"loss": 10**400}],
    "seconds": [None, "3", -1, [], True, float("nan"), float("inf"), 10**400],
    "weights": [None, [], "x", {"clip": 3}, {"clip": None}],
    "fingerprint": [None, [], "x", {}, {"content": 3, "seen": "x"}, {"content": None, "seen": None}, {"seen": "x"}],
    "checkpoint": [None, 3, [], {}, "\ud800"],
    "resumed": [None, 3, []],
    "error": [3, [], {}, "\ud800"],
    "remarks": [None, "x", [3], {}, [None], ["\ud800"]],
    "closing": [None, "x", [3], [["result"]]],
}
NEEDED = ("system", "status", "args", "metrics")
FILES: dict[str, Damage] = {
    "empty": text(lambda _: b""),
    "a brace": text(lambda _: "{"),
    "null": text(lambda _: "null"),
    "a list": text(lambda whole: f"[{whole}]"),
    "a number": text(lambda _: "3"),
    "a text": text(lambda _: '"finished"'),
    "two records": text(lambda whole: whole * 2),
    "UTF-16 unmarked": text(lambda whole: whole.encode("utf-16-le")),
    "Latin-1": text(lambda whole: whole.replace("status", "st\xe4tus", 1).encode("latin-1")),
    "NUL": text(lambda _: "\0" * 99),
    "deep": text(lambda _: "[" * 200_000),
    "long number": text(lambda whole: whole.replace("{", '{"long": ' + "9" * 5000 + ",", 1)),
    **{what: (lambda path, make=make: (path.unlink(), make(path))) for what, make in NO_FILES.items()},
}
del FILES["absent"]  # such a folder holds no run yet
GOOD_FILES: dict[str, Damage] = {
    "as it is": text(str),
    "UTF-8 marked": text(lambda whole: whole.encode("utf-8-sig")),
    "UTF-16 marked": text(lambda whole: whole.encode("utf-16")),
    "other order": text(lambda whole: json.dumps(dict(reversed(json.loads(whole).items())))),
    "more": changed(more={"a": [1, None]}),
    "huge more": changed(more=10**400),
    "NaN": changed(metrics={"loss": float("nan")}),
    "no metrics in it": changed(metrics={}),
    **{f"no {name}": changed(**{name: ...}) for name in ("closing", "remarks", "weights", "seconds")},
}


def damages(rng: np.random.Generator) -> Iterator[tuple[str, Damage]]:
    """What no reader of a record may take."""
    yield from FILES.items()
    for name, values in ODD.items():
        for number, value in enumerate(values):
            yield f"{name} odd #{number}", changed(**{name: value})
    for place in rng.random(8):
        yield f"cut at {place:.4f}", text(lambda all_, place=place: all_[: int(place * (len(all_) - 3))])


def readers() -> dict[str, Callable[[Path], Any]]:
    """Everything that reads a record, handed a run folder."""

    def experiment(folder: Path) -> Path:
        place = folder.parent / "MultiDomainHDMAP" / "padim"
        place.mkdir(parents=True)
        folder.rename(place / "a_20260101_000000")
        return experiment_folder(folder.parent, "padim", "a", fresh=False)

    return {
        "train": trains_again,
        "go on": lambda folder: trains_again(folder, resume="latest"),
        "evaluate": lambda folder: find_checkpoints(str(folder)) == [folder / "checkpoint.pt"],
        "sweep": lambda folder: isinstance(run_metrics(Job(key={"a": "b"}, argv=(), run_dir=folder)), dict),
        "why": lambda folder: why_of(Job(key={"a": "b"}, argv=(), run_dir=folder), [], folder / "log.txt"),
        "experiment": experiment,
    }


def put_run(folder: Path, damage: Damage) -> Path:
    """A copy of the finished run with a damaged record."""
    shutil.copytree(tiny_run()[0], folder / "run")
    damage(folder / "run" / "run.json")
    return folder / "run"


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for reader, read in readers().items():
        for what, damage in damages(rng):

            def refused(folder: Path, read: Any = read, damage: Damage = damage) -> Any:
                return read(put_run(folder, damage))

            yield Case("record", f"{reader}: {what}", "refuse", refused, SAYS)
        for what, damage in GOOD_FILES.items():
            yield Case("record", f"{reader}: {what}", "accept", lambda folder, r=read, d=damage: r(put_run(folder, d)))
    for name in NEEDED:
        for reader in ("train", "go on", "experiment"):

            def without(folder: Path, name: str = name, reader: str = reader) -> Any:
                return readers()[reader](put_run(folder, changed(**{name: ...})))

            yield Case("record", f"{reader}: no {name}", "refuse", without, SAYS)
    yield from other_runs()
    yield from bent(rng)


def other_runs() -> Iterator[Case]:
    """Records that are ones, of another run or state than the folder's."""
    others = {
        "system": ({"system": "sowa"}, "holds a run of"),
        "line break": ({"system": "a\nb" * 999}, "holds a run of"),
        "epochs": ({"args": {}}, "other options"),
        "odd options": ({"args": {"epochs": "\ud800\n" * 99}}, "other options"),
        "data": ({"fingerprint": {"content": "0", "seen": "0"}}, "other data"),
    }
    for what, (parts, says) in others.items():
        yield Case(
            "record", f"train: other {what}", "refuse", lambda f, p=parts: trains_again(put_run(f, changed(**p))), says
        )
    for status in ("new", "running", "interrupted", "failed"):

        def ended_alike(folder: Path, status: str = status) -> bool:
            return trains_again(put_run(folder, changed(status=status))).metrics == tiny_run()[1].metrics

        yield Case("record", f"train: status {status}", "accept", ended_alike)
    for named in ("/etc/passwd", "../../x.pt", "", "a\0b", ".", "/", "n" * 300, "elsewhere/checkpoint.pt"):

        def inside(folder: Path, named: str = named) -> bool:
            run = put_run(folder, changed(checkpoint=named))
            found = trains_again(run, save_path=str(folder / "published.pt")).checkpoint
            here = find_checkpoints(str(run)) == [run / "checkpoint.pt"]
            return here and (found == folder / "published.pt") == ("checkpoint.pt" in named)

        yield Case("record", f"train: the checkpoint is {named[:20]!r}", "accept", inside)


def bent(rng: np.random.Generator) -> Iterator[Case]:
    """A byte that is another: a text of the record may still be one."""
    for place, byte in zip(rng.random(40), rng.integers(0, 256, 40), strict=True):

        def bend(folder: Path, place: float = place, byte: int = int(byte)) -> Any:
            content = bytearray((tiny_run()[0] / "run.json").read_bytes())
            content[int(place * len(content))] = byte
            return trains_again(put_run(folder, lambda path: path.write_bytes(content)))

        yield Case("record", f"train: byte {byte} at {place:.4f}", "either", bend)


def of_systems(rng: np.random.Generator, systems: tuple[str, ...]) -> Iterator[Case]:
    """Runs of whole systems: their command given again, and their evaluation, which needs no record."""
    for system in systems:
        for what, damage in damages(rng):

            def put(folder: Path, system: str = system, damage: Damage = damage) -> Path:
                shutil.copytree(Path(HOME.name) / system, folder / "run")
                damage(next((folder / "run").rglob("run.json")))
                return folder / "run"

            def again(folder: Path, system: str = system, put: Any = put) -> Any:
                return SYSTEMS[system].train(SYSTEMS[system].tiny(output_dir=str(put(folder))))

            def evaluate(folder: Path, system: str = system, put: Any = put) -> bool:
                path = next(put(folder).rglob(trained(system).name))
                words = ("--bootstrap", 0, "--no-figures", "--output", folder / "out")
                return program(main_of("evaluate"), "--checkpoint", path, *words)

            yield Case("record", f"{system} again: {what}", "refuse", again, SAYS)
            if what in FILES and system == systems[0]:  # the checkpoint is whole: only the comparison is left out
                yield Case("record", f"{system} evaluated: {what}", "accept", evaluate)
    for number, odd in enumerate(({"model": []}, {"model": "x"}, {"model": "draem", "epochs": "x"}, {"seed": None})):

        def options(folder: Path, odd: Any = odd) -> Any:
            return extract_training_info(put_run(folder, changed(args=odd)))

        yield Case("record", f"training info: odd options #{number}", "refuse", options)
    for what, damage in FILES.items():

        def page(folder: Path, damage: Damage = damage) -> Any:
            return finished_runs(put_run(folder, damage))

        def info(folder: Path, damage: Damage = damage) -> Any:
            return extract_training_info(put_run(folder, damage))

        yield Case("record", f"results page: {what}", "refuse", page)
        yield Case("record", f"training info: {what}", "refuse", info)
