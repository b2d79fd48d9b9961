"""python -m anomaly_lib predict: scores and overlays for unlabelled images, as a stream that never grows in memory."""

import csv
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from anomaly_lib.command_line import PROGRAM
from anomaly_lib.data.images import read_image
from anomaly_lib.detect.decision import CALIBRATE, Decision, at_asked_rate
from anomaly_lib.detect.drift import DriftCheck
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.detect.scoring import decided_cells
from anomaly_lib.errors import UserError
from anomaly_lib.evaluation.checkpoints import one_checkpoint
from anomaly_lib.evaluation.inputs import check_inputs, expand
from anomaly_lib.evaluation.options import PredictArgs
from anomaly_lib.files import forget_torn_line, lock_folder, read_json, readable, remove_leftovers, write_json
from anomaly_lib.systems.registry import Registry
from anomaly_lib.viz.overlays import map_range, overlay, save_image


@dataclass
class Stream:
    """Where results go, and what has been done: an interrupted run goes on where it stopped."""

    folder: Path
    checkpoint: Path
    decision: Decision | None
    done: set[str] = field(default_factory=set)
    value_range: tuple[float, float] | None = None
    scored: int = 0
    anomalous: int = 0
    skipped: int = 0
    drift: DriftCheck | None = None
    news: list[str] = field(default_factory=list)  # to be said, once

    @property
    def table(self) -> Path:
        return self.folder / "predictions.csv"

    @contextmanager
    def open(self) -> Iterator[IO[str]]:
        """The table, opened to append, for this process alone. What killed writes have left is removed."""
        lock = lock_folder(self.folder)
        if lock is None:
            raise UserError(f"{self.folder}: another process is writing there; wait for it or choose another --out")
        with lock:
            for folder, _, _ in os.walk(self.folder):
                remove_leftovers(Path(folder))
            self._go_on()
            with self.table.open("a", newline="", encoding="utf-8") as table:
                if not table.tell():
                    self.rows(table).writeheader()
                    table.flush()
                yield table

    def _go_on(self) -> None:
        """Take in what has been done. Results of another checkpoint are never mixed with ours."""
        note = self.folder / "predictions.json"
        if self.table.is_file() and note.is_file():
            earlier = read_json(note)
            if any(earlier.get(name) != value for name, value in self._head().items()):
                raise UserError(
                    f"{self.folder}: holds results of another checkpoint or threshold; choose another --out"
                )
            self.value_range = tuple(earlier["value_range"]) if earlier["value_range"] else None
            forget_torn_line(self.table)  # that image is scored again
            with self.table.open(newline="", encoding="utf-8") as stream:
                for row in csv.DictReader(stream):
                    self.done.add(row["path"])
                    if row["score"]:
                        self._check_drift(float(row["score"]))
        else:
            self.table.unlink(missing_ok=True)
            self.note()

    def rows(self, table: IO[str]) -> "csv.DictWriter[str]":
        """A writer of rows; a detector without a decision has no columns of one."""
        decided = [] if self.decision is None else ["threshold", "p_value", "anomalous", "area"]
        if self.decision is not None and not self.decision.has_p_values:
            decided.remove("p_value")
        if self.decision is not None and self.decision.map_threshold is None:
            decided.remove("area")
        return csv.DictWriter(table, ["path", "score", *decided, "error"], restval="", lineterminator="\n")

    def count(self, cells: Mapping[str, Any]) -> None:
        """Take note of a scored image."""
        self.scored += 1
        self.anomalous += cells.get("anomalous", 0)
        self._check_drift(cells["score"])

    def _check_drift(self, score: float) -> None:
        if self.drift is not None and self.drift.add(score):
            self.news.append(self.drift.describe())

    def note(self) -> None:
        write_json(self.folder / "predictions.json", {**self._head(), "value_range": self.value_range})

    def _head(self) -> dict[str, Any]:
        """What must be equal for two runs to share a table."""
        decision = self.decision
        return {
            "checkpoint": _identity(self.checkpoint),
            "threshold": None if decision is None else decision.threshold,
            "map_threshold": None if decision is None else decision.map_threshold,
        }


def _identity(checkpoint: Path) -> dict[str, Any]:
    return {"path": str(checkpoint), "bytes": checkpoint.stat().st_size}


