"""Weight files of every usual format load; wrong ones are refused with one line that names the remedy."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from anomaly_lib.backbones import create_backbone
from anomaly_lib.backbones.clip import DEMO_FILE, TINY
from anomaly_lib.backbones.weights import file_sha256, load_into, read_state_dict, strip_prefix
from anomaly_lib.errors import UserError
from scripts.convert_weights import convert
from tests.support.archives import save_archive

IMAGES = torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)


def changed_clip() -> dict[str, Tensor]:
    """A state dict with the names and shapes of open_clip, different from the random network of the same name."""
    state = create_backbone("tiny-clip", weights="random").clip.state_dict()
    torch.manual_seed(5)
    return {key: value + 0.05 * torch.randn_like(value) for key, value in state.items()}


def features(weights: Path | str, **options: Any) -> Tensor:
    return create_backbone("tiny-clip", weights=weights, layers=("pooled",), **options).encode(IMAGES)["pooled"]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return changed_clip()


@pytest.fixture(scope="module")
def expected(state: dict[str, Tensor]) -> Tensor:
    net = create_backbone("tiny-clip", weights="random", layers=("pooled",))
    net.clip.load_state_dict(state)
    return net.encode(IMAGES)["pooled"]


def spring(path: str) -> None:
    Path(path).touch()


class Trap:
    """Asks whoever unpickles it to call a function."""

    def __init__(self, function: Any, path: str) -> None:
        self.call = (function, (path,))

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Unknown:
    """Stands for a class of somebody's training code inside a checkpoint."""


