"""Synthetic damage for DRAEM: a batch here, image by image in anomalib.

python benchmarks/bench_draem_data.py [--batch 16] [--side 256] [--output draem_data.json]
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from harness import BenchmarkArgs, finish, in_turn, machine

from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.data.synthesis import perlin_damage, perlin_masks
from anomaly_lib.ops import perlin_noise


@dataclass
class Args(BenchmarkArgs):
    """DRAEM's damage."""

    batch: int = arg(16, "images at a time", at_least=1)
    side: int = arg(256, "side of an image", at_least=32)


def peer_noise(batch: int, side: int) -> torch.Tensor:
    from anomalib.data.utils.generators.perlin import generate_perlin_noise

    return torch.stack([generate_perlin_noise(side, side, device=torch.device("cpu")) for _ in range(batch)])


def peer_damage(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator

    damaged, masks = PerlinAnomalyGenerator(probability=1.0, blend_factor=(0.1, 1.0))(images)
    return damaged, masks


def run(batch: int, side: int, repeats: int) -> dict[str, Any]:
    images = torch.rand(batch, 3, side, side)
    exponents = torch.randint(0, 6, (batch, 2))
    works = {
        "noise": lambda: perlin_noise((side, side), exponents),
        "noise_there": lambda: peer_noise(batch, side),
        "whole": lambda: perlin_damage(images, probability=1.0),
        "whole_there": lambda: peer_damage(images),
    }
    in_turn(works, repeats=1)
    noise, noise_there, whole, whole_there = (m.core_seconds for m in in_turn(works, repeats=repeats).values())
    area = float(perlin_masks((side, side), 200)[1].float().mean())
    area_there = float(torch.stack([peer_damage(images)[1].mean() for _ in range(max(1, 200 // batch))]).mean())
    return {
        "batch": batch, "side": side,
        "noise_core_ms_per_image": 1000 * noise / batch, "noise_ratio": noise_there / noise,
        "damage_core_ms_per_image": 1000 * whole / batch, "damage_ratio": whole_there / whole,
        "mask_area": area, "anomalib_mask_area": area_there,
    }  # fmt: skip


def bench(args: Args) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    found = run(args.batch, args.side, args.repeats)
    print(f"Perlin noise: {found['noise_core_ms_per_image']:.2f} ms an image, {found['noise_ratio']:.1f}x anomalib's")
    print(f"damaged images: {found['damage_core_ms_per_image']:.2f} ms an image, {found['damage_ratio']:.1f}x")
    print(f"mask area {found['mask_area']:.3f}, anomalib {found['anomalib_mask_area']:.3f}")
    finish({"machine": machine("anomalib"), "draem_data": found}, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_draem_data.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
