"""Scores of a domain, and the numbers that say how a detector carries over from one domain to another."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.metrics import f1_max_threshold, image_metrics, threshold_metrics, youden
from anomaly_lib.systems.detectors.build import score_batches
from anomaly_lib.systems.detectors.hdmap.options import Args
from anomaly_lib.systems.detectors.hdmap.reader import DomainSplit, MultiDomainHDMAPDataModule
from anomaly_lib.systems.detectors.options import TRAINED
from anomaly_lib.systems.detectors.train import input_channels
from anomaly_lib.types import Prediction

NORMAL_QUANTILES = (0.995, 0.999)


def domains_of(data: MultiDomainHDMAPDataModule) -> list[tuple[str, DomainSplit]]:
    return [("source", data.source_data), *(("target", target) for target in data.test_data)]


def with_channels(images: Tensor, args: Any) -> Tensor:
    """Grey maps as the detector wants them; repeating the channel costs no memory until it is used."""
    return images if input_channels(args) == 1 else images.expand(-1, 3, -1, -1)


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


def transfer_line(summary: dict[str, float], args: Args, notes: Sequence[str] = ()) -> str:
    note = "".join(f" [{text}]" for text in notes)
    leak = " [source score: epoch selected on the same maps]" if args.validation_strategy == "source_test" else ""
    return (
        f"source AUROC {summary['source_auroc']:.4f}{leak if args.model in TRAINED else ''}, "
        f"mean target AUROC {summary['avg_target_auroc']:.4f}, transfer ratio {summary['transfer_ratio']:.3f}{note}"
    )