@pytest.mark.parametrize("form", ["bare", "open_clip", "lightning", "wrapped", "safetensors", "hub folder", "shards"])
def test_forms(form: str, state: dict[str, Tensor], expected: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if form == "bare":
        torch.save(state, path)
    elif form == "open_clip":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": {}}, path)
    elif form == "lightning":
        inner = {f"net.clip_model.{k}": v for k, v in state.items()} | {"net.adapter.weight": torch.ones(2)}
        torch.save({"state_dict": inner, "hyper_parameters": {"net": Unknown()}}, path)
    elif form == "wrapped":
        torch.save({"model": {f"a.b.{k}": v for k, v in state.items()}}, path)
    elif form == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    elif form == "hub folder":
        path = tmp_path / "hub"
        path.mkdir()
        save_file(state, path / "open_clip_model.safetensors")
    else:
        path = tmp_path / "shards"
        path.mkdir()
        names = sorted(state)
        halves = {"a.bin": names[: len(names) // 2], "b.bin": names[len(names) // 2 :]}
        for file, keys in halves.items():
            torch.save({key: state[key] for key in keys}, path / file)
        index = {"weight_map": {key: file for file, keys in halves.items() for key in keys}}
        (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.testing.assert_close(features(path), expected)


def test_half_precision_file(state: dict[str, Tensor], expected: Tensor, tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pt")
    found = features(tmp_path / "half.pt")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert not found.equal(expected)


def test_openai_archive_brings_quick_gelu(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_archive({key: value.half() for key, value in state.items()}, tmp_path / "openai.pt")
    backbone: Any = create_backbone("tiny-clip", weights=tmp_path / "openai.pt", layers=("pooled",))
    half = {key: value.half().float() for key, value in state.items()}
    assert type(backbone.clip.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert set(backbone.clip.state_dict()) == set(half)
    for key, value in backbone.clip.state_dict().items():
        assert value.equal(half[key]), key


@pytest.mark.parametrize("form", ["archive", "own"])
def test_quick_gelu_survives_conversion(form: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    source, file = tmp_path / "openai.pt", tmp_path / "openai.safetensors"
    save_archive(state, source)
    convert(source, file)
    if form == "own":  # converting once more loses nothing
        convert(file, tmp_path / "again.safetensors", dtype="same")
        file = tmp_path / "again.safetensors"
    assert features(file).equal(features(source))
    torch.save(state, tmp_path / "plain.pt")
    assert not features(file).allclose(features(tmp_path / "plain.pt"), atol=1e-4)
    convert(tmp_path / "plain.pt", tmp_path / "plain.safetensors")
    assert features(tmp_path / "plain.safetensors").equal(features(tmp_path / "plain.pt"))


def test_config_and_words_are_part_of_the_identity(tmp_path: Path) -> None:
    config = {**TINY, "text_cfg": {**TINY["text_cfg"], "vocab_size": 6, "words": ["metal", "plate"]}}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(config))
    net: Any = create_backbone(str(file), weights="random")
    assert net.is_random
    save_file(net.clip.state_dict(), tmp_path / "mine.safetensors")
    first = create_backbone(str(file))
    assert first.weights_id.startswith(file_sha256(tmp_path / "mine.safetensors"))
    assert not first.is_random
    assert create_backbone(str(file)).weights_id == first.weights_id
    config["text_cfg"]["words"] = ["plate", "metal"]
    file.write_text(json.dumps(config))
    assert create_backbone(str(file)).weights_id != first.weights_id
    assert create_backbone(str(file), weights="random").weights_id == net.weights_id == "random"  # as results mark it
    assert create_backbone("demo-clip").weights_id == file_sha256(DEMO_FILE.with_suffix(".safetensors"))


def test_other_image_size_interpolates_positions(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    backbone: Any = create_backbone("tiny-clip", weights=tmp_path / "weights.safetensors", image_size=96)
    assert backbone.grid == (6, 6)
    table = backbone.clip.visual.positional_embedding
    torch.testing.assert_close(table[0], state["visual.positional_embedding"][0])
    torch.testing.assert_close(table[1:].mean(0), state["visual.positional_embedding"][1:].mean(0), rtol=0, atol=0.02)


def test_safetensors_are_mapped_not_copied(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    net: Any = create_backbone("tiny-clip", weights=path).clip
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    low, high = (int(edge, 16) for edge in mapped[0].split()[0].split("-"))
    assert low <= net.visual.conv1.weight.data_ptr() < high


def test_random_is_one_network_and_says_so() -> None:
    torch.manual_seed(1)
    first = create_backbone("tiny-clip", weights="random", layers=(0,))
    torch.manual_seed(2)
    second = create_backbone("tiny-clip", weights="random", layers=(0,))
    assert first.is_random
    assert first.encode(IMAGES)["layer.0"].equal(second.encode(IMAGES)["layer.0"])


def test_identity_is_the_checksum_of_the_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    backbone = create_backbone("tiny-clip", weights=tmp_path / "weights.safetensors")
    assert backbone.weights_id == file_sha256(tmp_path / "weights.safetensors")
    assert not backbone.is_random


def test_refusals_name_the_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "garbage.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "garbage.safetensors").write_bytes(b"not a checkpoint")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    short = {key: value for key, value in state.items() if key != "visual.proj"}
    torch.save(short, tmp_path / "short.pt")
    torch.save({**state, "visual.proj": torch.zeros(3, 3)}, tmp_path / "shape.pt")
    for name, reason in {
        "garbage.pt": "not a readable",
        "garbage.safetensors": "not a readable",
        "empty.pt": "holds no tensors",
        "short.pt": "1 of .* missing, first 'visual.proj'",
        "shape.pt": "visual.proj has shape",
    }.items():
        with pytest.raises(UserError, match=f"{name}.*{reason}"):
            create_backbone("tiny-clip", weights=tmp_path / name)


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    weights = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    torch.save({"state_dict": weights, "trap": Trap(spring, str(tmp_path / "sprung"))}, tmp_path / "trap.pt")
    assert set(read_state_dict(tmp_path / "trap.pt")) == {"weight", "bias"}
    torch.save({"state_dict": weights, "trap": Trap(os.mkdir, str(tmp_path / "sprung"))}, tmp_path / "os.pt")
    with pytest.raises(UserError, match="foreign code"):
        read_state_dict(tmp_path / "os.pt")
    assert not (tmp_path / "sprung").exists()


def test_prefix_is_found_by_most_matches() -> None:
    wanted = ["a.weight", "a.bias", "b.weight"]
    found = {f"x.y.{name}": torch.ones(1) for name in wanted} | {"ema.a.weight": torch.zeros(1)}
    assert sorted(strip_prefix(found, wanted)) == sorted(wanted)
    assert strip_prefix({"a.weight": torch.ones(1)}, wanted).keys() == {"a.weight"}


@pytest.mark.parametrize(
    ("prefix", "decoder"),
    [("model.feature_extractor.feature_extractor.", ""), ("model.encoder.feature_extractor.", "model.decoder.")],
)
def test_encoder_inside_an_anomalib_checkpoint(prefix: str, decoder: str, tmp_path: Path) -> None:
    torch.manual_seed(6)
    net: Any = create_backbone("resnet18", weights="random", layers=("layer1", "layer3"))
    for value in net.net.state_dict().values():
        value.add_(0.1 * torch.rand(value.shape)) if value.is_floating_point() else value.add_(1)
    state = {prefix + key: value for key, value in net.net.state_dict().items()}
    if decoder:  # reverse distillation: a network of the same names and shapes beside the encoder
        layers = ((k, v) for k, v in net.net.state_dict().items() if k.startswith("layer"))
        state = {decoder + key: torch.zeros_like(value) for key, value in layers} | state
    torch.save({"state_dict": {**state, "model.memory_bank": torch.ones(2, 3)}}, tmp_path / "model.ckpt")
    loaded = create_backbone("resnet18", weights=tmp_path / "model.ckpt", layers=("layer1", "layer3"))
    for name, value in loaded.encode(IMAGES).items():
        torch.testing.assert_close(value, net.encode(IMAGES)[name])


def test_batch_norm_counters_may_be_missing() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3))
    state = {k: v + 2 for k, v in net.state_dict().items() if "num_batches" not in k}
    load_into(net, state, source="old.pth")
    loaded = net.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert loaded["0.num_batches_tracked"] == 0


def test_what_a_file_may_lack_leaves_the_meta_device() -> None:
    with torch.device("meta"):
        net = nn.Linear(3, 2)
    load_into(net, {"weight": torch.ones(2, 3)}, source="old.pth", optional=("bias",))
    assert net.bias.equal(torch.zeros(2))
    assert net.weight.equal(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("resnet18", ("layer9",), "no output 'layer9'"),
        ("tiny-clip", (7,), "blocks 0..3"),
        ("tiny-clip", ("tokens",), "choose block numbers"),
        ("no-such-net", None, "no backbone called 'no-such-net'"),
        ("timm:no_such_net", None, "timm has no network"),
        ("ViT-B-16:nobody", None, "no published weights 'nobody'"),
        ("RN50:openai", None, "plain ViT image tower"),
        ("ViT-L-14-CLIPA", None, "not hf_tokenizer_name"),
        ("ViT-H-14-worldwide", None, "not hf_tokenizer_name"),
        ("roberta-ViT-B-32", None, "not hf_model_name"),
    ],
)
def test_wrong_names(name: str, layers: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_backbone(name, weights="random", layers=layers)


def test_spectrogram_with_swapped_axes_is_refused() -> None:
    backbone = create_backbone("tiny-ast", weights="random", layers=("pooled",))
    with pytest.raises(UserError, match="axes are swapped"):
        backbone.encode(torch.zeros(1, 32, 64))


def test_odd_frames_are_refused() -> None:
    backbone = create_backbone("tiny-vjepa2", weights="random")
    with pytest.raises(UserError, match="even number"):
        backbone.encode(torch.zeros(1, 5, 3, 32, 32))
