"""Any detector of the registry on one class of any image data set."""

from collections.abc import Iterator
from typing import Any

from anomaly_lib.backbones.identity import DEMO, weights_of
from anomaly_lib.backbones.sources import demo_clip_offered
from anomaly_lib.data.base import select
from anomaly_lib.data.fingerprint import fingerprint_of_items
from anomaly_lib.detect.calibration import KEPT
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.decision import in_words
from anomaly_lib.detect.figures import draw_maps
from anomaly_lib.detect.scores import sample_remarks, summary
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.distributed import is_main, process_group
from anomaly_lib.engine.resume import resumed
from anomaly_lib.engine.run import Run
from anomaly_lib.models.detectors.registry import entry_of
from anomaly_lib.systems.detectors.build import build
from anomaly_lib.systems.detectors.data import open_class, with_textures
from anomaly_lib.systems.detectors.detector import ClassicalDetector
from anomaly_lib.systems.detectors.fitting import cost_lines, fit
from anomaly_lib.systems.detectors.inputs import Inputs
from anomaly_lib.systems.detectors.normal import NormalImages, decide
from anomaly_lib.systems.detectors.options import Args
from anomaly_lib.types import RunResult


def train(args: Args) -> RunResult:
    """Fit one detector, set its decision, score the test images once."""
    args, device = resumed("detectors", args), pick_device(args.device)
    name, items = open_class(args.dataset, args.data_path, args.obj)
    data = with_textures(fingerprint_of_items(items, args.data_path), args)
    normal = NormalImages.of(select(items, split="train", label=0), args)
    place = f"{args.model}-{args.dataset}-{name}"
    with process_group(device), Run.open("detectors", args, name=place, data=data) as run:
        if run.finished:
            return run.repeat()
        with demo_clip_offered(entry_of(args.model).demo.get("backbone") == DEMO):
            detector = ClassicalDetector(build(args, device), args, device)
        choice = Choice(batch_size=args.batch_size, on_error=args.on_error)
        test = detector.selection_of(f"{args.dataset} {name} {args.model}", items, choice)
        learnt = Inputs(detector.model, normal.images(args, normal.learn), args, device, learnt=True, say=run.log.line)
        run.opening(
            f"{args.model}: {name}, {len(normal.data)} normal images, {len(test.items)} test images",
            weights=weights_of(detector.model),
            cost=cost_lines(learnt),
        )
        for line in [*without_meaning(args), normal.remark]:
            if line:
                run.log.line(line)
        run.note(skipped=normal.data.skipped + test.beside.skipped, class_name=name, **{KEPT: normal.names})
        if args.shot is not None:
            run.note(support=[item.path.as_posix() for item in normal.data.items])
        state = fit(run, learnt, args, kept=normal.names)
        decision = detector.decision = decide(detector.model, normal, args, device)
        state.extra["decision"] = None if decision is None else decision.plain()
        scores = detector.score(test)
        if args.figures and is_main():
            run.note(figures=[path.name for path in draw_maps(run.dir, scores, decision)])
        return run.finish(
            state,
            summary(scores, decision),
            remarks=[*detector.facts.notes, *sample_remarks(scores)],
            decision=in_words(decision, detector.undecided),
        )


def without_meaning(args: Any) -> Iterator[str]:
    """What was asked for and changes nothing here, in words."""
    stored = hasattr(args, "cache") and args.cache != "off"
    if args.num_workers and not stored:
        yield f"num_workers={args.num_workers} has no meaning here: each image is decoded once, in this process"
    if args.precision != "fp32" and not (hasattr(args, "backbone") or hasattr(args, "epochs")):
        yield f"precision={args.precision} has no meaning for {args.model}"
    if getattr(args, "shot", None) is not None and entry_of(args.model).transductive:
        yield f"shot={args.shot} has no meaning for {args.model}: it learns from no normal image"
    if args.protocol == "paper" and not any("protocol" in preset.when for preset in type(args).presets()):
        yield f"protocol=paper changes nothing: {args.model} is computed as its published program does"
