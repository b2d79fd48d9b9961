"""One training step of published-size ALIGNN here, against the same network written openly with scatter and with PyG.

Same weights (the state dict is copied), same batch, interleaved in one run; outputs are compared first.
    python benchmarks/bench_alignn.py [--crystals FILE.jsonl.gz] [--batch 16] [--hidden 256] [--output alignn.json]
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from bench_graphs import load
from harness import BenchmarkArgs, Measure, finish, machine, measure
from torch import Tensor, nn

from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.models.crystal import alignn
from anomaly_lib.models.crystal.alignn import ALIGNN, EdgeGatedGraphConv
from anomaly_lib.models.crystal.graph_batch import GraphBatch, batch_graphs
from anomaly_lib.ops import gated_message
from anomaly_lib.systems.crystal.data.graph import GraphBuilder


@dataclass
class Args(BenchmarkArgs):
    """ALIGNN's layers."""

    crystals: Optional[str] = arg(None, "JARVIS JSON lines; None = the built-in demo crystals", type=str)
    batch: int = arg(16, "crystals at a time", at_least=1)
    hidden: int = arg(256, "channels", at_least=8)
    threads: int = arg(2, "CPU threads", at_least=1)


def scatter_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    return torch.zeros(size, values.shape[1]).scatter_add(0, index.unsqueeze(1).expand_as(values), values)


def open_messages(
    send: Tensor, receive: Tensor, value: Tensor, edge: Tensor, source: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """The formula, line by line."""
    message = send[source] + receive[target] + edge
    gate = torch.sigmoid(message)
    total = scatter_sum(gate, target, len(value))
    return message, scatter_sum(gate * value[source], target, len(value)) / (total + gated_message.EPSILON)


def pyg_messages(
    send: Tensor, receive: Tensor, value: Tensor, edge: Tensor, source: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with torch_geometric's aggregation."""
    from torch_geometric.utils import scatter

    message = send.index_select(0, source) + receive.index_select(0, target) + edge
    gate = torch.sigmoid(message)
    total = scatter(gate, target, 0, len(value))
    return message, scatter(gate * value.index_select(0, source), target, 0, len(value)) / (
        total + gated_message.EPSILON
    )


def open_norm(x: Tensor, norm: nn.BatchNorm1d, residual: Tensor | None = None) -> Tensor:
    out = nn.functional.silu(norm(x))
    return out if residual is None else residual + out


class AllEdges(EdgeGatedGraphConv):
    """As published every layer updates its edges, also where nobody reads them."""

    def forward(self, x: Tensor, edges: Tensor, source: Tensor, target: Tensor, **_: bool) -> Any:
        return super().forward(x, edges, source, target, update_edges=True)


def step(model: ALIGNN, batch: GraphBatch, target: Tensor) -> Tensor:
    model.zero_grad(set_to_none=True)
    prediction = model(batch)
    nn.functional.mse_loss(prediction, target).backward()
    return prediction.detach()


def bench(args: Args) -> None:
    """Measure, print, write."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    builder = GraphBuilder()
    batch = batch_graphs([builder(crystal) for crystal in load(args.crystals, args.batch)])
    target = torch.randn(batch.num_crystals)
    model = ALIGNN(hidden_features=args.hidden)
    published = ALIGNN(hidden_features=args.hidden)
    for module in published.modules():
        if type(module) is EdgeGatedGraphConv:
            module.__class__ = AllEdges
    published.load_state_dict(model.state_dict())
    print(f"{batch.num_crystals} crystals, {len(batch.numbers)} atoms, {len(batch.source)} bonds, "
          f"{len(batch.leader)} angles, {sum(p.numel() for p in model.parameters()):,} parameters")  # fmt: skip
    fused = alignn.gated_messages, alignn.batch_norm_silu
    kinds: dict[str, tuple[ALIGNN, tuple[Callable[..., Any], Callable[..., Any]]]] = {
        "here": (model, fused),
        "scatter": (published, (open_messages, open_norm)),
    }
    try:
        import torch_geometric.utils  # noqa: F401

        kinds["pyg"] = (published, (pyg_messages, open_norm))
    except ImportError:
        print("torch_geometric is not installed: left out")

    def run(name: str) -> Tensor:
        net, (messages, norm) = kinds[name]
        alignn.gated_messages, alignn.batch_norm_silu = messages, norm  # type: ignore[assignment]
        try:
            return step(net, batch, target)
        finally:
            alignn.gated_messages, alignn.batch_norm_silu = fused

    rounds: dict[str, list[Measure]] = {name: [] for name in kinds}
    busy: dict[str, list[float]] = {name: [] for name in kinds}  # seconds of all threads on their cores
    for turn in range(args.repeats):  # in turn, so that whatever else the machine does falls on all alike
        for name in kinds:
            if turn == 0:
                run(name)  # warm-up
            started = time.process_time()
            rounds[name].append(measure(lambda name=name: run(name), repeats=1, warmup=0))  # type: ignore[misc]
            busy[name].append(time.process_time() - started)
    first = rounds["here"][0].value
    found: dict[str, Any] = {}
    for name, measured in rounds.items():
        seconds = statistics.median(m.seconds for m in measured)
        peak = statistics.median(m.peak_mib for m in measured)
        difference = float((measured[0].value - first).abs().max())
        core = statistics.median(busy[name])
        found[name] = {
            "seconds": seconds, "core_seconds": core, "peak_mib": peak, "largest_difference": difference,
        }  # fmt: skip
        assert difference < 1e-3 * max(1.0, float(first.abs().max())), f"{name} computes something else"
        times = f"{seconds:7.3f} s a step ({core:.3f} on cores)"
        print(f"{name:>8}: {times}, peak +{peak:6.0f} MiB, difference {difference:.1e}")
    report = {
        **machine("torch_geometric"),
        "crystals": batch.num_crystals, "parameters": sum(p.numel() for p in model.parameters()),
        "atoms": len(batch.numbers), "bonds": len(batch.source), "angles": len(batch.leader), "steps": found,
    }  # fmt: skip
    for name in list(kinds)[1:]:
        for what, unit in (("speed", "seconds"), ("core_speed", "core_seconds"), ("memory", "peak_mib")):
            report[f"{what}_ratio_{name}"] = ratio = found[name][unit] / found["here"][unit]
            print(f"{what} ratio to {name}: {ratio:.2f}")
    finish(report, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_alignn.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
