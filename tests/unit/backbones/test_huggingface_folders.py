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
from tests.support.published import FORMATS, published


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


def test_config_and_vocabulary_are_part_of_the_identity(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path)
    first = create_backbone("matscibert", weights=folder).weights_id
    assert create_backbone("matscibert", weights=folder / "model.safetensors").weights_id == first
    for file in ("vocab.txt", "config.json"):
        (folder / file).write_text((folder / file).read_text() + "\n")
        changed = create_backbone("matscibert", weights=folder).weights_id
        assert changed != first
        first = changed


def bert_folder(folder: Path) -> Path:
    """A published folder of a tiny BERT with a vocabulary of eight words."""
    net: Any = create_backbone("tiny-bert", weights="random")
    save_file({f"bert.{k}": v.contiguous() for k, v in net.net.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**KNOWN["tiny-bert"].config, "model_type": "bert"}))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "iron", "oxide", "steel"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def test_texts_need_the_vocabulary_of_the_weights(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path)
    backbone: Any = create_backbone("matscibert", weights=folder, layers=("tokens",))
    with torch.no_grad():
        want = backbone.net(input_ids=torch.tensor([[2, 5, 6, 3]])).last_hidden_state
    torch.testing.assert_close(backbone.encode_texts(["Iron oxide"])["tokens"], want)
    (folder / "vocab.txt").unlink()
    for place in (folder, folder / "model.safetensors"):
        with pytest.raises(UserError, match=r"vocab\.txt or tokenizer\.json"):
            create_backbone("matscibert", weights=place).encode_texts(["Iron oxide"])  # type: ignore[attr-defined]


def test_bare_text_weights_ask_for_the_folder(tmp_path: Path) -> None:
    net: Any = create_backbone("tiny-bert", weights="random")
    save_file({k: v.contiguous() for k, v in net.net.state_dict().items()}, tmp_path / "bare.safetensors")
    bare: Any = create_backbone("tiny-bert", weights=tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match=r"config\.json and vocab\.txt"):
        bare.encode_texts(["Iron oxide"])


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


def test_a_file_of_another_size_is_refused_in_one_line(tmp_path: Path) -> None:
    net: Any = create_backbone("tiny-dinov2", weights="random")
    save_file({key: value.contiguous() for key, value in net.net.state_dict().items()}, tmp_path / "tiny.safetensors")
    with pytest.raises(UserError, match=r"tiny\.safetensors: its tensors do not fit") as refused:
        create_backbone("dinov2-small", weights=str(tmp_path / "tiny.safetensors"))
    assert "\n" not in str(refused.value)
