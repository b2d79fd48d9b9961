"""Files that the libraries write themselves are read here, and answer as the library's own network does.

Small networks with random weights, saved by the library's own call. docs/manual/reliability.md: the versions.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomaly_lib.backbones import create_backbone

pytestmark = pytest.mark.parity
TEXTS = ["a photo of a metal plate", "a photo of a metal plate with a scratch", "x"]


def stirred(net: Any) -> Any:
    """Weights with which a small network's blocks move their input."""
    torch.manual_seed(1)
    for name, value in net.state_dict().items():
        if value.is_floating_point() and not name.endswith("running_var"):
            value.add_(0.1 * torch.randn_like(value) if value.ndim < 2 else 0.05 * torch.randn_like(value))
    return net.eval()


def assert_same(found: Tensor, want: Tensor) -> None:
    assert found.shape == want.shape
    assert want.std() > 1e-3
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5 * float(want.abs().max().clamp(min=1)))


# -- open_clip ---------------------------------------------------------------------------------------------------------

SMALL_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def check_clip(name: str, file: Path, net: Any) -> None:
    import open_clip

    ours: Any = create_backbone(name, weights=file)
    assert not ours.is_random
    images = torch.randn(2, 3, *ours.image_size)
    with torch.no_grad():
        assert_same(ours.encode(images)["pooled"], net.encode_image(images))
        assert_same(ours.text.encode_text(TEXTS), net.encode_text(open_clip.get_tokenizer("ViT-B-32")(TEXTS)))


@pytest.fixture
def small_clip(tmp_path: Path) -> tuple[str, Any]:
    """(configuration file, open_clip's network of that configuration)."""
    open_clip = pytest.importorskip("open_clip")
    (tmp_path / "small.json").write_text(json.dumps(SMALL_CLIP))
    open_clip.add_model_config(tmp_path / "small.json")
    return str(tmp_path / "small.json"), stirred(open_clip.create_model("small", pretrained=None))


