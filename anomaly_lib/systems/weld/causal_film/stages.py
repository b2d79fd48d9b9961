"""What the document says of each published stage, line by line, beside the options that say it here; imports no torch.

`tests/unit/systems/test_weld_stages.py` compares every value; a run that names its preset prints the table.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from anomaly_lib.config import shown


class Line(NamedTuple):
    """One value of a stage."""

    option: str
    value: Any
    says: str  # the place in the document, in its own letters; "" = the document does not say it


OURS = "not in the document"
MAMBA = "2-layer Mamba (d_state=16, d_conv=4, expand=2)"
PROCESS = "2 layers, 4 heads"
SCORE = "50% (Top-K)"
SAME_EVERYWHERE = (
    Line("video_backbone", "vjepa2-vitl", "V-JEPA"),
    Line("audio_backbone", "ast-14-14", "Audio Spectrogram Transformer, 768 dim"),
    Line("modulator", "mamba", "Mamba"),
    Line("sensor_layers", 2, MAMBA),
    Line("process_layers", 2, PROCESS),
    Line("process_heads", 4, PROCESS),
    Line("gate", True, "Gate Network"),
    Line("decoder", "mlp", "AntiGenDecoder"),
    Line("decoder_activation", "relu", "LayerNorm -> ReLU"),
    Line("view_pool", "max", "View Max Pooling"),
    Line("score_kind", "combined", r"\text{Score} = \text{Dist}_{cos} + 10.0 \cdot \text{Dist}_{L1\_TopK}"),
    Line("score_topk", 0.5, SCORE),
    Line("ema_decay", 0.9999, "**Decay**: 0.9999"),
    Line("epochs", 100, "Epochs: 100"),
    Line("batch_size", 32, "Batch Size: 32"),
)
STAGE_LINES: Mapping[str, Sequence[Line]] = {
    "doc": (
        *SAME_EVERYWHERE,
        Line("image_backbone", "dinov3-vith16plus", "DINOv3-vit-h/16+` (1280 dim)"),
        Line("branches", "doc", "L10+L21"),
        Line("gem_p", 3.0, "GeM Pooling"),
        Line("sensor_steps", 128, "128"),
        Line("sensor_hidden", 128, "(B, 128)"),
        Line("d_model", 512, "`d_model`: 512"),
        Line("gate_activation", "silu", "Linear(2560->640) -> SiLU -> Linear(640->2560) -> Sigmoid"),
        Line("target_mode", "joint", "Trainable Parameters: ~14.8M"),  # only with a trained result encoder
        Line("decoder_dropout", 0.2, "Dropout(0.2)"),
        Line("l1_kind", "l1", r"\text{mean}(|Z_{result} - Z_{pred}|)"),
        Line("topk_ratio", 1.0, r"\text{mean}(|Z_{result} - Z_{pred}|)"),
        Line("lambda_l1", 10.0, r"10.0 \cdot L_{L1}"),
        Line("lambda_gram", 1.0, r"1.0 \cdot L_{gram}"),
        Line("gram_norm", "fro", "$||G(Z_{result}) - G(Z_{pred})||_F$"),
        Line("lambda_text", 0.1, r"0.1 \cdot L_{text}"),
        Line("text_prompt", "a normal weld", '"a normal weld"'),
        Line("learning_rate", 2e-5, "Learning Rate: 2e-5"),
        Line("weight_decay", 2e-3, "Weight Decay: 2e-3"),
        Line("warmup_epochs", 8, "Warmup Epochs: 8"),
        Line("warmup_start_lr", 5e-7, "Warmup Start LR: 5e-7"),
        Line("min_lr", 1e-7, "Min LR: 1e-7"),
        Line("patience", 25, "Early Stopping: Patience 25"),
        Line("grad_clip", 0.5, "Gradient Clip: 0.5"),
    ),
    "stage1": (
        *SAME_EVERYWHERE,
        Line("image_backbone", "dinov2-base", "DINOv2` (ViT-Base, 768 dim)"),
        Line("branches", "stage1", "Layer 12 (Mean Pool)"),
        Line("sensor_hidden", 128, "Embedding: Linear (6 -> 128)"),
        Line("d_model", 256, "`d_model`: 256"),
        Line("gate_activation", "relu", "Linear(1536->384) -> ReLU -> Linear(384->1536) -> Sigmoid"),
        Line("target_mode", "joint", "(Z_{result}, Z_{pred})"),  # no stop-gradient is named
        Line("decoder_dropout", 0.0, "MLP (256 -> 256 -> LayerNorm -> ReLU -> 256)"),  # dropout came with stage 2
        Line("feature_mask_ratio", 0.0, ""),  # masking too
        Line("l1_kind", "l1", r"\text{mean}(|Z_{result} - Z_{pred}|)"),
        Line("topk_ratio", 1.0, r"\text{mean}(|Z_{result} - Z_{pred}|)"),
        Line("lambda_l1", 10.0, r"10.0 \cdot L_{L1} + 0.1 \cdot L_{text}"),
        Line("lambda_gram", 0.0, r"10.0 \cdot L_{L1} + 0.1 \cdot L_{text}"),
        Line("lambda_text", 0.1, r"10.0 \cdot L_{L1} + 0.1 \cdot L_{text}"),
        Line("text_prompt", "a normal weld", '"a normal weld"'),
        Line("learning_rate", 1e-4, "Learning Rate: 1e-4"),
        Line("weight_decay", 1e-4, "Weight Decay: 1e-4"),
        Line("warmup_epochs", 2, "Warmup Epochs: 2"),
        Line("warmup_start_lr", 1e-6, "Warmup Start LR: 1e-6"),
        Line("min_lr", 1e-7, "Min LR: 1e-7"),
        Line("patience", 8, "Early Stopping: Patience 8"),
    ),
    "best": (
        *SAME_EVERYWHERE,
        Line("image_backbone", "dinov3-vith16plus", "DINOv3"),
        Line("branches", "best", "*auc 0.9161* (test split 0.8834)"),
        Line("gem_p", 3.0, "*auc 0.9161* (test split 0.8834)"),
        Line("sensor_hidden", 128, '"sensor_hidden_dim": 128'),
        Line("d_model", 512, '"d_model": 512'),
        Line("gate_activation", "silu", "SiLU"),
        Line("target_mode", "stopgrad", ""),  # the one departure: docs/manual/causal_film.md says why
        Line("decoder_dropout", 0.2, '"decoder_dropout": 0.2'),
        Line("feature_mask_ratio", 0.2, '"feature_mask_ratio": 0.2'),
        Line("l1_kind", "smooth_l1", "Smooth L1 Loss"),
        Line("topk_ratio", 0.5, "Top-K"),
        Line("lambda_l1", 1.0, ""),  # of the published configuration file
        Line("lambda_gram", 1.0, r"1.0 \cdot L_{gram}"),
        Line("lambda_text", 0.01, "lambda_text 0.01"),
        Line("learning_rate", 2e-5, '"learning_rate": 2e-5'),
        Line("weight_decay", 1e-2, '"weight_decay": 1e-2'),
        Line("warmup_epochs", 8, '"warmup_epochs": 8'),
        Line("warmup_start_lr", 5e-7, "Warmup Start LR: 5e-7"),
        Line("min_lr", 1e-7, '"min_lr": 1e-7'),
        Line("patience", 20, '"early_stopping_patience": 20'),
        Line("grad_clip", 0.5, '"gradient_clip": 0.5'),
    ),
}
"""By preset; each option stands once."""


def stage_table(args: Any) -> list[str]:
    """The values of `args` beside those of its preset's stage and the document's words; what differs is marked."""
    lines = STAGE_LINES[args.preset]
    rows = [("option", "here", "document", "its words")]
    for line in lines:
        here = getattr(args, line.option)
        mark = "" if here == line.value else "  <- differs"
        rows.append((line.option, shown(here), shown(line.value), (line.says or OURS) + mark))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows]
