"""Folders as the Hugging Face hub has them, under the key names the published files carry, and text encoders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anomaly_lib.backbones import create_backbone
from anomaly_lib.backbones.huggingface import hashed_words
from anomaly_lib.backbones.huggingface_names import KNOWN
from anomaly_lib.errors import UserError

OLD_ATTENTION = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
# family: model_type in config.json, renames from this transformers version to the published file, prefix, named network
FORMATS: dict[str, tuple[str, dict[str, str], str, str]] = {
    "dinov2": ("dinov2", OLD_ATTENTION, "", "dinov2-base"),
    "dinov3": ("dinov3_vit", {"model.layer.": "layer."}, "", "dinov3-vitb16"),
    "vjepa2": ("vjepa2", {}, "", "vjepa2-vitl"),
    "ast": (
        "audio-spectrogram-transformer",
        {**OLD_ATTENTION, "layers.": "encoder.layer.", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"},
        "audio_spectrogram_transformer.",
        "ast-14-14",
    ),
    "bert": ("bert", {}, "bert.", "matscibert"),
}


def published(key: str, renames: dict[str, str], prefix: str) -> str:
    for new, old in renames.items():
        key = key.replace(new, old)
    return prefix + key


def batch(family: str) -> Tensor:
    torch.manual_seed(2)
    if family == "bert":
        return torch.randint(1, 500, (2, 7))
    return torch.randn({"vjepa2": (2, 4, 3, 32, 32), "ast": (2, 64, 32)}.get(family, (2, 3, 32, 32)))


@pytest.mark.parametrize("family", sorted(FORMATS))
def test_published_folder(family: str, tmp_path: Path) -> None:
    kind, renames, prefix, name = FORMATS[family]
    source: Any = create_backbone(f"tiny-{family}", weights="random", layers=(0, "tokens", "pooled"))
    torch.manual_seed(4)
    for parameter in source.net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    state = {published(k, renames, prefix): v.contiguous() for k, v in source.net.state_dict().items()}
    state["predictor.norm.weight"] = torch.ones(3)  # parts nobody reads do not disturb
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**KNOWN[f"tiny-{family}"].config, "model_type": kind}))
    want = source.encode(batch(family))
    loaded = create_backbone(name, weights=tmp_path, layers=(0, "tokens", "pooled"))
    found = loaded.encode(batch(family))
    for key, value in want.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)
    assert not loaded.is_random
    incomplete = {key: value for key, value in state.items() if "norm" not in key.lower() or "predictor" in key}
    save_file(incomplete, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="tensors are missing"):
        create_backbone(name, weights=tmp_path)


def test_folder_of_another_network(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="describes a bert, not a dinov2"):
        create_backbone("dinov2-base", weights=tmp_path)


def test_text_encoder_reads_texts() -> None:
    backbone: Any = create_backbone("tiny-bert", weights="random", layers=("tokens", "pooled"))
    texts = ["Fe2O3 crystallises in a trigonal structure", "NaCl"]
    found = backbone.encode_texts(texts)
    ids = hashed_words(texts, vocab_size=512, max_length=512, device=torch.device("cpu"))
    with torch.no_grad():
        want = backbone.net(**ids).last_hidden_state
    torch.testing.assert_close(found["tokens"], want)
    torch.testing.assert_close(found["pooled"], want[:, 0])
    assert found["attention_mask"].sum(1).tolist() == [8, 3]
    alone = backbone.encode_texts(texts[1:])["pooled"]
    torch.testing.assert_close(alone[0], found["pooled"][1], rtol=1e-4, atol=1e-5)  # padding is not read
    with pytest.raises(UserError, match="reads no text"):
        create_backbone("tiny-ast", weights="random").encode_texts(texts)  # type: ignore[operator]
