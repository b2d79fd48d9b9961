"""How fast is the plain-PyTorch selective scan here, forward + backward, against what else runs without CUDA?

Peers, timed in the same run and interleaved: transformers' MambaMixer (its slow path) and a log-space parallel scan.
    python benchmarks/bench_scan.py [--repeats 5] [--sizes 32x128] [--output scan.json]
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from harness import BenchmarkArgs, finish
from torch import Tensor

from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.models.mamba import Mamba
from anomaly_lib.ops.selective_scan import RecomputeScan

SIZES = ((8, 128), (32, 128), (32, 256), (8, 1024))  # batch, length; d_model 128, d_state 16
TRANSFORMERS_LENGTH = 256  # its slow path indexes a tensor per step: backward grows with the square of the length


def log_space_scan(drive: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """h_t = sum_s exp(S_t - S_s) x_s by a parallel log-sum-exp of positive and negative parts; S = cumsum(delta A)."""
    total = (delta.unsqueeze(2) * A).cumsum(0)  # [L, B, N, E]
    terms = B.unsqueeze(3) * drive.unsqueeze(2)
    positive = torch.logcumsumexp(terms.clamp_min(1e-30).log() - total, dim=0) + total
    negative = torch.logcumsumexp((-terms).clamp_min(1e-30).log() - total, dim=0) + total
    return torch.einsum("lbne,lbn->lbe", positive.exp() - negative.exp(), C)


def timed(work: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    work().sum().backward()
    return time.perf_counter() - start


def mixer_peer(batch: int, length: int) -> Callable[[], Tensor]:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    mixer = MambaMixer(MambaConfig(hidden_size=128, state_size=16, conv_kernel=4, expand=2), layer_idx=0)
    tokens = torch.randn(batch, length, 128)
    return lambda: mixer(tokens)


def scan_inputs(batch: int, length: int) -> list[Tensor]:
    shapes = ((length, batch, 256), (length, batch, 256), (16, 256), (length, batch, 16), (length, batch, 16))
    tensors = [torch.randn(shape) for shape in shapes]
    tensors[1], tensors[2] = tensors[1].abs() * 0.1, -tensors[2].abs() - 0.5
    return [t.requires_grad_() for t in tensors]


def measure(batch: int, length: int, repeats: int) -> dict[str, object]:
    mamba, tokens, tensors = (
        Mamba(d_model=128, backend="torch"),
        torch.randn(batch, length, 128),
        scan_inputs(batch, length),
    )
    works: dict[str, Callable[[], Tensor]] = {
        "mamba_block_ours": lambda: mamba(tokens),
        "scan_ours": lambda: RecomputeScan.apply(*tensors),
        "scan_log_space": lambda: log_space_scan(*tensors),
    }
    if length <= TRANSFORMERS_LENGTH:
        works["mamba_block_transformers"] = mixer_peer(batch, length)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    timed(works["mamba_block_ours"])
    for turn in range(repeats):
        for name, work in works.items():
            if name == "mamba_block_transformers" and turn >= max(1, repeats // 3):
                continue  # seconds a call: fewer turns
            seconds[name].append(timed(work))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    row: dict[str, object] = {"batch": batch, "length": length, "seconds": median}
    row["log_space_over_ours"] = median["scan_log_space"] / median["scan_ours"]
    if "mamba_block_transformers" in median:
        row["transformers_over_ours"] = median["mamba_block_transformers"] / median["mamba_block_ours"]
    return row


@dataclass
class Args(BenchmarkArgs):
    """The selective scan."""

    threads: int = arg(2, "CPU threads", at_least=1)
    sizes: list[str] = arg([f"{b}x{n}" for b, n in SIZES], "BATCHxLENGTH")


def bench(args: Args) -> None:
    """Measure, print, write."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    for batch, length in (map(int, size.split("x")) for size in args.sizes):
        rows.append(measure(batch, length, args.repeats))
        print(json.dumps(rows[-1]))
    report = {"torch": torch.__version__, "machine": platform.processor(), "threads": args.threads, "rows": rows}
    finish(report, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_scan.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