def test_open_clip_state_dict(small_clip: tuple[str, Any], tmp_path: Path) -> None:
    name, net = small_clip
    torch.save(net.state_dict(), tmp_path / "epoch.pt")
    check_clip(name, tmp_path / "epoch.pt", net)
    training = {"epoch": 3, "name": "run", "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}
    torch.save(training, tmp_path / "epoch_3.pt")  # as open_clip_train leaves it
    check_clip(name, tmp_path / "epoch_3.pt", net)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_open_clip_folder_for_the_hub(suffix: str, small_clip: tuple[str, Any], tmp_path: Path) -> None:
    hub = pytest.importorskip("open_clip.push_to_hf_hub")
    name, net = small_clip

    class NoTokenizer:
        def save_pretrained(self, folder: Path) -> None: ...

    hub.save_for_hf(net, NoTokenizer(), SMALL_CLIP, str(tmp_path / "hub"), safe_serialization=suffix == "safetensors")
    check_clip(name, tmp_path / "hub", net)


def test_torchscript_archive_of_open_clip(small_clip: tuple[str, Any], tmp_path: Path) -> None:
    """OpenAI ships such archives, whose networks use QuickGELU."""
    import open_clip

    name, _ = small_clip
    net = stirred(open_clip.create_model("small", pretrained=None, force_quick_gelu=True))
    images, ids = torch.ones(2, 3, 64, 64), torch.zeros(2, 77, dtype=torch.int)
    traced = torch.jit.trace_module(  # open_clip's trace_model, which fails on the image size of its current networks
        net, {"forward": (images, ids), "encode_image": (images,), "encode_text": (ids,)}, check_trace=False
    )
    torch.jit.save(traced, str(tmp_path / "traced.pt"))
    check_clip(name, tmp_path / "traced.pt", net)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-16-plus-240", "ViT-B-16:openai"])
def test_open_clip_at_full_size(name: str, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    bare, _, tag = name.partition(":")
    net = open_clip.create_model(bare, pretrained=None, force_quick_gelu=tag == "openai").eval()
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    check_clip(name, tmp_path / "weights.pt", net)


# -- transformers ------------------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
# class -> (backbone here, options of its configuration, its input, where its body is)
CLASSES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "Dinov2Model": ("dinov2-base", {"image_size": 32, "patch_size": 8}, {"pixel_values": (2, 3, 32, 32)}, ""),
    "Dinov2ForImageClassification": (
        "dinov2-base", {"image_size": 32, "patch_size": 8}, {"pixel_values": (2, 3, 32, 32)}, "dinov2"
    ),
    "DINOv3ViTModel": (
        "dinov3-vitb16", {"image_size": 32, "patch_size": 8, "intermediate_size": 96, "num_register_tokens": 2},
        {"pixel_values": (2, 3, 32, 32)}, "",
    ),
    "VJEPA2Model": (
        "vjepa2-vitl", {"crop_size": 32, "patch_size": 8, "frames_per_clip": 4, "pred_hidden_size": 24,
                        "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2, "mlp_ratio": 2},
        {"pixel_values_videos": (1, 4, 3, 32, 32)}, "",
    ),
    "VJEPA2ForVideoClassification": (
        "vjepa2-vitl", {"crop_size": 32, "patch_size": 8, "frames_per_clip": 4, "pred_hidden_size": 24,
                        "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2, "mlp_ratio": 2},
        {"pixel_values_videos": (1, 4, 3, 32, 32)}, "vjepa2",
    ),
    "ASTModel": ("ast-14-14", {"max_length": 64, "num_mel_bins": 32}, {"input_values": (2, 64, 32)}, ""),
    "ASTForAudioClassification": (
        "ast-14-14", {"max_length": 64, "num_mel_bins": 32}, {"input_values": (2, 64, 32)},
        "audio_spectrogram_transformer",
    ),
    "BertModel": ("matscibert", {"vocab_size": 99}, {"input_ids": (2, 9)}, ""),
    "BertForMaskedLM": ("matscibert", {"vocab_size": 99}, {"input_ids": (2, 9)}, "bert"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_save_pretrained(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    backbone, options, inputs, body = CLASSES[name]
    kind = getattr(transformers, name)
    net = stirred(kind(kind.config_class(**SIZES, **options)))
    net.save_pretrained(tmp_path, max_shard_size="60KB")  # several files with an index, as large networks come
    assert (tmp_path / "model.safetensors.index.json").is_file()
    ((key, shape),) = inputs.items()
    batch = torch.randint(1, 99, shape) if key == "input_ids" else torch.randn(shape)
    more = {"skip_predictor": True} if name.startswith("VJEPA2") else {}
    with torch.no_grad():
        want = net.get_submodule(body)(**{key: batch}, **more)
    found = create_backbone(backbone, weights=tmp_path, layers=("tokens", "pooled")).encode(batch)
    assert_same(found["tokens"], want.last_hidden_state)
    pooled = getattr(want, "pooler_output", None)
    if pooled is not None and not name.startswith("Bert"):  # BERT's pooler is another head
        assert_same(found["pooled"], pooled)


def test_texts_through_a_saved_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "iron", "oxide", "##s", "steel"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path)
    net = stirred(transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=len(words))))
    net.save_pretrained(tmp_path)
    texts = ["Iron oxides", "steel"]
    with torch.no_grad():
        want = net(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state
    ours: Any = create_backbone("matscibert", weights=tmp_path, layers=("tokens",))
    assert_same(ours.encode_texts(texts)["tokens"], want)


# -- timm and torchvision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv2_100"])
def test_timm_folder_for_the_hub(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    net = stirred(timm.create_model(name, pretrained=False))
    timm.models.save_for_hf(net, str(tmp_path), safe_serialization=True)
    ours = create_backbone(f"timm:{name}", weights=tmp_path / "model.safetensors", layers=["pooled"])
    images = torch.randn(1, 3, *ours.image_size)
    with torch.no_grad():
        want = net.forward_head(net.forward_features(images), pre_logits=True)
    assert_same(ours.encode(images)["pooled"], want)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_file(name: str, tmp_path: Path) -> None:
    zoo = pytest.importorskip("torchvision.models")
    net = stirred(zoo.get_model(name, weights=None))
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    ours = create_backbone(name, weights=tmp_path / "weights.pth", layers=["pooled"])
    images = torch.randn(2, 3, 64, 64)
    setattr(net, "classifier" if name == "mobilenet_v2" else "fc", nn.Identity())
    with torch.no_grad():
        assert_same(ours.encode(images)["pooled"], net(images))
