"""python -m anomaly_lib calibrate: a decision for any checkpoint, from normal files the detector has not seen."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from anomaly_lib.command_line import PROGRAM, as_word
from anomaly_lib.data.base import Item
from anomaly_lib.data.images import read_image
from anomaly_lib.detect.calibration import KEPT, decision_from
from anomaly_lib.detect.contract import Detector
from anomaly_lib.detect.drift import DriftCheck
from anomaly_lib.engine.checkpoint import Checkpoint, save_checkpoint
from anomaly_lib.engine.log import progress
from anomaly_lib.errors import UserError
from anomaly_lib.evaluation.checkpoints import one_checkpoint
from anomaly_lib.evaluation.inputs import normal_inputs
from anomaly_lib.evaluation.options import CalibrateArgs
from anomaly_lib.systems.registry import Registry
from anomaly_lib.types import Prediction

ORIGIN = "normal files given to calibrate"


def calibrate(args: CalibrateArgs, systems: Registry, say: Callable[[str], object]) -> int:
    """Score the normal files and write the checkpoint with the decision that they make."""
    if not args.checkpoint or not args.normal:
        raise UserError(f"usage: {PROGRAM} calibrate --checkpoint FILE --normal FOLDER [--output FILE]")
    checkpoint = systems.read(one_checkpoint(args.checkpoint))
    output = Path(args.output) if args.output else checkpoint.path
    if checkpoint.adopted and output.resolve() == checkpoint.path.resolve():
        raise UserError(f"{output}: a file of the system's authors is not written to; give output=FILE")
    detector = systems.detector_of(checkpoint, device=args.device, weights=args.weights)
    detector = detector if args.obj is None else detector.of_class(args.obj)
    inputs = normal_inputs(detector, args.normal)
    for line in trained_on_lines(detector, checkpoint, inputs):
        say(line)
    found, places, skipped = scored(detector, inputs, args)
    for line in skipped:
        say(f"skipped: {line}")
    decision = decision_from(found, args.false_alarms, of=ORIGIN, places=places)
    for line in [*decision.short_of(args.false_alarms), *drift_lines(detector, found)]:
        say(line)
    extra = {**checkpoint.extra, **detector.record_of(decision)}
    save_checkpoint(output, {**checkpoint.content, "extra": extra}, system=checkpoint.system)
    say(f"decision: {decision.describe()}")
    say(f"checkpoint: {output}")
    say(f"next: {PROGRAM} predict --checkpoint {as_word(output)} NEW_FILES")
    return 0


def scored(detector: Detector, inputs: Sequence[Any], args: CalibrateArgs) -> tuple[Prediction, list[Path], list[str]]:
    """What the detector says of all inputs, where these lie, and why others were skipped."""
    found: list[Prediction] = []
    places: list[Path] = []
    skipped: list[str] = []
    batches = [inputs[first : first + args.batch_size] for first in range(0, len(inputs), args.batch_size)]
    for batch in progress(batches, "normal files"):
        for some in [batch] if args.on_error == "fail" else [[one] for one in batch]:
            try:
                one = detector.predict(list(some))
            except UserError as error:
                if args.on_error == "fail":
                    raise
                skipped.append(str(error))
                continue
            peak = None if one.map is None else one.map.detach().float().cpu().amax((1, 2))[:, None, None]
            found.append(Prediction(one.score.detach().cpu(), peak))  # of a map its peak alone is needed
            places += [place_of(each) for each in some]
    if not found:
        raise UserError(f"none of the {len(inputs)} normal files can be scored; the first: {skipped[0]}")
    peaks = [one.map for one in found if one.map is not None]
    return Prediction(torch.cat([one.score for one in found]), torch.cat(peaks) if peaks else None), places, skipped


def drift_lines(detector: Detector, found: Prediction) -> list[str]:
    """A line where the normal files, in their order, are not like the stored normal data or not like one another."""
    stored = detector.decision if detector.decision is not None and detector.decision.has_p_values else None
    check = DriftCheck(() if stored is None else stored.normal)
    if not any(check.add(score) for score in found.score.tolist()):
        return []
    if stored is not None:
        other = "higher" if check.way == "rise" else "lower"
        return [f"the normal files score {other} than the normal data of the stored decision ({stored.origin})"]
    return [
        f"drift: the scores of the normal files {check.way} along their order, so they are not of one kind; the "
        "promise holds for parts that mix as they do (of files of one kind this is said with a chance of "
        f"{check.chance:.0%} at most)"
    ]


def trained_on_lines(detector: Detector, checkpoint: Checkpoint, inputs: Sequence[Any]) -> Iterator[str]:
    """A line where some inputs are those of the training: by content, or by place where that cannot be read."""
    kept = set(checkpoint.extra.get(KEPT, []))
    try:
        trained = [one for one in detector.trained_on() if name_of(one) not in kept]
        in_memory = any(isinstance(one, Item) and one.image is not None for one in trained)
        known = {key for one in trained for key in keys_of(one, pixels=in_memory)}
        same = [one for one in inputs if known & keys_of(one, pixels=in_memory)]
    except (UserError, OSError):
        root = getattr(detector.args, "data_path", None)
        train = None if root is None else Path(root).resolve()
        same = [one for one in inputs if train is not None and _below_train(Path(name_of(one)), train)]
    if same:
        yield (
            f"{len(same)} of {len(inputs)} normal files are those it was trained on ({name_of(same[0])}): they look "
            "more normal than new ones will, and more false alarms than promised follow; give others"
        )


def place_of(one: Any) -> Path:
    """Where a sample lies."""
    place: Path = one if isinstance(one, Path) else getattr(one, "path", None) or one.folder
    return place


def name_of(one: Any) -> str:
    return place_of(one).as_posix()


def keys_of(one: Any, *, pixels: bool) -> set[str]:
    """What tells that two samples are the same: the bytes of a file, its pixels, or where a folder lies."""
    if isinstance(one, Item) and one.image is not None:
        return {_digest(one.image.tobytes())}
    place = Path(name_of(one))
    if not place.is_file():
        return {place.resolve().as_posix()}
    keys = {_digest(place.read_bytes())}
    return keys | {_digest(read_image(place).tobytes())} if pixels else keys


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _below_train(path: Path, root: Path) -> bool:
    path = path.resolve()
    return path.is_relative_to(root) and "train" in path.relative_to(root).parts[:-1]
