"""V4 from raw tensors: frozen encoders and fusion as one module with the document's contract."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.errors import UserError
from anomaly_lib.models.weld.quad_config import ALIASES, MODALITIES
from anomaly_lib.models.weld.supcon_quad import QuadModal
from anomaly_lib.systems.weld.data.runs import audio_tensor
from anomaly_lib.systems.weld.encoders import WeldEncoders, photo_vectors

RANKS = {"video": (5,), "images": (5,), "audio": (3, 4), "sensors": (3,)}
WANTED = {
    "video": "[batch, frames, 1, height, width]",
    "images": "[batch, views, 3, height, width]",
    "audio": "[batch, channels, samples] at 16 kHz or [batch, 1, mels, frames]",
    "sensors": "[batch, steps, channels]",
}


class WeldInspector(nn.Module):
    """Raw modalities in; `features` [B, D], `logits` [B, classes] and `anomaly_score` [B] out.

    In: `video` [B, T, 1, H, W], `post_images` [B, N, 3, H, W], `audio` (a waveform [B, C, L] at 16 kHz or a spectrum
    [B, 1, M, F]), `sensors` [B, S, channels], as `WeldDataset` makes them; the document's other spellings are
    understood. A modality that is left out, or that `present` [B, 4] denies, is masked. ``detector.inspector()``.
    """

    def __init__(self, model: QuadModal, encoders: WeldEncoders) -> None:
        super().__init__()
        self.model = model
        self.networks = nn.ModuleList([encoders.video, encoders.image, encoders.audio])  # moved and counted with it
        self.encoders = encoders

    def forward(self, batch: Mapping[str, Any], *, need_weights: bool = False) -> dict[str, Tensor]:
        """The answers by name; with `need_weights` also `attention.<modality>` [B, Q, L]."""
        named = {ALIASES.get(key, key): value for key, value in batch.items()}
        given = {name: named[name] for name in MODALITIES if name in named}
        size = self._check(given)
        present = named.get("present")
        if present is None:
            present = torch.ones(size, len(MODALITIES), dtype=torch.bool)
        here = torch.tensor([name in given for name in MODALITIES])
        tokens = {name: self._tokens(name, value, named) for name, value in given.items()}
        device = next(iter(tokens.values())).device
        tokens["present"] = present.bool().to(device) & here.to(device)
        if "images" in given and "views" in named:
            tokens["images_mask"] = named["views"].bool()
        return self.model(tokens, need_weights=need_weights)  # type: ignore[no-any-return]

    def _check(self, given: Mapping[str, Tensor]) -> int:
        """How many welds; one line for a rank or a size that does not fit."""
        if not given:
            raise UserError(f"a batch needs at least one of {', '.join(MODALITIES)}")
        for name, value in given.items():
            if value.ndim not in RANKS[name]:
                raise UserError(f"{name}: expected {WANTED[name]}, got {list(value.shape)}")
        sizes = {len(value) for value in given.values()}
        if len(sizes) > 1:
            raise UserError(f"the modalities of this batch have different batch sizes: {sorted(sizes)}")
        return sizes.pop()

    def _tokens(self, name: str, value: Tensor, batch: Mapping[str, Any]) -> Tensor:
        there = torch.ones(len(value), dtype=torch.bool)
        if name == "sensors":
            return value
        if name == "video":
            return self.encoders.encode_video({"video": value, "has_video": there})["video"]
        if name == "audio":
            if value.ndim == 3:
                waves = [audio_tensor(one.mean(0).cpu().numpy(), self.encoders.settings) for one in value]
                value = torch.stack(waves).to(value.device)
            return self.encoders.encode_audio({"audio": value, "has_audio": there})["audio"]
        views = batch.get("views", torch.ones(value.shape[:2], dtype=torch.bool))
        found = self.encoders.encode_images({"images": value, "views": views})
        return photo_vectors([found[f"branch{i}"] for i in range(len(self.encoders.branches))])
