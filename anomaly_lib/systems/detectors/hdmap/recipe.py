"""Multi-domain HDMAP: fit a detector on one gearbox domain, measure what is left of it on the others."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from anomaly_lib.backbones.identity import weight_remarks, weights_of
from anomaly_lib.detect.contract import EvaluateArgs, Evaluation
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import TrainState
from anomaly_lib.engine.distributed import process_group
from anomaly_lib.engine.run import Run
from anomaly_lib.errors import UserError
from anomaly_lib.files import write_json
from anomaly_lib.metrics import auroc
from anomaly_lib.systems.detectors import train as detectors
from anomaly_lib.systems.detectors.build import build
from anomaly_lib.systems.detectors.hdmap.domain_files import write_domain
from anomaly_lib.systems.detectors.hdmap.options import Args
from anomaly_lib.systems.detectors.hdmap.reader import MultiDomainHDMAPDataModule
from anomaly_lib.systems.detectors.hdmap.scoring import (
    domain_metrics,
    domains_of,
    score_domain,
    source_threshold,
    transfer_line,
    transfer_metrics,
    with_channels,
)
from anomaly_lib.systems.detectors.options import TRAINED, resolve
from anomaly_lib.systems.detectors.train import Detector, predict
from anomaly_lib.systems.detectors.training import BEST, fit
from anomaly_lib.types import RunResult

SYSTEM = "hdmap"


def tiny() -> Args:
    """Seconds on a CPU: PatchCore on a random ResNet-18, one target."""
    return Args(
        backbone="resnet18", weights="random", image_size=[32, 96], target_domains=["domain_B"], figures=False,
        coreset_size=60,
    )  # fmt: skip


def train(args: Args) -> RunResult:
    """Fit on the source, set the threshold there, score the source and every target once."""
    args = resolve(args)
    device = pick_device(args.device)
    data = open_domains(args)
    with (
        process_group(device),
        Run.open(SYSTEM, args, name=f"{args.condition}-{args.model}-{args.source_domain}") as run,
    ):
        if run.finished:
            return replace(run.result(), already_done=True)
        if args.data_path is None:
            run.log.line("no --data-path: running on built-in synthetic HDMAP maps")
        run.log.line(
            f"{args.model}: source {data.source_domain} ({len(data.train_data)} maps), "
            f"targets {', '.join(data.target_domains)}"
        )
        detector = build(args, device)
        run.note(weights=weights_of(detector))
        selects = args.model in TRAINED

        def validate() -> float:
            found = score_domain(detector, data.val_data, args, device)
            return auroc(found.score, data.val_data.labels)

        def images_of(index: Tensor) -> Tensor:
            return with_channels(data.train_data.images[index], args)

        state = fit(run, detector, args, device, len(data.train_data), images_of, validate if selects else None)
        threshold, normal = source_threshold(detector, data.val_data, args, device)
        state.extra |= {"threshold": threshold}
        results = {}
        for role, domain in domains_of(data):
            prediction = score_domain(detector, domain, args, device)
            results[domain.domain] = domain_metrics(prediction.score, domain.labels, threshold, normal)
            write_domain(run.dir, role, domain, prediction, threshold, args)
        final = run.dir / BEST if selects and (run.dir / BEST).is_file() else None
        summary = transfer_metrics(results, data.source_domain, data.target_domains)
        write_json(run.dir / "domains.json", results)
        run.note(domains=results, source_domain=data.source_domain, target_domains=data.target_domains)
        run.log.line(transfer_line(summary, args, weight_remarks(run.record["weights"])))
        return finish(run, state, summary, final)


def finish(run: Run, state: TrainState, summary: dict[str, float], final: Path | None) -> RunResult:
    """The final checkpoint is the selected epoch's, with the threshold in it."""
    if final is not None:
        run.save(state, len(state.history), BEST)
    return run.finish(state, summary, final=final)


# -- data -----------------------------------------------------------------------------------------------------------


def open_domains(args: Args) -> MultiDomainHDMAPDataModule:
    targets: str | list[str] = args.target_domains
    assert args.batch_size is not None
    return MultiDomainHDMAPDataModule(
        args.data_path,
        source_domain=args.source_domain,
        target_domains="auto" if targets == ["auto"] else targets,
        validation_strategy=args.validation_strategy,
        train_batch_size=args.batch_size,
        eval_batch_size=args.batch_size,
        target_size=(args.image_size[0], args.image_size[1]),
        resize_method=args.resize_method,
        seed=args.seed,
    )


# -- use ------------------------------------------------------------------------------------------------------------


def load_detector(path: str | Path, *, device: str = "auto", weights: str | None = None) -> Detector:
    """The detector of a run's checkpoint, with the source threshold."""
    return detectors.load_detector(path, device=device, weights=weights, system=SYSTEM, options=Args)


def evaluate(checkpoint: Path, args: EvaluateArgs) -> Evaluation:
    """Score the source and the targets again, from the checkpoint alone."""
    detector = load_detector(checkpoint, device=args.device)
    if args.split != "test":
        raise UserError(f"--split {args.split}: HDMAP is scored on the test split only")
    options = replace(detector.args, data_path=args.data_path or detector.args.data_path)
    data = open_domains(options)
    parts = [(domain, score_domain(detector.model, domain, options, detector.device)) for _, domain in domains_of(data)]
    threshold = detector.threshold or 0.0
    normal = next(p.score[d.labels == 0] for d, p in parts)
    results = {d.domain: domain_metrics(p.score, d.labels, threshold, normal) for d, p in parts}
    maps = [p.map for _, p in parts if p.map is not None]
    images = torch.cat([d.images for d, _ in parts])
    return Evaluation(
        system=SYSTEM,
        name=f"{options.model} from {options.source_domain}",
        metrics=transfer_metrics(results, data.source_domain, data.target_domains),
        scores=torch.cat([p.score for _, p in parts]).numpy(),
        labels=torch.cat([d.labels for d, _ in parts]).numpy(),
        paths=[path for d, _ in parts for path in d.paths],
        groups=[d.domain for d, _ in parts for _ in d.paths],
        maps=torch.cat(maps).numpy() if maps else None,
        image=lambda i: (images[i].expand(3, -1, -1).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy(),
        threshold=detector.threshold,
        notes=weight_remarks(weights_of(detector.model)),
        facts={"model": options.model, "seed": options.seed, "source_domain": options.source_domain},
    )


__all__ = ["Args", "build", "evaluate", "load_detector", "predict", "tiny", "train"]
