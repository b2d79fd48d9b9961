"""CLIP image towers through open_clip: every tap, the pooled feature and PromptAD's value-value path in one pass."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.attention import attend, feed_forward, project_qkv
from anomaly_lib.backbones.base import FrozenBackbone, Layer, check_image_size, last_block, output_names
from anomaly_lib.backbones.clip_text import ClipText
from anomaly_lib.backbones.clip_windows import window_features, window_sides
from anomaly_lib.backbones.sources import WeightSource, resolve_weights
from anomaly_lib.backbones.tokenizer import ClipTokenizer, Tokenizer, WordTokenizer
from anomaly_lib.backbones.weights import file_sha256, load_into, read_state_dict, strip_prefix, uses_quick_gelu
from anomaly_lib.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ALIASES = {
    "ViT-L/14@336px": "ViT-L-14-336:openai",
    "ViT-L/14": "ViT-L-14:openai",
    "ViT-B/16": "ViT-B-16:openai",
    "ViT-B/32": "ViT-B-32:openai",
}
# The published weights meant when only the architecture is named.
DEFAULT_TAGS = {
    "ViT-B-16-plus-240": "laion400m_e32",
    "ViT-B-16": "laion400m_e32",
    "ViT-L-14-336": "openai",
    "ViT-L-14": "openai",
    "ViT-B-32": "openai",
}
DEMO = "demo-clip"
DEMO_FILE = Path(__file__).with_name("demo_clip.json")
NAMED_OUTPUTS = ("pooled", "patch_tokens", "vv_tokens", "next_attn.*", "normed.*", "window.*")
_FINAL = ("pooled", "patch_tokens", "vv_tokens")
# A few thousand parameters with every part of the real thing; only ever with random weights.
TINY: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 4, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


class ClipBackbone(FrozenBackbone):
    """A frozen CLIP: ``encode(images)`` for the image tower, ``text`` for the text tower.

    Outputs: ``layer.N`` patch rows after block N; ``next_attn.N`` the same rows after the attention of block N + 1 but
    before its MLP (what the original PromptAD ends up keeping in its memory); ``pooled`` the image feature;
    ``normed.N`` patch rows after block N behind the final norm; ``patch_tokens`` normed and projected patch rows;
    ``vv_tokens`` those of the value-value path; ``window.S`` the image features [B, D, h - S + 1, w - S + 1] of all
    windows of S x S patches, each encoded by itself. Nothing is L2-normalised.
    """

    image_size: tuple[int, int]  # a CLIP always has one, and patches
    patch_size: int

    def __init__(
        self,
        clip: Any,
        tokenizer: Tokenizer,
        *,
        name: str,
        outputs: Sequence[str],
        weights_id: str,
        config: Mapping[str, Any],
    ) -> None:
        visual = clip.visual
        super().__init__(
            name=name,
            outputs=outputs,
            weights_id=weights_id,
            image_size=tuple(visual.image_size),
            embed_dim=int(visual.output_dim),
            width=int(visual.conv1.out_channels),
            patch_size=int(visual.patch_size[0]),
            mean=tuple(config.get("mean", CLIP_MEAN)),
            std=tuple(config.get("std", CLIP_STD)),
        )
        self.clip: Any = clip
        self.text = ClipText(clip, tokenizer, pool=config["text_cfg"].get("pool_type", "argmax"))
        self._plan()
        self.freeze()

    def answer(self, layers: Sequence[Layer]) -> None:
        """Change what ``encode`` answers, for callers that must know the depth before they can name layers."""
        self.outputs = output_names(layers, depth=self.depth, named=NAMED_OUTPUTS, default=(), owner=self.name)
        self._plan()

    def _plan(self) -> None:
        """Which blocks and windows the outputs need."""
        self._windows = window_sides(self.outputs, self.grid, self.name)
        blocks = [name for name in self.outputs if not name.startswith("window.")]
        self._last = last_block(blocks, depth=self.depth, final=_FINAL)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def depth(self) -> int:
        """Blocks of the image tower."""
        return len(self.clip.visual.transformer.resblocks)

    @property
    def projection(self) -> Tensor:
        """The frozen matrix [width, embed_dim] that carries image tokens into the joint space."""
        return self.clip.visual.proj

    @property
    def logit_scale(self) -> Tensor:
        """The stored log temperature (scores are multiplied by its exponential, or, in PromptAD, by itself)."""
        return self.clip.logit_scale

    def attention(self, index: int) -> nn.MultiheadAttention:
        """The frozen attention of image block ``index``, for adapters that read its projections."""
        return self.clip.visual.transformer.resblocks[index].attn

    def _encode(self, batch: Tensor) -> dict[str, Tensor]:
        if tuple(batch.shape[-2:]) != self.image_size:
            raise UserError(
                f"{self.name} takes images of {self.image_size}, got {tuple(batch.shape[-2:])}; give image_size="
            )
        visual = self.clip.visual
        wanted = set(self.outputs)
        wants_vv = "vv_tokens" in wanted
        x = visual._embeds(batch)  # [B, 1 + P, C]
        out: dict[str, Tensor] = {}
        for side in self._windows:
            out[f"window.{side}"] = window_features(visual, x, self.grid, side)
        summed = x  # the value-value stream only ever adds up attention results read off the ordinary stream

        def tap(name: str, state: Tensor) -> None:
            if name in wanted:
                out[name] = state[:, 1:]

        for index, block in enumerate(visual.transformer.resblocks[: self._last + 1]):
            q, k, v = project_qkv(block.attn, block.ln_1(x))
            x = x + block.ls_1(attend(block.attn, q, k, v))
            if wants_vv:
                summed = summed + block.ls_1(attend(block.attn, v, v, v))
            tap(f"next_attn.{index - 1}", x)
            x = feed_forward(block, x)
            tap(f"layer.{index}", x)
            if f"normed.{index}" in wanted:
                tap(f"normed.{index}", visual.ln_post(x))
        # After the last block there is no next attention: the tap keeps the block's own output, as the original does.
        tap(f"next_attn.{self.depth - 1}", x)
        if "pooled" in self.outputs:
            out["pooled"] = visual._pool(x)[0] @ visual.proj
        if "patch_tokens" in self.outputs:
            out["patch_tokens"] = visual.ln_post(x[:, 1:]) @ visual.proj
        if wants_vv:
            out["vv_tokens"] = visual.ln_post(summed[:, 1:]) @ visual.proj
        return out


def create_clip(
    name: str,
    *,
    weights: str | Path | None = None,
    layers: Sequence[Layer] | None = None,
    image_size: int | tuple[int, int] | None = None,
    download: bool = False,
) -> ClipBackbone:
    """A frozen CLIP by open_clip name (``"ViT-L-14-336:openai"``), open_clip style config file, or ``"demo-clip"``.

    ``NAME:TAG`` picks one of open_clip's published weights; OpenAI's run with QuickGELU. An ``image_size`` other than
    the trained one interpolates the position table.
    """
    name = ALIASES.get(name, name)
    config, sources = _described(name)
    path = resolve_weights(name, weights, sources, download=download)
    if path and uses_quick_gelu(path):
        config["quick_gelu"] = True
    if image_size is not None:
        check_image_size(image_size, int(config["vision_cfg"].get("patch_size") or 1), name)
        config["vision_cfg"] = {**config["vision_cfg"], "image_size": image_size}
    clip = _build(config, name=name, meta=path is not None)
    if path:
        _load(clip, path)
    depth = len(clip.visual.transformer.resblocks)
    outputs = output_names(layers, depth=depth, named=NAMED_OUTPUTS, default=("pooled", "patch_tokens"), owner=name)
    weights_id = file_sha256(path) if path else "random"
    if path and name.endswith(".json"):  # the same tensors mean something else under another config or word list
        weights_id += f"+{file_sha256(Path(name))[:16]}"
    return ClipBackbone(clip, _tokenizer(config), name=name, outputs=outputs, weights_id=weights_id, config=config)


def _described(name: str) -> tuple[dict[str, Any], list[WeightSource]]:
    """The open_clip style config of ``name`` (a copy) and where its weights are published."""
    if name == "tiny-clip":
        return json.loads(json.dumps(TINY)), []
    if name == DEMO or name.endswith(".json"):
        file = DEMO_FILE if name == DEMO else Path(name)
        if not file.is_file():
            raise UserError(f"backbone {name}: {file} not found; give an open_clip style config file")
        config = json.loads(file.read_text(encoding="utf-8"))
        return {**config, **config.pop("model_cfg", {})}, [WeightSource(file=file.with_suffix(".safetensors"))]
    import open_clip

    architecture, _, tag = name.partition(":")
    config = open_clip.get_model_config(architecture)
    if config is None:
        near = get_close_matches(architecture, open_clip.list_models(), n=3, cutoff=0.4)
        known = ", ".join([DEMO, "resnet18", "dinov2-base", "timm:NAME", "any CLIP of open_clip", *near])
        raise UserError(f"no backbone called {name!r}; some that exist: {known}")
    tag = tag or DEFAULT_TAGS.get(architecture, "")
    published = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    if tag and not published:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
        raise UserError(f"{architecture} has no published weights {tag!r}; known: {known}")
    config["quick_gelu"] = bool(config.get("quick_gelu") or published.get("quick_gelu"))
    config.update({key: published[key] for key in ("mean", "std") if key in published})
    return config, _published(published, tag)


def _published(entry: Mapping[str, Any], tag: str) -> list[WeightSource]:
    """Web address first; the hub copy only where its name carries the same tag (open_clip's table has a slip)."""
    sources = [WeightSource(url=entry["url"])] if entry.get("url") else []
    hub = str(entry.get("hf_hub", "")).rstrip("/")
    if hub and (not sources or hub.endswith(tag)):
        sources += [
            WeightSource(hub=hub, filename=file)
            for file in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
        ]
    return sources


def _build(config: dict[str, Any], *, name: str, meta: bool) -> Any:
    """The open_clip module of ``config``: empty on the meta device, or with reproducible random weights."""
    from open_clip.model import CLIP, CustomTextCLIP

    vision, text = config["vision_cfg"], config["text_cfg"]
    if (
        vision.get("timm_model_name")
        or isinstance(vision["layers"], list)
        or vision.get("attentional_pool")
        or "multimodal_cfg" in config
    ):
        raise UserError(f"{name}: only CLIPs with a plain ViT image tower have taps; choose another architecture")
    foreign = [key for key in ("hf_model_name", "hf_tokenizer_name", "no_causal_mask") if text.get(key)]
    if foreign:  # their texts would be encoded without a complaint, and wrongly
        raise UserError(
            f"{name}: only causal text towers with CLIP's own tokenizer are read, not {foreign[0]}; choose another"
        )
    wanted = {
        key: config[key]
        for key in ("embed_dim", "vision_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias")
        if key in config
    }
    known = {key: value for key, value in text.items() if key not in ("words", "tokenizer_kwargs")}
    make = CustomTextCLIP if config.get("custom_text") else CLIP
    if meta:
        with torch.device("meta"):
            return make(**wanted, text_cfg=known)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # "random" names one network, so that features cached from it stay valid
        return make(**wanted, text_cfg=known)


def _load(clip: Any, path: Path) -> None:
    from open_clip.model import resize_pos_embed

    tensors = strip_prefix(read_state_dict(path), clip.state_dict().keys())
    table = tensors.get("visual.positional_embedding")
    if table is not None:
        tensors["visual.positional_embedding"] = table.float()  # half precision cannot be interpolated on a CPU
        resize_pos_embed(tensors, clip)
    load_into(clip, tensors, source=str(path), optional=("logit_bias",))
    tower = clip.text if hasattr(clip, "text") else clip
    if tower.attn_mask is not None:  # not part of the file; open_clip's own encode_text reads it
        tower.attn_mask = torch.full(tower.attn_mask.shape, float("-inf")).triu_(1)


def _tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    words = config["text_cfg"].get("words")
    return WordTokenizer(words) if words else _byte_pairs()


@cache
def _byte_pairs() -> ClipTokenizer:
    return ClipTokenizer()  # reading its vocabulary takes a second
