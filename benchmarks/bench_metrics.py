"""Pixel AUROC + AP + F1-max + AUPRO of N maps of 512x512: here, in anomalib, in torchmetrics, in the classic
200-threshold loop.

Peers are timed in the same run, each on the same tensors; exactness is against scikit-learn and a float64 sort.
    python benchmarks/bench_metrics.py [--maps 40 100] [--output metrics.json]
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from harness import BenchmarkArgs, Measure, finish, machine, measure
from scipy.integrate import trapezoid

from anomaly_lib import metrics
from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.metrics import label_regions


@dataclass
class Args(BenchmarkArgs):
    """Image and pixel metrics."""

    maps: list[int] = arg([40, 100], "numbers of maps", at_least=2)


SIDE = 512


def make_maps(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth maps with fine noise; three of four images carry one to three elliptic defects (about 3 % of the
    pixels).
    """
    generator = np.random.default_rng(0)
    maps, masks = np.empty((count, SIDE, SIDE), np.float32), np.zeros((count, SIDE, SIDE), np.uint8)
    for plane, mask in zip(maps, masks, strict=True):
        coarse = generator.normal(size=(24, 24)).astype(np.float32)
        plane[:] = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        plane += 0.05 * generator.standard_normal((SIDE, SIDE), dtype=np.float32)
        for _ in range(generator.integers(0, 4)):
            centre, axes = generator.integers(60, SIDE - 60, 2).tolist(), generator.integers(15, 70, 2).tolist()
            cv2.ellipse(mask, centre, axes, float(generator.integers(0, 180)), 0, 360, 1, -1)
        plane += cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 6) * 1.5
    return maps, masks


def anomalib_metric(name: str, maps: torch.Tensor, masks: torch.Tensor) -> float:
    from anomalib.metrics import aupr, aupro, auroc, f1_score

    kind = {"auroc": auroc._AUROC, "ap": aupr._AUPR, "f1_max": f1_score._F1Max, "aupro": aupro._AUPRO}[name]
    metric = kind()
    metric.update(maps, masks)
    return float(metric.compute())


def torchmetrics_metric(name: str, maps: torch.Tensor, masks: torch.Tensor) -> float:
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    work = {"auroc": binary_auroc, "ap": binary_average_precision}[name]
    return float(work(torch.sigmoid(maps), masks))  # in [0, 1] already: it would apply its own sigmoid otherwise


def threshold_loop(maps: np.ndarray, masks: np.ndarray) -> float:
    """The routine most repositories carry: 200 thresholds, scikit-image regions at each image, FPR below 0.3,
    rescaled.
    """
    from skimage import measure as skimage_measure

    low, high = maps.min(), maps.max()
    regions = [[r.coords for r in skimage_measure.regionprops(skimage_measure.label(mask))] for mask in masks]
    normal, points = masks == 0, []
    for threshold in np.arange(low, high, (high - low) / 200):
        flagged = maps > threshold
        overlap = [flagged[i][c[:, 0], c[:, 1]].mean() for i, image in enumerate(regions) for c in image]
        points.append((np.logical_and(normal, flagged).sum() / normal.sum(), np.mean(overlap)))
    fpr, pro = np.array([p for p in points if p[0] < 0.3]).T
    fpr = (fpr - fpr.min()) / (fpr.max() - fpr.min())
    return float(-trapezoid(pro, fpr))


def exact_values(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """scikit-learn, and one float64 sort of every pixel for the two it lacks."""
    from sklearn import metrics as sk

    flat, marked = maps.ravel(), masks.ravel() > 0
    labels = [label_regions(mask > 0)[0] for mask in masks]
    weights = np.concatenate([(1 / np.bincount(one.ravel()))[one.ravel()] for one in labels]) * marked
    order = np.argsort(-flat, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(flat[order])), flat.size - 1)
    hits, found = np.cumsum(marked[order])[ends], np.cumsum(weights[order])[ends]
    fpr = np.append(0, (ends + 1 - hits) / (~marked).sum())
    pro = np.append(0, found / weights.sum())
    inside = fpr < 0.3
    fpr, pro = np.append(fpr[inside], 0.3), np.append(pro[inside], np.interp(0.3, fpr, pro))
    return {
        "auroc": sk.roc_auc_score(marked, flat),
        "ap": sk.average_precision_score(marked, flat),
        "f1_max": float((2 * hits / (ends + 1 + marked.sum())).max()),
        "aupro": float(trapezoid(pro, fpr) / 0.3),
    }


def available(peer: Callable[..., float], maps: torch.Tensor, masks: torch.Tensor) -> bool:
    """Import it and compile what it compiles, on one small stack, outside the timed part."""
    try:
        peer("auroc", maps[:2, :64, :64], masks[:2, :64, :64])
    except ImportError as error:
        print(f"peer left out: {error}")
        return False
    return True


