"""Devices and number formats: one place decides what the options `device` and `precision` mean."""

from contextlib import AbstractContextManager, nullcontext

import torch

from anomaly_lib.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is this process's GPU when there is one (torchrun: the local rank's), else the CPU."""
    from anomaly_lib.engine.distributed import local_rank

    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; give device=cpu")
    return device


def autocast_for(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Autocast to bf16 or fp16; with fp32 a context that changes nothing."""
    if precision == "fp32":
        return nullcontext()  # a disabled autocast block would still stand in the way of torch.export
    return torch.autocast(device.type, dtype=DTYPES[precision])


def make_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Loss scaling, needed by fp16 only; disabled it is a pass-through, so loops need no branch."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
