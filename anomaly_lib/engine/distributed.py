"""torchrun awareness. Without torchrun every function here is the identity, so loops are written once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch import distributed as dist

from anomaly_lib.errors import UserError


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """True in the one process that writes files and prints."""
    return rank() == 0


def single_process_only(system: str, instead: str) -> None:
    """Refuse torchrun where ranks would only repeat each other's work: rank 0 says so, the others leave quietly."""
    if world_size() == 1:
        return
    if not is_main():
        raise SystemExit(2)
    raise UserError(f"torchrun with {world_size()} processes: {system} trains in one process; {instead}")


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join torchrun's group (nccl on CUDA, gloo on the CPU) for the block; nothing to do for a single process."""
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, device: torch.device, *, find_unused: bool = False) -> nn.Module:
    """DistributedDataParallel under torchrun, else the model itself."""
    if world_size() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=find_unused)


def barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def mean_over_ranks(value: float | Tensor) -> float:
    """Average of a number that each rank has its own of."""
    if not (dist.is_available() and dist.is_initialized()):
        return float(value)
    total = torch.as_tensor(float(value), dtype=torch.float64)
    if dist.get_backend() == "nccl":
        total = total.cuda()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def epoch_batches(
    n: int, batch_size: int, *, seed: int, epoch: int, shuffle: bool = True, drop_last: bool = False
) -> list[tuple[Tensor, float]]:
    """This rank's batches of an epoch, as (indices, weight): the order depends on (seed, epoch) alone.

    `batch_size` is the global one: n ranks see together exactly what one process would. `weight` multiplies a
    rank's mean loss so that DDP's average over ranks equals the mean over the global batch, unequal shards included.
    """
    order = torch.arange(n)
    if shuffle:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    ranks, here = world_size(), rank()
    out = []
    for batch in order.split(batch_size):
        if len(batch) < batch_size and drop_last and n >= batch_size:
            continue
        mine = batch[here::ranks]
        weight = len(mine) * ranks / len(batch)
        out.append(
            (mine if len(mine) else batch[:1], weight)
        )  # an idle rank still joins the gradient exchange, with weight 0
    return out
