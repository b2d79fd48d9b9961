"""The three encoders of the weld systems, which of their tokens a model sees, and their last blocks where they learn.

What the store keeps of a modality (`below_*`) becomes tokens (`tokens_of`) in two steps, of which the second does
something only where last blocks learn.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.backbones import FrozenBackbone
from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.backbones.top_blocks import TopBlocks
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.models.adapters import add_adapters
from anomaly_lib.models.weld.causal_film_parts import pool_tokens
from anomaly_lib.models.weld.config import Branch, parse_branches
from anomaly_lib.models.weld.encoders import fit_spectrum
from anomaly_lib.systems.weld.options import EncoderTrainingArgs, WeldSettings

AST_CLASS_TOKENS = 2
QUERY_VALUE = ("q_proj", "v_proj", ".query", ".value")  # how transformers call them


def block_of(branch: Branch, settings: WeldSettings) -> int:
    """0-based block whose output the branch reads."""
    block = branch.layer - (2 if settings.layer_index == "seed" else 1)
    if block < 0:
        raise OptionError(
            f"branches={settings.branches}: with layer_index={settings.layer_index} no block is numbered as low as "
            f"that of {branch.name}"
        )
    return block


def image_outputs(settings: WeldSettings) -> list[str | int]:
    """What to ask the image backbone for."""
    branches = parse_branches(settings.branches)
    blocks = sorted({block_of(branch, settings) for branch in branches})
    outputs: list[str | int] = list(blocks)
    if not settings.patch_only or any(branch.pool == "cls" for branch in branches):
        outputs += [f"prefix.{block}" for block in blocks]
    return outputs


def photo_vectors(branches: Sequence[Tensor]) -> Tensor:
    """One vector for each photo [B, V, C * branches] from tokens [B, V, N, C] of every branch."""
    return torch.cat([tokens.mean(2) for tokens in branches], dim=-1)


@dataclass
class WeldEncoders:
    """The three backbones. `cut`: their last blocks by modality, taken off to learn; `used`: a model's own copies."""

    video: FrozenBackbone
    audio: FrozenBackbone
    image: FrozenBackbone
    settings: WeldSettings
    cut: dict[str, TopBlocks] = field(default_factory=dict)
    used: Mapping[str, TopBlocks] | None = None

    @property
    def nets(self) -> dict[str, FrozenBackbone]:
        """The backbone of each modality."""
        return {"video": self.video, "audio": self.audio, "images": self.image}

    @property
    def branches(self) -> tuple[Branch, ...]:
        """What is read of the photographs; one tensor of `encode_images` each."""
        return parse_branches(self.settings.branches)

    def to(self, device: torch.device) -> "WeldEncoders":
        for network in (self.video, self.audio, self.image, *self.cut.values()):
            network.to(device)
        return self

    @property
    def weights(self) -> dict[str, str]:
        return weights_of(self.video, self.audio, self.image)

    @property
    def parameter_count(self) -> int:
        """Parameters that stay frozen whatever is trained."""
        return sum(p.numel() for net in (self.video, self.audio, self.image) for p in net.parameters())

    # -- blocks that learn ----------------------------------------------------------------------------------------

    def learning_copy(self, args: EncoderTrainingArgs) -> nn.ModuleDict | None:
        """The last blocks for one model to train, as they were published; None where all encoders are frozen."""
        own = {part: copy.deepcopy(top) for part, top in self.cut.items()}
        for top in own.values():
            top.recompute = args.encoder_recompute
            if args.encoder_training == "lora":
                add_adapters(top, QUERY_VALUE, rank=args.encoder_rank, alpha=args.encoder_alpha)
            else:
                top.requires_grad_(True)
        return nn.ModuleDict(own) if own else None

    def _top(self, part: str) -> TopBlocks:
        return (self.used or self.cut)[part]

    # -- video ----------------------------------------------------------------------------------------------------

    def encode_video(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """[B, T, 1 or 3, S, S] -> tokens [B, T/2 * P, C], or [B, T/2, C] with spatial pooling."""
        return self._video_tokens(self.below_video(batch), batch["video"].shape[1])

    def below_video(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the store keeps: the tokens, or the state [B, N, C] below the blocks that learn."""
        frames = batch["video"]
        found = self.video.encode(frames)
        if "video" in self.cut:
            return {"video": found["tokens"], "has_video": batch["has_video"]}
        return {"video": self._pooled(found["patch_tokens"], frames.shape[1]), "has_video": batch["has_video"]}

    def _video_tokens(self, rows: dict[str, Tensor], frames: int) -> dict[str, Tensor]:
        if "video" not in self.cut or "video" not in rows:
            return rows
        return {**rows, "video": self._pooled(self._top("video")(rows["video"])["patch_tokens"], frames)}

    def _pooled(self, tokens: Tensor, frames: int) -> Tensor:
        if self.settings.video_token_pool == "none":
            return tokens
        return tokens.unflatten(1, (max(1, frames // 2), -1)).mean(2)

    def video_over_time(self, weights: Tensor) -> Tensor:
        """Attention to video tokens [B, N], summed over space: [B, T/2]."""
        return weights.unflatten(1, (self.video_steps, -1)).sum(2)

    @property
    def video_steps(self) -> int:
        """How many times the video tokens stand for: the encoder makes one of two frames."""
        return max(1, self.settings.video_frames // 2)

    # -- sound ----------------------------------------------------------------------------------------------------

    def encode_audio(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """[B, 1, mels, F] -> tokens [B, N, C], class tokens included; time comes first for AST."""
        return self._audio_tokens(self.below_audio(batch))

    def below_audio(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the store keeps: the tokens, or the state [B, N, C] below the blocks that learn."""
        return {"audio": self.audio.encode(self._spectra(batch["audio"]))["tokens"], "has_audio": batch["has_audio"]}

    def _spectra(self, spectrum: Tensor) -> Tensor:
        """[B, 1, mels, F] as AST reads them: [B, time, mel]."""
        if spectrum.shape[-2] != self.settings.mels:  # resized, turned axes would run and mean nothing
            raise UserError(
                f"audio of shape {tuple(spectrum.shape)}: expected [B, 1, {self.settings.mels} mel bins, frames]; "
                "turn the spectrum so that frequency comes before time"
            )
        spectrum = fit_spectrum(spectrum, self.audio)
        if self.settings.legacy_audio_axes:
            # The original's slip: AST takes (mel, time) without complaint. The content is turned, not the shape.
            spectrum = F.interpolate(spectrum.transpose(2, 3), tuple(spectrum.shape[-2:]))
        return spectrum.squeeze(1).transpose(1, 2)

    def _audio_tokens(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        if "audio" not in self.cut or "audio" not in rows:
            return rows
        return {**rows, "audio": self._top("audio")(rows["audio"])["tokens"]}

    def audio_over_time(self, weights: Tensor) -> Tensor:
        """Attention to audio tokens [B, N] without class tokens, summed over frequency: [B, time patches]."""
        return weights[:, AST_CLASS_TOKENS:].unflatten(1, (self.audio_rows, -1)).sum(1)

    @property
    def clocks(self) -> dict[str, Any]:
        """How the times of video and audio tokens are told, by the models' names."""
        return {"video_steps": self.video_steps, "audio_rows": self.audio_rows, "audio_prefix": AST_CLASS_TOKENS}

    @property
    def audio_rows(self) -> int:
        """How many frequencies the audio tokens stand for."""
        net: Any = self.audio.net
        return (int(net.config.num_mel_bins) - int(net.config.patch_size)) // int(net.config.frequency_stride) + 1

    # -- photographs ----------------------------------------------------------------------------------------------

    def encode_images(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """[B, V, 3, S, S] -> one tensor [B, V, N, C] per branch; pools without parameters are applied here (N = 1)."""
        height, width = batch["images"].shape[-2:]
        return self._image_tokens(self.below_images(batch), (height, width))

    def below_images(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the store keeps: the branches below the blocks that learn, and the `state` [B, V, L, C] below those."""
        images = batch["images"]
        found = self.image.encode(images.flatten(0, 1))
        answer = {"views": batch["views"], **self._branches(found, len(images))}
        if "images" in self.cut:
            answer["state"] = found["tokens"].unflatten(0, images.shape[:2])
        return answer

    def _image_tokens(self, rows: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        if "state" not in rows:
            return rows
        state = rows["state"]
        found = self._top("images")(state.flatten(0, 1), size)
        kept = {name: value for name, value in rows.items() if name != "state"}
        return {**kept, **self._branches(found, len(state))}

    def photo_tokens(self, photos: Tensor) -> Tensor:
        """Patch tokens [V, L, C] of photographs [V, 3, H, W] after the deepest block that is read of them."""
        found = self.image.encode(photos)
        if "images" in self.cut:
            height, width = photos.shape[-2:]
            found = {**found, **self._top("images")(found["tokens"], (height, width))}
        return found[f"layer.{max(block_of(branch, self.settings) for branch in self.branches)}"]

    def _branches(self, found: Mapping[str, Tensor], welds: int) -> dict[str, Tensor]:
        """Those of the branches whose block is in `found`."""
        answer: dict[str, Tensor] = {}
        for i, branch in enumerate(self.branches):
            block = block_of(branch, self.settings)
            patches = found.get(f"layer.{block}")
            if patches is None:
                continue
            prefix = found.get(f"prefix.{block}")
            whole = prefix is not None and (not self.settings.patch_only or branch.pool == "cls")
            tokens = torch.cat([prefix, patches], dim=1) if whole and prefix is not None else patches
            pooled = tokens if branch.pool == "gem" else pool_tokens(tokens, branch.pool).unsqueeze(1)
            answer[f"branch{i}"] = pooled.unflatten(0, (welds, -1))
        return answer

    # -- all ------------------------------------------------------------------------------------------------------

    def stored(self, part: str) -> tuple[str, ...]:
        """Names of what the store keeps of a modality."""
        if part != "images":
            return part, f"has_{part}"
        first = self.cut["images"].first if "images" in self.cut else None
        low = [i for i, b in enumerate(self.branches) if first is None or block_of(b, self.settings) < first]
        return (*(f"branch{i}" for i in low), *(() if first is None else ("state",)), "views")

    def clips(self, part: str, batch: Mapping[str, Tensor]) -> Tensor:
        """What the encoder of a modality reads of the runs that have it, as clips [N, T, C, H, W].

        Each photograph is a clip of one frame, a spectrum one of one channel with frequency as rows.
        """
        if part == "images":
            return batch["images"][batch["views"].bool()].unsqueeze(1)
        inputs = batch[part][batch[f"has_{part}"].bool()]
        return inputs if part == "video" else self._spectra(inputs).transpose(1, 2)[:, None, None]

    def patch_tokens(self, part: str, clips: Tensor) -> Tensor:
        """Patch tokens [N, P, C] of `clips` behind the blocks that learn, with gradients where those are on."""
        if part == "images":
            return self.photo_tokens(clips.squeeze(1))
        if part == "video":
            return self._top("video")(self.video.encode(clips)["tokens"])["patch_tokens"]
        state = self.audio.encode(clips[:, 0, 0].transpose(1, 2))["tokens"]
        return self._top("audio")(state)["tokens"][:, AST_CLASS_TOKENS:]

    def tokens_of(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rows of some or all stores as tokens: blocks that learn run here, with gradients where they are on."""
        rows = self._audio_tokens(self._video_tokens(rows, self.settings.video_frames))
        return self._image_tokens(rows, self.settings.photo_size)
