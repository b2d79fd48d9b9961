"""PatchCore's two costs against anomalib's: choosing the coreset and finding nearest neighbours.

anomalib's greedy loop costs the same for every pick, so it is timed over its first --peer-picks;
the same loop with a plain sum of squares stands beside it, as torch.linalg.norm is slow along short rows on some CPUs.
Times are seconds on a core (one thread), which also hold on a busy machine; seconds of the wall stand in the JSON.
    python benchmarks/bench_memory_bank.py [--rows 40000] [--peer-picks 400] [--output memory_bank.json]
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from harness import BenchmarkArgs, finish, in_turn, machine, measure

from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.models.detectors.memory_bank import MemoryBank
from anomaly_lib.ops import greedy_coreset, nearest_neighbours
from anomaly_lib.ops.half_search import half_products_are_fast


@dataclass
class Args(BenchmarkArgs):
    """The memory bank."""

    rows: int = arg(40_000, "patches", at_least=1)
    peer_picks: int = arg(400, "picks of anomalib's coreset that are measured", at_least=1)


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


def plain_coreset(points: torch.Tensor, picks: int) -> torch.Tensor:
    """The same loop with a sum of squares for the distance."""
    distance = (points - points[0]).square_().sum(1)
    chosen = [0]
    distance[0] = -torch.inf
    while len(chosen) < picks:
        chosen.append(int(distance.argmax()))
        torch.minimum(distance, (points - points[chosen[-1]]).square_().sum(1), out=distance)
        distance[chosen[-1]] = -torch.inf
    return torch.tensor(chosen)


def peer_search(bank: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """anomalib's own `nearest_neighbors` on this bank."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    class Holder:
        memory_bank = bank
        euclidean_dist = staticmethod(PatchcoreModel.euclidean_dist)

    return lambda queries: PatchcoreModel.nearest_neighbors(Holder(), queries, 1)[0].flatten()


def bench_coreset(rows: int, dim: int, ratio: float, peer_picks: int, repeats: int) -> dict[str, Any]:
    points = clustered(rows, dim)
    picks = int(rows * ratio)
    found = in_turn({"here": lambda: greedy_coreset(points, picks)}, repeats=repeats)
    found |= in_turn({"plain loop": lambda: plain_coreset(points, peer_picks)}, repeats=1)
    found |= in_turn({"anomalib": lambda: peer_coreset(points, peer_picks)}, repeats=1)
    ours = found["here"].value
    speed = {name: (picks if name == "here" else peer_picks) / one.core_seconds for name, one in found.items()}
    return {
        "rows": rows, "dim": dim, "picks": picks, "peer_picks": peer_picks,
        "core_seconds": {name: one.core_seconds for name, one in found.items()},
        "wall_seconds": {name: one.seconds for name, one in found.items()},
        "picks_per_core_second": speed,
        "ratio": speed["here"] / speed["anomalib"], "ratio_to_plain_loop": speed["here"] / speed["plain loop"],
        "first_picks_equal_anomalib": torch.equal(ours[:peer_picks], found["anomalib"].value),
        "first_picks_equal_plain_loop": torch.equal(ours[:peer_picks], found["plain loop"].value),
    }  # fmt: skip


def bench_search(rows: int, dim: int, queries: int, repeats: int) -> dict[str, Any]:
    bank = clustered(rows, dim)
    asked = clustered(rows + queries, dim)[rows:] + 0.05
    memory, peer = MemoryBank(bank), peer_search(bank)
    works: dict[str, Callable[[], Any]] = {
        "here": lambda: memory.search(asked)[0].squeeze(1),
        "here, float32 only": lambda: nearest_neighbours(asked, bank, half_norms=memory.half_norms)[0].squeeze(1),
        "anomalib": lambda: peer(asked),
    }
    in_turn(works, repeats=1)  # warm-up, and the bank's short copy
    found = in_turn(works, repeats=repeats)
    sample = asked[:64].double()
    exact = torch.cdist(sample, bank.double(), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    error = {name: float(((one.value[:64] - exact).abs() / exact).max()) for name, one in found.items()}
    return {
        "bank": rows, "dim": dim, "queries": queries, "bfloat16_units": half_products_are_fast(),
        "core_seconds": {name: one.core_seconds for name, one in found.items()},
        "wall_seconds": {name: one.seconds for name, one in found.items()},
        "ratio": found["anomalib"].core_seconds / found["here"].core_seconds,
        "ratio_float32_only": found["anomalib"].core_seconds / found["here, float32 only"].core_seconds,
        "largest_relative_error": error,
        "largest_relative_difference": relative(found["here"].value, found["anomalib"].value),
    }  # fmt: skip


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(((ours - theirs).abs() / theirs).max())


def bench_reweighting(rows: int, dim: int, repeats: int) -> dict[str, Any]:
    """Nine neighbours of the nearest row of 32 images: always a search there, here a table look-up from then on."""
    bank = MemoryBank(clustered(rows, dim))
    index = torch.arange(0, rows, rows // 32)[:32]
    bank.neighbours_of(index, 9)
    ours = measure(lambda: bank.neighbours_of(index, 9), repeats=repeats)
    search = measure(lambda: nearest_neighbours(bank.rows[index], bank.rows, 9), repeats=repeats)
    return {"seconds": ours.seconds, "search_seconds": search.seconds, "ratio": search.seconds / ours.seconds}


def bench(args: Args) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    report = {
        "machine": machine("anomalib"),
        "coreset": bench_coreset(args.rows, 128, 0.1, args.peer_picks, args.repeats),
        "search": bench_search(args.rows, 1024, 784, args.repeats),
        "reweighting": bench_reweighting(args.rows, 1024, args.repeats),
    }
    coreset, search = report["coreset"], report["search"]
    print(
        "coreset:", ", ".join(f"{n} {v:.0f} picks a core second" for n, v in coreset["picks_per_core_second"].items())
    )
    print(f"  {coreset['ratio']:.0f}x anomalib, {coreset['ratio_to_plain_loop']:.1f}x the plain loop, same picks: "
          f"{coreset['first_picks_equal_anomalib']}, {coreset['first_picks_equal_plain_loop']}")  # fmt: skip
    print("search:", ", ".join(f"{n} {v:.3f} core s" for n, v in search["core_seconds"].items()))
    print(f"  {search['ratio']:.1f}x anomalib ({search['ratio_float32_only']:.1f}x in float32 only), "
          f"largest relative difference {search['largest_relative_difference']:.1e}")  # fmt: skip
    print(f"re-weighting: {report['reweighting']['ratio']:.0f}x by the table")
    finish(report, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_memory_bank.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
