"""Detectors that train, on one real category, beside anomalib's modules trained on the same batches of images."""

import tempfile
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.engine.distributed import epoch_batches
from anomaly_lib.systems.detectors.build import make_extractor
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.types import Prediction
from scripts.pages.beside_peer import METRICS
from scripts.pages.real_category import Category, row_of, score_batches

HAS_PEER = ("reverse_distillation", "draem")  # anomalib has no DRAEM-SevNet


def check_training(data: Category, opts: Any, with_peer: bool) -> dict[str, Any]:
    """The row of one training a side; each side draws its own weights and damage by the seed."""
    row = row_of(data, opts)
    sides = {"here": train_here}
    if with_peer and opts.model in HAS_PEER:
        sides["anomalib"] = train_peer
    for side, train in sides.items():
        began = time.process_time()
        row[side] = train(data, opts)
        row[f"{side}_core_seconds"] = round(time.process_time() - began, 1)
    return row


def train_here(_: Category, opts: Any) -> dict[str, float]:
    """What the training program says of the test images after the last epoch; every normal image is learnt."""
    with tempfile.TemporaryDirectory() as folder:
        found = SYSTEMS["detectors"].train(replace(opts, output_dir=folder)).metrics
    return {name: found[name if name in found else f"pixel_{name}"] for name in METRICS}


def train_peer(data: Category, opts: Any) -> dict[str, float]:
    """The same of anomalib's module, with its loss and its optimizer's betas."""
    torch.manual_seed(opts.seed)  # anomalib draws from the global generator
    peer = (ReverseDistillationPeer if opts.model == "reverse_distillation" else DraemPeer)(opts)
    optimizer = torch.optim.Adam(
        [p for p in peer.parameters() if p.requires_grad], lr=opts.learning_rate, betas=peer.betas
    )
    images = torch.cat(data.train)
    for epoch in range(opts.epochs):
        peer.train()
        for index, _ in epoch_batches(len(images), opts.batch_size, seed=opts.seed, epoch=epoch):
            optimizer.zero_grad()
            peer.loss_of(images[index]).backward()
            optimizer.step()
    return data.measures(score_batches(peer, data.test))


class TrainedPeer(nn.Module):
    """Images [B, 3, H, W] -> what anomalib's `module` says of them."""

    module: nn.Module
    betas = (0.9, 0.999)

    def loss_of(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Prediction:
        found = self.module(images)
        return Prediction(found.pred_score.flatten(), found.anomaly_map.squeeze(1))


class Contiguous(nn.Module):
    """A frozen network whose maps anomalib's loss can flatten."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: x.contiguous() for name, x in self.net(images).items()}


class ReverseDistillationPeer(TrainedPeer):
    betas = (0.5, 0.99)

    def __init__(self, opts: Any) -> None:
        super().__init__()
        from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
        from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss
        from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel

        self.module = ReverseDistillationModel(
            backbone=opts.backbone, input_size=tuple(opts.image_size), layers=opts.layers, pre_trained=False,
            anomaly_map_mode=AnomalyMapGenerationMode.ADD,
        )  # fmt: skip
        self.module.encoder = Contiguous(make_extractor(opts))
        self.loss = ReverseDistillationLoss()

    def loss_of(self, images: Tensor) -> Tensor:
        loss: Tensor = self.loss(*self.module(images))
        return loss


class DraemPeer(TrainedPeer):
    def __init__(self, opts: Any) -> None:
        super().__init__()
        from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
        from anomalib.models.image.draem import torch_model
        from anomalib.models.image.draem.loss import DraemLoss

        self.module = torch_model.DraemModel()
        if (opts.repair_width, opts.segment_width) != (128, 64):
            self.module.reconstructive_subnetwork = torch_model.ReconstructiveSubNetwork(base_width=opts.repair_width)
            self.module.discriminative_subnetwork = torch_model.DiscriminativeSubNetwork(
                in_channels=6, out_channels=2, base_width=opts.segment_width
            )
        self.damage = PerlinAnomalyGenerator(anomaly_source_path=opts.textures, blend_factor=(0.1, 1.0))
        self.loss = DraemLoss()

    def loss_of(self, images: Tensor) -> Tensor:
        damaged, mask = self.damage(images)
        repair, logits = self.module(damaged)
        loss: Tensor = self.loss(images, repair, mask, logits)
        return loss
