"""Frozen encoders of transformers: DINOv2, DINOv3, V-JEPA 2 (video), AST (audio) and BERT (text)."""

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.base import IMAGENET_MEAN, IMAGENET_STD, FrozenBackbone, Layer, last_block, output_names
from anomaly_lib.backbones.huggingface_names import KNOWN
from anomaly_lib.backbones.sources import WeightSource, resolve_weights
from anomaly_lib.backbones.weights import file_sha256, read_state_dict
from anomaly_lib.errors import UserError

NAMED_OUTPUTS = ("pooled", "tokens", "patch_tokens", "prefix.*")
FINAL_NORMS = {"dinov2": "layernorm", "dinov3": "norm", "vjepa2": "encoder.layernorm", "ast": "layernorm"}
_NORMED = ("dinov2", "dinov3")  # families that also answer "normed.N"
_FINAL = ("pooled", "tokens", "patch_tokens")
# Parts of published files that no forward pass of ours touches.
_UNUSED = ("predictor.", "pooler.", "embeddings.mask_token", "embeddings.position_ids")


class HuggingFaceBackbone(FrozenBackbone):
    """An encoder of transformers.

    Outputs: ``layer.N`` patch rows after block N (before the final norm), ``prefix.N`` the class and register rows of
    the same block, ``normed.N`` its patch rows behind the final norm (dinov2, dinov3), ``tokens`` the normed sequence
    with its prefix, ``patch_tokens`` without it, ``pooled`` the class token (dinov2, dinov3, bert), the mean of both
    class tokens (ast) or of all tokens (vjepa2).
    Inputs: images [B, 3, H, W]; video [B, T, 1 or 3, H, W]; spectrograms [B, time, mel]; texts by `encode_texts`.
    """

    def __init__(
        self, net: Any, *, family: str, name: str, outputs: Sequence[str], weights_id: str, folder: Path | None
    ) -> None:
        config = net.config
        image_size, patch = _image_geometry(family, config)
        audio = family == "ast"
        super().__init__(
            name=name,
            outputs=outputs,
            weights_id=weights_id,
            image_size=image_size,
            embed_dim=config.hidden_size,
            width=config.hidden_size,
            patch_size=patch,
            mean=(-4.2677393,) if audio else IMAGENET_MEAN,
            std=(2 * 4.5689974,) if audio else IMAGENET_STD,
            interpolation="bilinear" if family in ("dinov3", "vjepa2") else "bicubic",
        )
        self.net: Any = net
        self.family = family
        self._folder = folder
        self.ask(outputs)
        self.prefix_tokens = _prefix_tokens(family, config)
        self.freeze()

    def ask(self, outputs: Sequence[str]) -> None:
        """Answer these outputs from now on."""
        self.outputs, tapped = tuple(outputs), ("layer.", "prefix.", "normed.")
        self._taps = sorted({int(n.partition(".")[2]) for n in outputs if n.startswith(tapped)})

    def _encode(self, batch: Tensor) -> dict[str, Tensor]:
        return self._run(_FORWARD[self.family], batch)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], *, max_length: int = 512) -> dict[str, Tensor]:
        """`encode` for plain texts (bert only); adds the ``attention_mask`` [B, L] of the tokens."""
        if self.family != "bert":
            raise UserError(f"{self.name} reads no text; choose a text encoder such as matscibert")
        tokens = self._tokenize(texts, max_length)
        found = self._run(lambda net, batch: net(**batch), tokens)
        return {**{name: found[name] for name in self.outputs}, "attention_mask": tokens["attention_mask"]}

    def _run(self, forward: Callable[[Any, Any], Any], batch: Any) -> dict[str, Tensor]:
        taps: dict[int, Tensor] = {}

        def keep(index: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
                taps[index] = output if isinstance(output, Tensor) else output[0]

            return hook

        blocks = block_list(self.net)
        handles = [blocks[index].register_forward_hook(keep(index)) for index in self._taps]
        try:
            answer = forward(self.net, batch)
        finally:
            for handle in handles:
                handle.remove()
        first = self.prefix_tokens
        tokens = answer.last_hidden_state  # [B, prefix + P, C]
        out = {"tokens": tokens, "patch_tokens": tokens[:, first:], "pooled": _pool(self.family, tokens)}
        for index, state in taps.items():
            out[f"layer.{index}"], out[f"prefix.{index}"] = state[:, first:], state[:, :first]
            if f"normed.{index}" in self.outputs:
                out[f"normed.{index}"] = getattr(self.net, FINAL_NORMS[self.family])(state[:, first:])
        return out

    def _tokenize(self, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
        device = next(self.net.parameters()).device
        if self.is_random:
            return hashed_words(texts, vocab_size=self.net.config.vocab_size, max_length=max_length, device=device)
        if self._folder is None:
            raise UserError(
                f"{self.name}: texts need config.json and vocab.txt (or tokenizer.json) beside the weight file"
            )
        if not any((self._folder / file).is_file() for file in ("vocab.txt", "tokenizer.json")):
            raise UserError(
                f"{self._folder}: texts need the vocabulary of {self.name}: vocab.txt or tokenizer.json here"
            )
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(self._folder), local_files_only=True)
        found = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        return {key: value.to(device) for key, value in found.items()}


def hashed_words(texts: Sequence[str], *, vocab_size: int, max_length: int, device: torch.device) -> dict[str, Tensor]:
    """Stand-in tokens for a text encoder with random weights, which has no vocabulary: CRC-32 of each word."""
    rows = [[1, *(3 + zlib.crc32(w.encode()) % (vocab_size - 3) for w in t.lower().split()), 2] for t in texts]
    rows = [row[:max_length] for row in rows]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long, device=device)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, device=device)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def block_list(net: nn.Module) -> nn.ModuleList:
    """The transformer blocks, wherever this version of transformers keeps them."""
    lists = (
        m
        for n, m in net.named_modules()
        if isinstance(m, nn.ModuleList) and n.rpartition(".")[2] in ("layer", "layers")
    )
    return next(lists)


