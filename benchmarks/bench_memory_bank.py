"""PatchCore's two costs against anomalib's: choosing the coreset and finding nearest neighbours.

anomalib's greedy loop costs the same for every pick, so it is timed over its first picks and its speed is compared.
    python benchmarks/bench_memory_bank.py [--rows 40000] [--threads 2] [--output memory_bank.json]
"""

import time
from typing import Any

import torch
from harness import finish, machine, measure, parser

from anomaly_lib.models.detectors.memory_bank import MemoryBank
from anomaly_lib.ops import greedy_coreset, nearest_neighbours

PEER_PICKS = 200


def clustered(rows: int, dim: int) -> torch.Tensor:
    """Like patch features: clusters of different spread on few directions, and a little noise everywhere."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(200, dim, generator=generator)
    low_rank = torch.randn(rows, 24, generator=generator) @ torch.randn(24, dim, generator=generator) / 5
    noise = 0.1 * torch.randn(rows, dim, generator=generator)
    return centres[torch.randint(200, (rows,), generator=generator)] + low_rank + noise


def peer_coreset(points: torch.Tensor, picks: int) -> torch.Tensor:
    """anomalib's KCenterGreedy on points that are projected already, from row 0."""
    from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy

    sampler = KCenterGreedy(points, sampling_ratio=1.0)
    sampler.features = points
    sampler.reset_distances()
    index = torch.tensor(0)
    chosen = [index]
    for _ in range(picks - 1):
        sampler.update_distances(index)
        index = sampler.get_new_idx()
        sampler.min_distances.scatter_(0, index.reshape(1, 1), 0.0)
        chosen.append(index)
    return torch.stack(chosen)


def peer_search(queries: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    return PatchcoreModel.euclidean_dist(queries, bank).min(1).values


def bench_coreset(rows: int, dim: int, ratio: float) -> dict[str, Any]:
    points = clustered(rows, dim)
    picks = int(rows * ratio)
    start = time.perf_counter()
    ours = greedy_coreset(points, picks)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    theirs = peer_coreset(points, PEER_PICKS)
    peer_seconds = time.perf_counter() - start
    small = points[:4000]
    same = set(greedy_coreset(small, 400).tolist()) == set(peer_coreset(small, 400).tolist())
    speed, peer_speed = picks / seconds, PEER_PICKS / peer_seconds
    return {
        "rows": rows, "dim": dim, "picks": picks, "seconds": seconds, "picks_per_second": speed,
        "anomalib_picks_per_second": peer_speed, "ratio": speed / peer_speed,
        "first_picks_equal": torch.equal(ours[:PEER_PICKS], theirs), "same_set_4000_to_400": same,
    }  # fmt: skip


def bench_search(rows: int, dim: int, queries: int, repeats: int) -> dict[str, Any]:
    bank = clustered(rows, dim)
    asked = clustered(rows + queries, dim)[rows:] + 0.05
    memory = MemoryBank(bank)
    ours = measure(lambda: memory.search(asked)[0].squeeze(1), repeats=repeats)
    theirs = measure(lambda: peer_search(asked, bank), repeats=repeats)
    sample = asked[:64].double()
    exact = torch.cdist(sample, bank.double(), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    error = ((ours.value[:64] - exact).abs() / exact).max()
    peer_error = ((theirs.value[:64] - exact).abs() / exact).max()
    return {
        "bank": rows, "dim": dim, "queries": queries, "seconds": ours.seconds, "anomalib_seconds": theirs.seconds,
        "ratio": theirs.seconds / ours.seconds, "peak_mib": ours.peak_mib, "anomalib_peak_mib": theirs.peak_mib,
        "relative_error": float(error), "anomalib_relative_error": float(peer_error),
    }  # fmt: skip


def bench_reweighting(rows: int, dim: int, repeats: int) -> dict[str, Any]:
    """Nine neighbours of the nearest row of 32 images: always a search there, here a table look-up from then on."""
    bank = MemoryBank(clustered(rows, dim))
    index = torch.arange(0, rows, rows // 32)[:32]
    bank.neighbours_of(index, 9)
    ours = measure(lambda: bank.neighbours_of(index, 9), repeats=repeats)
    search = measure(lambda: nearest_neighbours(bank.rows[index], bank.rows, 9), repeats=repeats)
    return {"seconds": ours.seconds, "search_seconds": search.seconds, "ratio": search.seconds / ours.seconds}


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--rows", type=int, default=40_000)
    flags.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    report = {
        "machine": machine("anomalib"),
        "coreset": bench_coreset(args.rows, 128, 0.1),
        "search": bench_search(args.rows, 1024, 784, args.repeats),
        "reweighting": bench_reweighting(args.rows, 1024, args.repeats),
    }
    coreset, search = report["coreset"], report["search"]
    print(f"coreset: {coreset['picks_per_second']:.0f} picks/s, anomalib {coreset['anomalib_picks_per_second']:.0f}, "
          f"{coreset['ratio']:.1f}x, same order: {coreset['first_picks_equal']}")  # fmt: skip
    errors = f"{search['relative_error']:.1e} (anomalib {search['anomalib_relative_error']:.1e})"
    print(
        f"search: {search['seconds']:.3f} s, anomalib {search['anomalib_seconds']:.3f} s, {search['ratio']:.1f}x, "
        f"relative error {errors}"
    )
    print(f"re-weighting: {report['reweighting']['ratio']:.0f}x by the table")
    finish(report, args.output)


if __name__ == "__main__":
    main()
