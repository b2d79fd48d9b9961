"""Runs to one frozen vector each: what the video auto-encoder reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly_lib.backbones import FrozenBackbone, create_backbone
from anomaly_lib.engine.log import progress
from anomaly_lib.errors import UserError
from anomaly_lib.features import FeatureSpec, FeatureStore, extract
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.data.runs import load_raw, process_video
from anomaly_lib.systems.weld.features import readable_runs, run_key
from anomaly_lib.systems.weld.options import WeldSettings
from anomaly_lib.systems.weld.video_ae.options import Args


@dataclass
class ClipEncoder:
    """Tokens of one block, averaged over tokens, then over frames."""

    backbone: FrozenBackbone
    settings: WeldSettings
    block: int
    store: FeatureStore
    device: torch.device
    threads: int

    @classmethod
    def of(cls, args: Args, device: torch.device) -> "ClipEncoder":
        """The encoder that the options name."""
        block = args.layer - 1
        backbone = create_backbone(
            args.backbone, weights=args.weights, layers=[block, f"prefix.{block}"], download=args.download
        )
        settings = WeldSettings(video_frames=args.video_frames, video_size=args.video_size, video_norm="imagenet")
        spec = FeatureSpec(
            backbone=backbone.name,
            weights=backbone.weights_id,
            outputs=("clip",),
            transform=f"{args.video_frames} frames of {args.video_size} pixels, ImageNet statistics",
            views=f"mean of block {block}",
            precision=args.precision,
        )
        store = FeatureStore(spec, root=args.cache_dir, cache=args.cache)
        return cls(backbone.to(device), settings, block, store, device, args.num_workers)

    def load(self, run: WeldRun) -> Tensor:
        """The frames [T, 3, S, S] of a run."""
        video, there = process_video(load_raw(run, self.settings, ("video",)), self.settings)
        if not there:
            raise UserError(f"{run.folder}: this run has no video; give on_error=skip to leave such runs out")
        return video

    def readable(self, runs: Sequence[WeldRun]) -> tuple[list[WeldRun], list[dict[str, str]]]:
        """The runs with a readable video, and the others with the reason."""

        def read(run: WeldRun) -> None:
            if run_key(run) not in self.store:
                self.load(run)

        return readable_runs(runs, read)

    def __call__(self, runs: Sequence[WeldRun]) -> Tensor:
        """Clip vectors [N, dim] on the device."""

        def encode(clips: Tensor) -> Mapping[str, Tensor]:  # [B, T, 3, S, S]
            found = self.backbone.encode(clips.flatten(0, 1))
            tokens = torch.cat([found[f"prefix.{self.block}"], found[f"layer.{self.block}"]], dim=1)
            return {"clip": tokens.mean(1).unflatten(0, clips.shape[:2]).mean(1)}

        keys = extract(
            encode, list(runs), self.store, load=self.load, key=run_key, device=self.device, threads=self.threads,
            track=progress,
        )  # fmt: skip
        return self.store.rows(keys)["clip"].float().to(self.device)
