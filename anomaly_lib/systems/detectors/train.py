"""PatchCore, PaDiM, Reverse Distillation, DRAEM and DRAEM-SevNet on one class of any image data set."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.data.base import ImageDataset, select
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.figures import draw_maps
from anomaly_lib.detect.scores import sample_remarks, summary
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.distributed import is_main, process_group
from anomaly_lib.engine.run import Run
from anomaly_lib.systems.detectors.build import build
from anomaly_lib.systems.detectors.data import image_transform, input_channels, open_class, stack_images
from anomaly_lib.systems.detectors.detector import ClassicalDetector
from anomaly_lib.systems.detectors.fitting import cost_lines, fit, left_out_decision
from anomaly_lib.systems.detectors.options import Args
from anomaly_lib.types import RunResult


def train(args: Args) -> RunResult:
    """Fit one detector, score the test images once."""
    device = pick_device(args.device)
    name, items = open_class(args.dataset, args.data_path, args.obj)
    normal = ImageDataset(
        select(items, split="train", label=0), transform=image_transform(args), on_error=args.on_error
    )
    with process_group(device), Run.open("detectors", args, name=f"{args.model}-{args.dataset}-{name}") as run:
        if run.finished:
            return run.repeat()
        detector = ClassicalDetector(build(args, device), args, device)
        choice = Choice(batch_size=args.batch_size, on_error=args.on_error)
        test = detector.selection_of(f"{args.dataset} {name} {args.model}", items, choice)
        run.opening(
            f"{args.model}: {name}, {len(normal)} normal images, {len(test.items)} test images",
            weights=weights_of(detector.model),
            cost=cost_lines(detector.model, args, device, len(normal)),
        )
        for line in without_meaning(args):
            run.log.line(line)
        run.note(skipped=normal.skipped + test.beside.skipped, class_name=name)
        channels = input_channels(args)
        count = len(normal)

        def images_of(index: Tensor) -> Tensor:
            return stack_images(normal, index, channels)

        state = fit(run, detector.model, args, device, count, images_of)
        decision = detector.decision = left_out_decision(detector.model, args, device, count, images_of)
        state.extra["decision"] = None if decision is None else decision.plain()
        scores = detector.score(test)
        if args.figures and is_main():
            run.note(figures=[path.name for path in draw_maps(run.dir, scores, decision)])
        undecided = "none: this detector has no scores of normal images it has not seen"
        return run.finish(
            state,
            summary(scores, decision),
            remarks=[*detector.facts.notes, *sample_remarks(scores)],
            decision=undecided if decision is None else decision.describe(),
        )


def without_meaning(args: Any) -> Iterator[str]:
    """What was asked for and changes nothing here, in words."""
    if args.num_workers:
        yield f"num_workers={args.num_workers} has no meaning here: each image is decoded once, in this process"
    if args.protocol == "paper" and args.model in ("padim", "reverse_distillation"):
        yield f"protocol=paper changes nothing: {args.model} is computed as its published program does"
