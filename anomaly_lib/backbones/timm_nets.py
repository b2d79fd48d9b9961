"""Any image network of timm by name, with block or stage taps."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.backbones.base import FrozenBackbone, Layer, output_names
from anomaly_lib.backbones.sources import WeightSource, resolve_weights
from anomaly_lib.backbones.weights import file_sha256, load_into, read_state_dict, strip_prefix
from anomaly_lib.errors import UserError


class TimmBackbone(FrozenBackbone):
    """A timm network. Transformers answer tokens ``[B, P, C]``, convolutional networks maps ``[B, C, H, W]``.

    ``layer.N`` is block N of a transformer or stage N of a convolutional network; ``pooled`` what the head would get;
    ``patch_tokens`` the normed patch rows, ``normed.N`` those of block N behind the same norm (transformers only).
    """

    def __init__(
        self, net: Any, *, name: str, outputs: Sequence[str], weights_id: str, image_size: tuple[int, int]
    ) -> None:
        from timm.layers import to_2tuple

        about = net.pretrained_cfg
        patch = to_2tuple(net.patch_embed.patch_size)[0] if is_transformer(net) else None
        super().__init__(
            name=name,
            outputs=outputs,
            weights_id=weights_id,
            image_size=image_size,
            embed_dim=int(getattr(net, "head_hidden_size", net.num_features)),  # the head may widen what it pools
            width=int(net.num_features),
            patch_size=patch,
            mean=tuple(about["mean"]),
            std=tuple(about["std"]),
            interpolation=about.get("interpolation", "bicubic"),
        )
        self.net: Any = net
        self._taps = sorted({int(name.partition(".")[2]) for name in outputs if name.startswith(("layer.", "normed."))})
        self._needs_end = not self._taps or "pooled" in outputs or "patch_tokens" in outputs
        self.freeze()

    def dim_of(self, output: str) -> int:
        """Channels of one output."""
        if output.startswith("layer."):
            return int(self.net.feature_info[int(output.removeprefix("layer."))]["num_chs"])
        return self.embed_dim if output == "pooled" else self.width

    def _encode(self, batch: Tensor) -> dict[str, Tensor]:
        tokens = is_transformer(self.net)
        if self._taps:
            final, taps = self.net.forward_intermediates(
                batch,
                indices=self._taps,
                output_fmt="NLC" if tokens else "NCHW",
                stop_early=not self._needs_end,
            )
        else:
            final, taps = self.net.forward_features(batch), []
        out = {f"layer.{index}": tap for index, tap in zip(self._taps, taps, strict=True)}
        for name in self.outputs:
            if name.startswith("normed."):
                out[name] = self.net.norm(out[name.replace("normed", "layer")])
        if "pooled" in self.outputs:
            out["pooled"] = self.net.forward_head(final, pre_logits=True)
        if tokens:
            out["patch_tokens"] = final[:, self.net.num_prefix_tokens :]
        return out


def is_transformer(net: Any) -> bool:
    """Plain vision transformers keep a token sequence; everything else keeps maps."""
    return hasattr(net, "blocks") and hasattr(net, "num_prefix_tokens") and hasattr(net, "patch_embed")


def create_timm(
    name: str,
    *,
    weights: str | Path | None = None,
    layers: Sequence[Layer] | None = None,
    image_size: int | tuple[int, int] | None = None,
    download: bool = False,
) -> TimmBackbone:
    """A frozen timm network, such as ``"vit_tiny_patch16_224"`` or ``"mobilenetv2_100"``."""
    import timm

    published = timm.get_pretrained_cfg(name)
    if published is None:
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:8])
        raise UserError(f"timm has no network {name!r}; near that name: {near or 'nothing (see timm.list_models())'}")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    make = partial(timm.create_model, name, pretrained=False, num_classes=0)
    hub = published.hf_hub_id or ""
    sources = [WeightSource(hub=hub, filename="model.safetensors")] if hub else []
    path = resolve_weights(name, weights, sources, download=download)
    net = (_empty(make, size) if path else None) or _random(make, size)
    if path:
        tensors = strip_prefix(read_state_dict(path), net.state_dict().keys())
        convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
        if convert:  # timm's own renames, and position tables resized to this image size
            tensors = convert({key: value.float() for key, value in tensors.items()}, net)
        load_into(net, tensors, source=str(path))
    depth = len(net.feature_info)
    named = ("pooled", "patch_tokens", "normed.*") if is_transformer(net) else ("pooled",)
    default = named[:2] if is_transformer(net) else (f"layer.{depth - 3}", f"layer.{depth - 2}")
    outputs = output_names(layers, depth=depth, named=named, default=default, owner=name)
    weights_id = file_sha256(path) if path else "random"
    trained = tuple(net.pretrained_cfg["input_size"][-2:])
    return TimmBackbone(net, name=f"timm:{name}", outputs=outputs, weights_id=weights_id, image_size=size or trained)


def _sized(make: Callable[..., Any], size: tuple[int, int] | None) -> Any:
    """Transformers are made for one image size, the others take any."""
    net = make()
    return make(img_size=size) if size and is_transformer(net) else net


def _random(make: Callable[..., Any], size: tuple[int, int] | None) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # "random" names one network, so that features cached from it stay valid
        return _sized(make, size)


def _empty(make: Callable[..., Any], size: tuple[int, int] | None) -> Any:
    """The network on the meta device, which takes no memory, ready for weights; None where timm cannot do that."""
    try:
        with torch.device("meta"):
            net = _sized(make, size)
    except RuntimeError:  # reads values while it builds
        return None
    stored = net.state_dict().keys()
    for prefix, module in net.named_modules():
        # Tables that are in no file (rotary periods, relative positions) follow from the sizes.
        tables = {k: v for k, v in module.named_buffers(prefix, recurse=False) if k not in stored}
        if tables and not hasattr(module, "init_non_persistent_buffers"):
            return None
        if tables:
            for key, value in tables.items():
                setattr(module, key.rpartition(".")[2], torch.empty_like(value, device="cpu"))
            module.init_non_persistent_buffers()
    return None if any(v.is_meta for k, v in net.named_buffers() if k not in stored) else net
