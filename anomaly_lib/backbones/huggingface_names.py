"""The transformers encoders known by a short name, with sizes enough to build each without a download."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Known:
    """One published network: family, hub repository, and the sizes that let it be built without a download."""

    family: str
    hub: str
    config: Mapping[str, Any] = field(default_factory=dict)


def _dinov2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": 518,
        "patch_size": 14,
    }


def _dinov3(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": 224}
    return {"intermediate_size": 4 * hidden, "num_register_tokens": 4, "patch_size": 16, **sizes, **more}


_GATED = {"intermediate_size": 5120, "use_gated_mlp": True, "hidden_act": "silu"}
_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
_TINY_PREDICTOR = {"pred_hidden_size": 16, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 1}
_AST = {"num_mel_bins": 128, "max_length": 1024}

KNOWN: dict[str, Known] = {
    "dinov2-small": Known("dinov2", "facebook/dinov2-small", _dinov2(384, 12, 6)),
    "dinov2-base": Known("dinov2", "facebook/dinov2-base", _dinov2(768, 12, 12)),
    "dinov2-large": Known("dinov2", "facebook/dinov2-large", _dinov2(1024, 24, 16)),
    "dinov3-vits16": Known("dinov3", "facebook/dinov3-vits16-pretrain-lvd1689m", _dinov3(384, 12, 6)),
    "dinov3-vitb16": Known("dinov3", "facebook/dinov3-vitb16-pretrain-lvd1689m", _dinov3(768, 12, 12)),
    "dinov3-vitl16": Known("dinov3", "facebook/dinov3-vitl16-pretrain-lvd1689m", _dinov3(1024, 24, 16)),
    "dinov3-vith16plus": Known(
        "dinov3", "facebook/dinov3-vith16plus-pretrain-lvd1689m", _dinov3(1280, 32, 20, **_GATED)
    ),
    "vjepa2-vitl": Known("vjepa2", "facebook/vjepa2-vitl-fpc64-256"),
    "ast-14-14": Known(
        "ast", "MIT/ast-finetuned-audioset-14-14-0.443", {**_AST, "frequency_stride": 14, "time_stride": 14}
    ),
    "ast-10-10": Known(
        "ast", "MIT/ast-finetuned-audioset-10-10-0.4593", {**_AST, "frequency_stride": 10, "time_stride": 10}
    ),
    "matscibert": Known("bert", "m3rg-iitd/matscibert", {"vocab_size": 31090}),
    "tiny-dinov2": Known("dinov2", "", _TINY),
    "tiny-dinov3": Known("dinov3", "", {**_TINY, "intermediate_size": 64, "num_register_tokens": 4}),
    "tiny-vjepa2": Known("vjepa2", "", {**_TINY, **_TINY_PREDICTOR, "crop_size": 32, "mlp_ratio": 2}),
    "tiny-ast": Known(
        "ast",
        "",
        {
            **_TINY,
            "intermediate_size": 64,
            "num_mel_bins": 32,
            "max_length": 64,
            "time_stride": 14,
            "frequency_stride": 14,
        },
    ),
    "tiny-bert": Known(
        "bert",
        "",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "vocab_size": 512,
        },
    ),
}