def compare(count: int, repeats: int) -> dict[str, Any]:
    maps, masks = make_maps(count)
    tensor, target = torch.from_numpy(maps), torch.from_numpy(masks).int()
    alone = {
        "auroc": metrics.pixel_auroc,
        "ap": metrics.pixel_average_precision,
        "f1_max": metrics.pixel_f1_max,
        "aupro": metrics.aupro,
    }
    ours: dict[str, Measure] = {"all": measure(lambda: metrics.pixel_metrics(maps, masks), repeats=repeats)}
    ours |= {name: measure(lambda one=one: one(maps, masks), repeats=repeats) for name, one in alone.items()}

    def streamed() -> dict[str, float]:
        histogram = metrics.PixelHistogram()
        histogram.update(maps, masks)
        return histogram.metrics()

    ours["all, streaming histogram"] = measure(streamed, repeats=1)
    peers: dict[str, Measure] = {}
    if available(torchmetrics_metric, tensor, target):
        peers |= {
            f"torchmetrics {name}": measure(
                lambda name=name: torchmetrics_metric(name, tensor, target), repeats=1, warmup=0
            )
            for name in ("auroc", "ap")
        }
    if available(anomalib_metric, tensor, target):
        peers |= {
            f"anomalib {name}": measure(lambda name=name: anomalib_metric(name, tensor, target), repeats=1, warmup=0)
            for name in ("auroc", "ap", "f1_max", "aupro")
        }
    peers["200-threshold loop aupro"] = measure(lambda: threshold_loop(maps, masks), repeats=1, warmup=0)
    exact = exact_values(maps, masks)
    error = {name: abs(ours["all"].value[name] - value) for name, value in exact.items()}
    show(count, ours, peers, exact, error)
    fastest = {name: min((p.seconds for key, p in peers.items() if key.endswith(name)), default=None) for name in alone}
    cost = [seconds for seconds in fastest.values() if seconds is not None]
    library = [p for key, p in peers.items() if "loop" not in key]  # the loop keeps little in memory, and is not exact
    summary = {
        "times faster, all four in one pass against the sum of the fastest peer of each": sum(cost)
        / ours["all"].seconds,
        **{f"times faster, {n} alone": s / ours[n].seconds for n, s in fastest.items() if s is not None},
        "peak memory against the lightest library peer": ours["all"].peak_mib
        / min((p.peak_mib for p in library), default=1),
        "largest error": max(error.values()),
    }
    for text, value in summary.items():
        print(f"  {text}: {value:.3g}")
    rows = {f"ours {name}": row for name, row in ours.items()} | peers
    return {
        "maps": count,
        "rows": {name: row._asdict() for name, row in rows.items()},
        "exact": exact,
        "summary": summary,
    }


def show(count: int, ours: dict[str, Measure], peers: dict[str, Measure], exact: Any, error: Any) -> None:
    print(f"{count} maps of {SIDE}x{SIDE}")
    for name, row in [*((f"ours {n}", r) for n, r in ours.items()), *peers.items()]:
        value = f"{row.value:.7f}" if isinstance(row.value, float) else ""
        print(f"  {name:30s} {row.seconds * 1000:10.1f} ms {row.peak_mib:9.0f} MiB  {value}")
    for name, value in exact.items():
        print(f"  exact {name:24s} {value:.9f}   ours off by {error[name]:.1e}")


def compare_aupimo(count: int = 12) -> dict[str, Any]:
    """AUPIMO of a few maps; anomalib takes about a second a map."""
    maps, masks = make_maps(count)
    bounds = (1e-4, 1e-2)
    ours = measure(lambda: metrics.aupimo(maps, masks, fpr_bounds=bounds), repeats=1)
    try:
        from anomalib.metrics.pimo.functional import aupimo_scores
    except ImportError as error:
        print(f"peer left out: {error}")
        return {"ours": ours.seconds}
    tensors = torch.from_numpy(maps), torch.from_numpy(masks).bool()
    peer = measure(lambda: aupimo_scores(*tensors, fpr_bounds=bounds)[-2].numpy(), repeats=1, warmup=0)
    error = float(np.nanmax(np.abs(ours.value - peer.value)))
    ratio = peer.seconds / ours.seconds
    print(f"AUPIMO of {count} maps: {ours.seconds:.2f} s, anomalib {peer.seconds:.2f} s")
    print(f"  times faster: {ratio:.3g}, largest difference {error:.1e}")
    return {
        "maps": count,
        "ours": ours.seconds,
        "anomalib": peer.seconds,
        "times faster": ratio,
        "largest difference": error,
    }


def bench(args: Args) -> None:
    """Measure, print, write."""
    runs = [compare(count, args.repeats) for count in args.maps]
    report = {"machine": machine("scikit-learn", "torchmetrics", "anomalib"), "runs": runs, "aupimo": compare_aupimo()}
    finish(report, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_metrics.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