def _image(net: Any, images: Tensor) -> Any:
    return net(pixel_values=images)


def _video(net: Any, video: Tensor) -> Any:
    """[B, T, C, H, W]; grey video is repeated to three channels."""
    if video.ndim != 5 or video.shape[2] not in (1, 3):
        raise UserError(f"video must be [batch, time, 1 or 3, height, width], got {tuple(video.shape)}")
    if video.shape[1] % 2 and video.shape[1] > 1:
        raise UserError(
            f"V-JEPA 2 reads frames in pairs and would drop the last of {video.shape[1]}; give an even number"
        )
    return net(pixel_values_videos=video.expand(-1, -1, 3, -1, -1), skip_predictor=True)


def _audio(net: Any, mel: Tensor) -> Any:
    """[B, time, mel]. Swapped axes give as many tokens and nonsense, so they are refused."""
    expected = (net.config.max_length, net.config.num_mel_bins)
    found = tuple(mel.shape[1:])
    if found != expected:
        hint = "; the axes are swapped: transpose to time first" if found == expected[::-1] else ""
        raise UserError(f"AST reads spectrograms of {expected} (time, mel), got {found}{hint}")
    return net(input_values=mel)


_FORWARD: dict[str, Callable[[Any, Tensor], Any]] = {
    "dinov2": _image,
    "dinov3": _image,
    "vjepa2": _video,
    "ast": _audio,
    "bert": lambda net, ids: net(input_ids=ids, attention_mask=(ids != 0).long()),
}


def _pool(family: str, tokens: Tensor) -> Tensor:
    if family == "vjepa2":
        return tokens.mean(dim=1)
    if family == "ast":
        return tokens[:, :2].mean(dim=1)
    return tokens[:, 0]


def _prefix_tokens(family: str, config: Any) -> int:
    if family == "dinov3":
        return 1 + config.num_register_tokens
    return {"dinov2": 1, "vjepa2": 0, "ast": 2, "bert": 1}[family]