def predict_stream(args: PredictArgs, systems: Registry, say: Callable[[str], object]) -> int:
    """Score every image of the inputs in batches; with --watch also those that arrive later."""
    if not args.checkpoint or not args.input:
        raise UserError(f"usage: {PROGRAM} predict --checkpoint FILE IMAGE|DIR|GLOB ... --out DIR")
    if not args.watch:
        check_inputs(args.input)
    checkpoint = one_checkpoint(args.checkpoint)
    detector = systems.load(checkpoint, device=args.device, weights=args.weights)
    if not isinstance(detector, ImageDetector):
        raise UserError(f"{checkpoint}: {detector.system} is no image system; predict scores images only")
    detector = detector if args.obj is None else detector.of_class(args.obj)
    decision = detector.decision = decision_asked(detector.decision, args)
    if decision is None:
        say(f"{checkpoint}: no decision, only scores: {detector.undecided}; {CALIBRATE} adds one")
    for remark in [*detector.facts.remarks(), *short_of(decision, args)]:
        say(remark)
    stream = Stream(Path(args.output_dir), checkpoint, decision)
    if args.watch and decision is not None and decision.has_p_values:
        stream.drift = DriftCheck.beside(decision)
    with stream.open() as table, ThreadPoolExecutor(2) as pool:
        writer = stream.rows(table)
        for batch in _batches(args, stream):
            _score(batch, detector, stream, writer, args, pool)
            table.flush()
            while stream.news:
                say(stream.news.pop())
    found = f", {stream.anomalous} anomalous at threshold {decision.threshold:.4g}" if decision is not None else ""
    say(f"{stream.scored} images scored{found}, {stream.skipped} skipped; results in {stream.folder}")
    return 0


def _score(
    batch: list[tuple[Path, Path]],
    detector: ImageDetector,
    stream: Stream,
    writer: "csv.DictWriter[str]",
    args: PredictArgs,
    pool: ThreadPoolExecutor,
) -> None:
    """Decode, score, write one batch."""
    decoded: list[tuple[Path, Path, np.ndarray]] = []
    for (path, name), outcome in zip(batch, pool.map(_decode, [path for path, _ in batch]), strict=True):
        if isinstance(outcome, UserError):
            if args.on_error == "fail":
                raise outcome
            writer.writerow({"path": readable(path), "error": str(outcome)})
            stream.skipped += 1
        else:
            decoded.append((path, name, outcome))
    if not decoded:
        return
    prediction = detector.predict([pixels for *_, pixels in decoded])
    maps = None if prediction.map is None else prediction.map.detach().float().cpu().numpy()
    if maps is not None and stream.value_range is None:
        stream.value_range = map_range(maps)  # fixed by the first batch: one colour scale for the whole stream
        stream.note()  # before the first row: a run that goes on must not fix another one
    for index, ((path, name, pixels), cells) in enumerate(zip(decoded, decided_cells(prediction), strict=True)):
        if not math.isfinite(cells["score"]):
            raise UserError(f"{path}: its score is not finite; is it a damaged image, or are the weights?")
        if args.overlays and maps is not None and stream.value_range is not None:
            seen = detector.transform.denormalise(detector.transform(pixels))
            region = None if prediction.region is None else prediction.region[index]
            picture = overlay(seen, maps[index], stream.value_range, region=region)
            save_image(stream.folder / "overlays" / name, picture)
        writer.writerow({"path": str(path), **cells})  # last: a row says that the image is done
        stream.count(cells)


def decision_asked(stored: Decision | None, args: PredictArgs) -> Decision | None:
    """The stored decision with another threshold or promise, where one is asked for."""
    if args.threshold is None:
        return at_asked_rate(stored, args.false_alarms)
    given: dict[str, Any] = {"threshold": args.threshold, "source": "given with --threshold", "false_alarms": None}
    return Decision(**given) if stored is None else replace(stored, **given)


def short_of(decision: Decision | None, args: PredictArgs) -> list[str]:
    return [] if decision is None or args.false_alarms is None else decision.short_of(args.false_alarms)


def _decode(path: Path) -> np.ndarray | UserError:
    try:
        return read_image(path)
    except UserError as error:
        return error


# -- which images ---------------------------------------------------------------------------------------------------


def _batches(args: PredictArgs, stream: Stream) -> Iterator[list[tuple[Path, Path]]]:
    """Batches of new images; a watched file is taken once its size stands still between two looks."""
    sizes: dict[str, int] = {}
    last_new, own = time.monotonic(), stream.folder.resolve()
    while True:
        batch: list[tuple[Path, Path]] = []
        for number, text in enumerate(args.input):
            for path, name in expand(text):
                key = str(path)
                if path.resolve().is_relative_to(own):  # results written below the input are no input
                    continue
                if key in stream.done or not (_settled(path, sizes) if args.watch else True):
                    continue
                stream.done.add(key)
                last_new = time.monotonic()
                batch.append((path, name if len(args.input) == 1 else Path(str(number)) / name))
                if len(batch) == args.batch_size:
                    yield batch
                    batch = []
        if batch:
            yield batch
        if not args.watch or (args.idle_seconds and time.monotonic() - last_new > args.idle_seconds):
            return
        time.sleep(args.poll_seconds)


def _settled(path: Path, sizes: dict[str, int]) -> bool:
    try:
        size = path.stat().st_size
    except OSError:  # taken away between listing and looking
        return False
    if size > 0 and sizes.get(str(path)) == size:
        del sizes[str(path)]
        return True
    sizes[str(path)] = size
    return False
