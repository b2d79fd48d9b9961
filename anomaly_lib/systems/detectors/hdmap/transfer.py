"""Scores of a domain, and the numbers that say how a detector carries over from one domain to another."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_lib.detect.calibration import decision_from
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Scores
from anomaly_lib.errors import UserError
from anomaly_lib.features import array_key
from anomaly_lib.metrics import f1_max_threshold, image_metrics, threshold_metrics, youden
from anomaly_lib.models.detectors.registry import entry_of
from anomaly_lib.systems.detectors.data import input_channels, tiles_of, with_channels
from anomaly_lib.systems.detectors.hdmap.reader import DomainSplit, MultiDomainHDMAPDataModule
from anomaly_lib.systems.detectors.inputs import Images, Inputs, score_all
from anomaly_lib.types import Prediction

NORMAL_QUANTILES = (0.995, 0.999)


def domains_of(data: MultiDomainHDMAPDataModule) -> list[DomainSplit]:
    """The maps that are reported: the source's, then each target's."""
    return [data.source_data, *data.test_data]


def score_domain(
    module: nn.Module, data: DomainSplit, args: Any, device: torch.device, batch_size: int | None = None
) -> Prediction:
    """One pass over a preloaded domain, in the batches of the options or in others."""
    inputs = Inputs(module, images_of_maps(data.images, args), args, device, learnt=False)
    return score_all(inputs, "test", args.batch_size if batch_size is None else batch_size)


def images_of_maps(maps: Tensor, args: Any) -> Images:
    """Maps [N, 1, H, W] that lie in memory, as a detector's images."""
    channels = input_channels(args)
    return Images(
        read=lambda index: with_channels(maps[torch.as_tensor(index)], channels),
        keys=[array_key(one.numpy()) for one in maps],
        seen_as="hdmap",
        tiles=tiles_of(args),
    )


def source_decision(module: nn.Module, data: MultiDomainHDMAPDataModule, args: Any, device: torch.device) -> Decision:
    """What the good validation maps of the source promise; with ``protocol=paper`` the score of the best F1 there."""
    maps = data.val_data
    found, good = score_domain(module, maps, args, device), maps.labels == 0
    also = ", which are reported too" if args.validation_strategy == "source_test" else ""
    if args.protocol == "clean":
        if not good.any():
            raise UserError(f"{maps.domain}: a decision needs good test maps, and there are none")
        known = Prediction(found.score[good], None if found.map is None else found.map[good])
        return decision_from(known, args.false_alarms, of=f"good test maps of the source {maps.domain}{also}")
    source = f"best F1 on {len(maps)} test maps of the source {maps.domain}{also}"
    decision = Decision.of(f1_max_threshold(found.score, maps.labels), source, found.score[good])
    if decision is None:
        raise UserError(f"{maps.domain}: a threshold needs both good and faulty test maps")
    return decision


def domain_metrics(score: Tensor, labels: Tensor, decision: Decision) -> dict[str, Any]:
    """What needs no threshold, what the source's threshold gives, and, apart, what the best one would have given."""
    best = image_metrics(score, labels)
    at_source = threshold_metrics(score, labels, decision.threshold)
    j, at = youden(score, labels)
    normal = torch.tensor(decision.normal)
    limits = {f"normal_{q:g}": float(torch.quantile(normal, q)) for q in NORMAL_QUANTILES}
    return {
        "image_AUROC": best["auroc"],
        "image_AP": best["ap"],
        "image_F1Score": at_source["f1"],
        "source_threshold": {"threshold": decision.threshold, **at_source},
        "percentile_thresholds": {
            name: {"threshold": limit, **threshold_metrics(score, labels, limit)} for name, limit in limits.items()
        },
        "oracle": {
            "f1_max": best["f1_max"],
            "f1_max_threshold": best["f1_max_threshold"],
            "youden_j": j,
            "youden_threshold": at,
        },
        "num_samples": len(labels),
    }


def rows_of(scores: Scores, domain: str) -> np.ndarray:
    """[N] bool: which samples are of this domain."""
    return np.array([group == domain for group in scores.groups])


def domain_results(scores: Scores, decision: Decision) -> dict[str, dict[str, Any]]:
    """`domain_metrics` of every scored domain."""
    found, labels = torch.as_tensor(scores.scores), torch.as_tensor(scores.labels)
    picked = {name: torch.from_numpy(rows_of(scores, name)) for name in dict.fromkeys(scores.groups)}
    return {name: domain_metrics(found[rows], labels[rows], decision) for name, rows in picked.items()}


def transfer_figures(results: Mapping[str, Mapping[str, Any]], source: str) -> dict[str, float]:
    """AUROC of each domain; with the source and targets also their mean and the ratio (0 when the source's is 0)."""
    found = {name: result["image_AUROC"] for name, result in results.items()}
    per_domain = {f"{name}_auroc": value for name, value in found.items()}
    targets = [value for name, value in found.items() if name != source]
    if source not in found or not targets:
        return per_domain
    own, mean = found[source], sum(targets) / len(targets)
    figures = {"source_auroc": own, "avg_target_auroc": mean, "transfer_ratio": mean / own if own else 0.0}
    return figures | per_domain | {"source_f1": results[source]["image_F1Score"]}


def leak_remark(args: Any) -> list[str]:
    """What must stand beside the source's score where its labels have chosen the epoch."""
    leaks = entry_of(args.model).trained and args.validation_strategy == "source_test"
    return ["source score: epoch selected on the same maps"] if leaks else []
