"""Causal-FiLM's loss (L4), its anomaly score, and the monitor that notices when both encodings collapse together."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.losses import cosine_loss, feature_l1_loss, gram_loss, topk_mean
from anomaly_lib.models.weld.config import SCORE_KINDS, CausalFiLMConfig, CausalScoreArgs, LossConfig


class CausalFiLMLoss(nn.Module):
    """cos + lambda_l1 * L1 + lambda_gram * Gram + lambda_text * (1 - cos(head(z_pred), text)); returns every term.

    ``CausalFiLMLoss(config)`` or ``CausalFiLMLoss(lambda_l1=10.0, ...)``. `text` is the frozen CLIP embedding of "a
    normal weld" [T]; without it the text term is 0. The head is trained: give this module's parameters to the optimiser
    and keep them in the checkpoint. `d_model`: width of the encodings that the head reads.
    """

    text: Tensor | None

    def __init__(
        self,
        config: LossConfig | None = None,
        *,
        d_model: int = CausalFiLMConfig.d_model,
        text: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        config = self.config = configure(LossConfig, config, options)
        self.text_head: nn.Sequential | None = None
        self.register_buffer("text", None if text is None else F.normalize(text.float(), dim=-1))
        if text is not None and config.lambda_text > 0:
            self.text_head = nn.Sequential(
                nn.Linear(d_model, 256), nn.LayerNorm(256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, text.numel())
            )

    def extra_repr(self) -> str:
        c = self.config
        return (
            f"lambda_l1={c.lambda_l1}, lambda_gram={c.lambda_gram}, lambda_text={c.lambda_text}, l1_kind={c.l1_kind!r}"
        )

    def forward(self, z_result: Tensor, z_pred: Tensor) -> dict[str, Tensor]:
        """Encodings [B, d] -> `loss` [] and each term [] by name."""
        if z_result.shape != z_pred.shape or z_result.ndim != 2:
            raise UserError(
                f"expected two encodings [batch, width] of one shape, got {list(z_result.shape)} and "
                f"{list(z_pred.shape)}"
            )
        c = self.config
        result, pred = z_result.float(), z_pred.float()
        terms = {
            "cos": cosine_loss(pred, result),
            "l1": feature_l1_loss(
                pred,
                result,
                kind="smooth_l1" if c.l1_kind == "smooth_l1" else "l1",
                beta=c.smooth_l1_beta,
                topk_ratio=c.topk_ratio,
            ),
            "gram": gram_loss(
                result,
                pred,
                mode="batch" if c.gram_mode == "batch" else "feature",
                norm="fro" if c.gram_norm == "fro" else "mse",
            )
            if c.lambda_gram
            else pred.new_zeros(()),
            "text": self._text_term(pred),
        }
        total = terms["cos"] + c.lambda_l1 * terms["l1"] + c.lambda_gram * terms["gram"] + c.lambda_text * terms["text"]
        return {"loss": total, **terms}

    def _text_term(self, z_pred: Tensor) -> Tensor:
        if self.text_head is None or self.text is None:
            return z_pred.new_zeros(())
        return cosine_loss(self.text_head(z_pred), self.text.expand(len(z_pred), -1))


def anomaly_score(
    z_result: Tensor,
    z_pred: Tensor,
    *,
    kind: str = CausalScoreArgs.score_kind,
    topk_ratio: float = CausalScoreArgs.score_topk,
) -> Tensor:
    """Score [B] = (1 - cos) + 10 * mean of the largest half of ``|z_result - z_pred|``; higher is more anomalous.

    Absolute errors even where training used smooth L1: small errors still order normal welds.
    """
    if kind not in SCORE_KINDS:
        raise UserError(f"kind={kind}: choose from {', '.join(SCORE_KINDS)}")
    result, pred = z_result.float(), z_pred.float()
    cosine = cosine_loss(pred, result, reduction="none")
    if kind == "cosine":
        return cosine
    errors = (result - pred).abs()
    if kind == "mean_abs":
        return errors.mean(-1)
    largest = topk_mean(errors, topk_ratio)
    return largest if kind == "l1" else cosine + 10.0 * largest


def collapse_monitor(z_result: Tensor) -> float:
    """Batch standard deviation (mean over dimensions) relative to the mean size: near 0, Z_result says nothing."""
    z = z_result.detach().float()
    if len(z) < 2:
        return float("nan")
    return float(z.std(0).mean() / z.abs().mean().clamp_min(1e-12))