def _image_geometry(family: str, config: Any) -> tuple[tuple[int, int] | None, int | None]:
    if family in ("ast", "bert"):
        return None, None
    size = config.crop_size if family == "vjepa2" else config.image_size
    return (size, size), config.patch_size


def create_huggingface(
    name: str,
    *,
    weights: str | Path | None = None,
    layers: Sequence[Layer] | None = None,
    image_size: int | tuple[int, int] | None = None,
    download: bool = False,
) -> HuggingFaceBackbone:
    """A frozen encoder of transformers by short name (``"dinov2-base"``, ``"vjepa2-vitl"``, ``"ast-14-14"``, ...).

    ``weights`` is a folder as the hub has it (its config.json decides the sizes) or a bare weight file of the named
    network. Networks end behind the last block asked for. They take any image size; ``image_size`` is only recorded.
    """
    if name not in KNOWN:
        raise UserError(f"no backbone called {name!r}; transformers ones: {', '.join(KNOWN)}")
    known = KNOWN[name]
    path = resolve_weights(name, weights, [WeightSource(hub=known.hub)] if known.hub else [], download=download)
    config_class, model_class = _classes(known.family)
    folder = path if path is None or path.is_dir() else path.parent
    if folder is not None and (folder / "config.json").is_file():
        config = config_class(**_read_config(folder / "config.json", known.family))
    else:
        config, folder = config_class(**known.config), None
    depth = config.num_hidden_layers
    named = (*NAMED_OUTPUTS, "normed.*") if known.family in _NORMED else NAMED_OUTPUTS
    outputs = output_names(layers, depth=depth, named=named, default=("pooled", "patch_tokens"), owner=name)
    config.num_hidden_layers = last_block(outputs, depth=depth, final=_FINAL) + 1
    net = _load(model_class, config, path) if path else _random(model_class, config)
    net.predictor = nn.Identity() if hasattr(net, "predictor") else None
    weights_id = file_sha256(folder or path) if path else "random"  # config and vocabulary are part of it
    backbone = HuggingFaceBackbone(
        net, family=known.family, name=name, outputs=outputs, weights_id=weights_id, folder=folder
    )
    if image_size is not None:
        backbone.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return backbone


def _classes(family: str) -> tuple[Any, Any]:
    import transformers

    stems = {"dinov2": "Dinov2", "dinov3": "DINOv3ViT", "vjepa2": "VJEPA2", "ast": "AST", "bert": "Bert"}
    stem = stems[family]
    return getattr(transformers, f"{stem}Config"), getattr(transformers, f"{stem}Model")


def _read_config(path: Path, family: str) -> dict[str, Any]:
    described = json.loads(path.read_text(encoding="utf-8"))
    kinds = {
        "dinov2": "dinov2",
        "dinov3": "dinov3_vit",
        "vjepa2": "vjepa2",
        "ast": "audio-spectrogram-transformer",
        "bert": "bert",
    }
    kind = described.pop("model_type", kinds[family])
    if kind != kinds[family]:
        raise UserError(f"{path} describes a {kind}, not a {kinds[family]}; is this the folder of another network?")
    return described


def _random(model_class: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # "random" names one network, so that features cached from it stay valid
        return model_class(config)


def _load(model_class: Any, config: Any, path: Path) -> Any:
    """Through transformers' own loader, because it knows how parameter names moved between its versions."""
    tensors = {
        key: value.float() if value.is_floating_point() else value for key, value in read_state_dict(path).items()
    }
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar of its own inside a quick load would only tear the run's output
    try:
        net, report = model_class.from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True)
    except RuntimeError as error:  # tensors of other sizes
        raise UserError(f"{path}: its tensors do not fit; is this the file of another network?") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(_UNUSED))
    if missing:
        raise UserError(
            f"{path}: {len(missing)} tensors are missing, first {missing[0]!r}; is this the file of another network?"
        )
    return net
