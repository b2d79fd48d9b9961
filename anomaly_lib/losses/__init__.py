"""Losses as functions: distances, Gram, margins, focal and Dice, SSIM, contrastive."""

from anomaly_lib.losses.contrastive import info_nce_loss, supcon_loss
from anomaly_lib.losses.distance import cosine_loss, feature_l1_loss, topk_mean
from anomaly_lib.losses.gram import gram_loss
from anomaly_lib.losses.margin import triplet_loss
from anomaly_lib.losses.segmentation import dice_loss, focal_loss
from anomaly_lib.losses.ssim import ssim, ssim_loss

__all__ = [
    "cosine_loss",
    "dice_loss",
    "feature_l1_loss",
    "focal_loss",
    "gram_loss",
    "info_nce_loss",
    "ssim",
    "ssim_loss",
    "supcon_loss",
    "topk_mean",
    "triplet_loss",
]
