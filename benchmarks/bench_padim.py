"""PaDiM's fit and maps against anomalib's Gaussian, on equal embeddings.

Seconds are those of one core (one thread).
python benchmarks/bench_padim.py [--images 100] [--features 100] [--output padim.json]
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from harness import BenchmarkArgs, finish, in_turn, machine

from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.models.detectors.padim import RIDGE, Moments
from anomaly_lib.ops import mahalanobis, whitening_matrix


@dataclass
class Args(BenchmarkArgs):
    """PaDiM."""

    images: int = arg(100, "images", at_least=2)
    features: int = arg(100, "channels that are kept", at_least=1)


SIDE = 56  # resnet18, 224 pixels: 3136 positions
BATCH = 25


def fit_here(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    moments = Moments()
    for batch in embeddings.split(BATCH):
        moments.add(batch.flatten(2).transpose(1, 2))
    mean, covariance = moments.finish()
    covariance.diagonal(dim1=1, dim2=2).add_(RIDGE)
    return mean, whitening_matrix(covariance)


def fit_there(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from anomalib.models.components.stats import MultiVariateGaussian

    mean, inverse = MultiVariateGaussian().fit(torch.cat(embeddings.split(BATCH)))
    return mean, inverse


def maps_there(rows: torch.Tensor, fitted: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    from anomalib.models.image.padim.anomaly_map import AnomalyMapGenerator

    found: torch.Tensor = AnomalyMapGenerator.compute_distance(rows, list(fitted))
    return found


def run(images: int, features: int, repeats: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(images, features, 1, 1, generator=generator)
    embeddings = (shared + torch.randn(images, features, SIDE, SIDE, generator=generator)).relu()
    ours = in_turn({"fit": lambda: fit_here(embeddings)}, repeats=repeats)["fit"]
    theirs = in_turn({"fit": lambda: fit_there(embeddings)}, repeats=1)["fit"]
    test = embeddings[:8] + 0.3
    rows = test.flatten(2).transpose(1, 2)
    works = {"here": lambda: mahalanobis(rows, *ours.value), "there": lambda: maps_there(test, theirs.value)}
    in_turn(works, repeats=1)
    our_maps, their_maps = in_turn(works, repeats=max(repeats, 5)).values()
    peer = their_maps.value.flatten(1)
    return {
        "images": images, "features": features, "positions": SIDE**2,
        "fit_core_seconds": ours.core_seconds, "anomalib_fit_core_seconds": theirs.core_seconds,
        "fit_ratio": theirs.core_seconds / ours.core_seconds,
        "fit_peak_mib": ours.peak_mib, "anomalib_fit_peak_mib": theirs.peak_mib,
        "map_core_seconds": our_maps.core_seconds, "anomalib_map_core_seconds": their_maps.core_seconds,
        "map_ratio": their_maps.core_seconds / our_maps.core_seconds,
        "largest_map_difference": float((our_maps.value - peer).abs().max() / peer.max()),
    }  # fmt: skip


def bench(args: Args) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    found = run(args.images, args.features, args.repeats)
    print(
        f"fit: {found['fit_core_seconds']:.2f} core s, anomalib {found['anomalib_fit_core_seconds']:.2f} core s, "
        f"{found['fit_ratio']:.1f}x"
    )
    print(f"maps of 8 images: {found['map_ratio']:.1f}x, largest difference {found['largest_map_difference']:.1e}")
    finish({"machine": machine("anomalib"), "padim": found}, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_padim.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
