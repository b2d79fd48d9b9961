"""Multi-domain HDMAP: fit a detector on one gearbox domain, measure what is left of it on the others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.data.hdmap.reader import DomainSplit, MultiDomainHDMAPDataModule
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import TrainState
from anomaly_lib.engine.distributed import process_group
from anomaly_lib.engine.run import Run
from anomaly_lib.errors import UserError
from anomaly_lib.files import write_json, write_text
from anomaly_lib.metrics import auroc, f1_max_threshold, image_metrics, threshold_metrics, youden
from anomaly_lib.recipes.detectors import recipe as detectors
from anomaly_lib.recipes.detectors.build import build, score_batches
from anomaly_lib.recipes.detectors.options import TRAINED, resolve
from anomaly_lib.recipes.detectors.recipe import BEST, Detector, fit, input_channels, predict
from anomaly_lib.recipes.evaluation.contract import EvaluateArgs, Evaluation
from anomaly_lib.recipes.hdmap.options import Args
from anomaly_lib.types import Prediction, RunResult

SYSTEM = "hdmap"
NORMAL_QUANTILES = (0.995, 0.999)


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
        run.log.line(transfer_line(summary, args))
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


def domains_of(data: MultiDomainHDMAPDataModule) -> list[tuple[str, DomainSplit]]:
    return [("source", data.source_data), *(("target", target) for target in data.test_data)]


def with_channels(images: Tensor, args: Any) -> Tensor:
    """Grey maps as the detector wants them; repeating the channel costs no memory until it is used."""
    return images if input_channels(args) == 1 else images.expand(-1, 3, -1, -1)


# -- scores ---------------------------------------------------------------------------------------------------------


def score_domain(detector: nn.Module, data: DomainSplit, args: Any, device: torch.device) -> Prediction:
    """One pass over a preloaded domain."""
    batches = (with_channels(images, args) for images, _ in data.batches(args.batch_size))
    return score_batches(detector, batches, device)


def source_threshold(
    detector: nn.Module, validation: DomainSplit, args: Any, device: torch.device
) -> tuple[float, Tensor]:
    """The score that maximises F1 on the source's validation maps (lowest on ties), and its normal scores."""
    score = score_domain(detector, validation, args, device).score
    return f1_max_threshold(score, validation.labels), score[validation.labels == 0]


def domain_metrics(score: Tensor, labels: Tensor, threshold: float, normal: Tensor) -> dict[str, Any]:
    """What needs no threshold, what the source's threshold gives, and, apart, what the best one would have given."""
    best = image_metrics(score, labels)
    at_source = threshold_metrics(score, labels, threshold)
    j, at = youden(score, labels)
    limits = {f"normal_{q:g}": float(torch.quantile(normal, q)) for q in NORMAL_QUANTILES}
    return {
        "image_AUROC": best["auroc"],
        "image_AP": best["ap"],
        "image_F1Score": at_source["f1"],
        "source_threshold": {"threshold": threshold, **at_source},
        "percentile_thresholds": {
            name: {"threshold": limit, **threshold_metrics(score, labels, limit)} for name, limit in limits.items()
        },
        "oracle": {
            "f1_max": best["f1_max"], "f1_max_threshold": best["f1_max_threshold"],
            "youden_j": j, "youden_threshold": at,
        },
        "num_samples": len(labels),
    }  # fmt: skip


def transfer_metrics(results: dict[str, dict[str, Any]], source: str, targets: list[str]) -> dict[str, float]:
    """Source and mean target AUROC and their ratio (0 when the source is 0)."""
    own = results[source]["image_AUROC"]
    found = [results[name]["image_AUROC"] for name in targets]
    mean = sum(found) / len(found)
    per_domain = {f"{name}_auroc": results[name]["image_AUROC"] for name in (source, *targets)}
    summary = {"source_auroc": own, "avg_target_auroc": mean, "transfer_ratio": mean / own if own else 0.0}
    return summary | per_domain | {"source_f1": results[source]["image_F1Score"]}


def transfer_line(summary: dict[str, float], args: Args) -> str:
    note = " [random weights]" if args.weights == "random" and not args.model.startswith("draem") else ""
    leak = " [source score: epoch selected on the same maps]" if args.validation_strategy == "source_test" else ""
    return (
        f"source AUROC {summary['source_auroc']:.4f}{leak if args.model in TRAINED else ''}, "
        f"mean target AUROC {summary['avg_target_auroc']:.4f}, transfer ratio {summary['transfer_ratio']:.3f}{note}"
    )


# -- files ----------------------------------------------------------------------------------------------------------


def write_domain(
    folder: Path, role: str, data: DomainSplit, prediction: Prediction, threshold: float, args: Args
) -> None:
    """``analysis/{role}_{domain}/test_results.csv`` and figures, sample maps under ``visualize/``."""
    analysis = folder / "analysis" / f"{role}_{data.domain}"
    analysis.mkdir(parents=True, exist_ok=True)
    rows = ["image_path,ground_truth,anomaly_score,predicted_label"]
    scores = prediction.score.tolist()
    rows += [
        f"{p},{y},{s:.9g},{int(s >= threshold)}"
        for p, y, s in zip(data.paths, data.labels.tolist(), scores, strict=True)
    ]
    write_text(analysis / "test_results.csv", "\n".join(rows) + "\n")
    if not args.figures:
        return
    from anomaly_lib.viz import roc_and_pr, save_figure, score_histogram

    title = f"{args.model}, {role} {data.domain}"
    save_figure(roc_and_pr(prediction.score, data.labels, title=title), analysis / "roc_curve.png")
    histogram = score_histogram(
        prediction.score, data.labels, threshold=threshold, title=title, threshold_name="source threshold"
    )
    save_figure(histogram, analysis / "score_distributions.png")
    place = folder / "visualize"
    place = place / "source_domain" if role == "source" else place / "target_domains" / data.domain
    _sample_maps(place, data, prediction, args.sample_images)


def _sample_maps(place: Path, data: DomainSplit, prediction: Prediction, count: int) -> None:
    """Evenly spaced maps of each class beside their heat maps, one colour scale a domain."""
    from anomaly_lib.viz import heat_colours, map_range, overlay, save_image

    assert prediction.map is not None
    grey, heat = map_range(data.images), map_range(prediction.map)
    for label, name in ((0, "good"), (1, "fault")):
        members = (data.labels == label).nonzero().squeeze(1)
        (place / name).mkdir(parents=True, exist_ok=True)
        for i in members[:: max(1, len(members) // max(count, 1))][:count].tolist():
            picture = heat_colours(data.images[i, 0], grey)
            panel = torch.cat([torch.as_tensor(picture), torch.as_tensor(overlay(picture, prediction.map[i], heat))])
            save_image(place / name / f"{Path(data.paths[i]).stem}.png", panel.numpy())


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
        notes=["random weights"]
        if options.weights == "random" and options.model not in ("draem", "draem_sevnet")
        else [],
        facts={"model": options.model, "seed": options.seed, "source_domain": options.source_domain},
    )


__all__ = ["Args", "build", "evaluate", "load_detector", "predict", "tiny", "train"]
