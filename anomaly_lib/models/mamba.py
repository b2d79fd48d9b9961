"""Mamba block in plain PyTorch: parameter names, shapes and initialisation of ``mamba_ssm.Mamba``.

mamba_ssm's own module needs CUDA; this one runs anywhere, takes its checkpoints, and calls its scan when it imports.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.errors import UserError
from anomaly_lib.ops.selective_scan import selective_scan

PREFIXES = ("", "mixer.", "mamba.", "backbone.")


class Mamba(nn.Module):
    """[B, L, d_model] -> [B, L, d_model]: in_proj, causal depthwise conv, SiLU, selective scan, gate, out_proj.

    ``Mamba(128)`` or ``Mamba(d_model=128, d_state=16, d_conv=4, expand=2)``, as in mamba_ssm. `backend`: "auto" =
    mamba_ssm's kernel where it imports and the tensors are on a GPU, "torch" or "kernel" = this one.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        *,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        dt_floor: float = 1e-4,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        inner = expand * d_model
        self.d_model = d_model
        self.rank = math.ceil(d_model / 16)
        self.d_state = d_state
        self.backend = backend
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        # Decaying A_log or D would pull every time constant towards 1, whatever the data say.
        self.no_weight_decay = ("A_log", "D")
        with torch.no_grad():
            nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
            log_step = torch.rand(inner) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
            step = log_step.exp().clamp(min=dt_floor)
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse softplus: softplus(bias) = step

    def __repr__(self) -> str:
        inner, d_state = self.A_log.shape
        return (
            f"Mamba(d_model={self.d_model}, d_state={d_state}, d_conv={self.conv1d.kernel_size[0]}, "
            f"expand={inner // self.d_model})"
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, d_model] -> [B, L, d_model]; a step sees itself and earlier steps only."""
        if tokens.ndim != 3 or tokens.shape[2] != self.d_model:
            raise UserError(f"tokens: expected [B, L, {self.d_model}], got {list(tokens.shape)}")
        length = tokens.shape[1]
        x, gate = self.in_proj(tokens).chunk(2, dim=-1)  # [B, L, E] each
        x = F.silu(self.conv1d(x.transpose(1, 2))[..., :length]).transpose(1, 2)
        low_rank, B, C = self.x_proj(x).split([self.rank, self.d_state, self.d_state], dim=-1)
        y = selective_scan(
            x,
            F.linear(low_rank, self.dt_proj.weight),
            -torch.exp(self.A_log.float()),
            B,
            C,
            self.D,
            z=gate,
            delta_bias=self.dt_proj.bias,  # added inside, in float32: under autocast the bias decides the time scale
            backend=self.backend,
        )
        return self.out_proj(y)

    def load_external(self, state: dict[str, Tensor]) -> None:
        """Load a mixer saved by mamba_ssm, transformers or mamba.py (their prefixes are recognised); strict."""
        for prefix in PREFIXES:
            if f"{prefix}A_log" in state:
                own = {name: state[prefix + name] for name in self.state_dict() if prefix + name in state}
                self.load_state_dict(own)
                return
        raise ValueError(f"no Mamba mixer in this state dict: none of {', '.join(p + 'A_log' for p in PREFIXES)} found")
