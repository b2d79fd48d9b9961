"""Every backbone answers what its own library's forward answers, and every tap what a hook on the original sees."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.backbones import create_backbone
from anomaly_lib.backbones.convnets import CONVNETS
from anomaly_lib.backbones.huggingface import block_list
from anomaly_lib.backbones.top_blocks import cut_top
from anomaly_lib.backbones.torchvision_nets import ADDRESS, NETS, PUBLISHED

pytestmark = pytest.mark.parity
# With the usual initialisation a tiny network's blocks hardly move their input; larger weights make errors visible.
GAIN = 3.0


def assert_same(found: Tensor, want: Tensor, share: float = 1e-5) -> None:
    """Largest difference below ``share`` of the largest value (or of 1)."""
    assert found.shape == want.shape
    assert (found - want).abs().max() <= share * want.abs().max().clamp(min=1)


def enlarge(net: nn.Module, gain: float = GAIN) -> None:
    torch.manual_seed(1)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(gain)
        else:
            parameter.data.add_(0.1 * torch.randn_like(parameter))


def hooked(blocks: nn.ModuleList | list[nn.Module], run: Any) -> list[Tensor]:
    seen: list[Tensor] = []
    keep = lambda _m, _i, out: seen.append(out if isinstance(out, Tensor) else out[0])  # noqa: E731
    handles = [block.register_forward_hook(keep) for block in blocks]
    run()
    for handle in handles:
        handle.remove()
    return seen


def check_clip(name: str, gain: float) -> None:
    backbone = create_backbone(name, weights="random", layers=(0, -2, -1, "pooled", "patch_tokens"))
    net: Any = backbone.clip
    enlarge(net.visual, gain)
    images = torch.randn(2, 3, *backbone.image_size)
    with torch.no_grad():
        net.visual.output_tokens = True
        pooled, tokens = net.visual(images)
        net.visual.output_tokens = False
        blocks = hooked(net.visual.transformer.resblocks, lambda: net.encode_image(images))
    found = backbone.encode(images)
    assert_same(found["pooled"], pooled)
    assert_same(found["patch_tokens"], tokens @ net.visual.proj)
    for index in (0, len(blocks) - 2, len(blocks) - 1):
        assert_same(found[f"layer.{index}"], blocks[index][:, 1:])


def test_clip_equals_open_clip() -> None:
    check_clip("tiny-clip", gain=GAIN)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-16-plus-240", "ViT-B-16:openai", "ViT-L-14-336"])
def test_full_size_clip_equals_open_clip(name: str) -> None:
    check_clip(name, gain=1.0)


def test_value_value_path_by_hand() -> None:
    backbone = create_backbone("tiny-clip", weights="random", layers=("vv_tokens", "next_attn.1", "next_attn.3", 3))
    visual: Any = backbone.clip.visual
    enlarge(visual)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        x = visual._embeds(images)
        total, states = x.clone(), []
        for block in visual.transformer.resblocks:
            normed = block.ln_1(x)
            _, _, v = F.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
            heads = []
            for head in v.split(16, dim=-1):  # head width of tiny-clip
                heads.append((head @ head.transpose(1, 2) * 16**-0.5).softmax(-1) @ head)
            total = total + block.attn.out_proj(torch.cat(heads, -1))
            x = x + block.attention(normed)
            states.append(x)
            x = x + block.mlp(block.ln_2(x))
        dense = visual.ln_post(total[:, 1:]) @ visual.proj
    found = backbone.encode(images)
    assert_same(found["vv_tokens"], dense)
    assert_same(found["next_attn.1"], states[2][:, 1:])
    assert_same(found["next_attn.3"], found["layer.3"])


def test_truncated_text_equals_all_77_tokens() -> None:
    backbone = create_backbone("tiny-clip", weights="random")
    net: Any = backbone.clip
    enlarge(net.transformer)
    texts = ["metal plate", "a close-up photo of a scratched metal plate with a dark stain", "x"]
    ids = backbone.text.tokenize(texts)
    with torch.no_grad():
        want = net.encode_text(ids)
        per_block = hooked(net.transformer.resblocks, lambda: net.encode_text(ids))
    assert_same(backbone.text.encode_text(texts), want)
    end = backbone.text.end_of_text(ids)
    pooled, taps = backbone.text.encode_layers(backbone.text.embed(ids), end, layers=(0, -1))
    assert_same(pooled, want)
    length = int(end.max()) + 1
    assert length < 77
    assert_same(taps[1], per_block[1][:, :length])


def test_gradient_through_truncated_text_equals_full() -> None:
    backbone = create_backbone("tiny-clip", weights="random")
    net: Any = backbone.clip
    enlarge(net.transformer)
    ids = backbone.text.tokenize(["N N N cable", "N N N cable with a bent wire"])
    end = backbone.text.end_of_text(ids)
    context = torch.randn(3, 32, requires_grad=True)
    plain = backbone.text.embed(ids)
    prompt = torch.cat([plain[:, :1], context.expand(2, -1, -1), plain[:, 4:]], dim=1)
    backbone.text.encode(prompt, end).square().sum().backward()
    short = context.grad.clone()
    context.grad = None
    x = net.transformer(prompt + net.positional_embedding, attn_mask=net.attn_mask)
    (net.ln_final(x)[torch.arange(2), end] @ net.text_projection).square().sum().backward()
    assert_same(short, context.grad, share=3e-5)  # two sums over the enlarged network, in another order on each CPU
    assert short.abs().sum() > 0


def test_tokens_equal_open_clip() -> None:
    import open_clip

    texts = ["", "A photo of a CAT.", "naive cafe, 3.5 mm &amp; more", "transistor with a misplaced lead " * 3]
    backbone = create_backbone("tiny-clip", weights="random")
    assert backbone.text.tokenize(texts).equal(open_clip.get_tokenizer("ViT-B-32")(texts))
    long = ["word " * 100]
    assert backbone.text.tokenize(long, truncate=True).equal(open_clip.get_tokenizer("ViT-B-32")(long))


@pytest.mark.parametrize("name", NETS)
def test_torchvision_parts_are_drawn_alike_and_published_alike(name: str) -> None:
    import torchvision.models as zoo

    torch.manual_seed(3)
    wanted = zoo.get_model(name, weights=None).state_dict()
    torch.manual_seed(3)
    found = CONVNETS[name]().state_dict()
    assert list(found) == list(wanted)
    kept = {key: value for key, value in wanted.items() if not key.startswith("classifier.")}  # the head is cut off
    assert all(found[key].equal(value) for key, value in kept.items())
    assert zoo.get_model_weights(name).IMAGENET1K_V1.url == ADDRESS + PUBLISHED[name]


def stir_norms(net: nn.Module) -> None:
    """Give batch norms what trained ones have: no mean is 0, no variance 1."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.running_mean, norm.bias.data):
                tensor.normal_(0, 0.1)
            for tensor in (norm.running_var, norm.weight.data):
                tensor.uniform_(0.5, 1.5)


@pytest.mark.parametrize("name", NETS)
def test_torchvision_stages(name: str) -> None:
    import torchvision.models as zoo

    stages = ["features.3", "features.18"] if name == "mobilenet_v2" else ["layer1", "layer2", "layer3", "layer4"]
    backbone = create_backbone(name, weights="random", layers=[*stages, "pooled"])
    net = zoo.get_model(name, weights=None)
    stir_norms(net)
    net.eval()
    backbone.net.load_state_dict(net.state_dict(), strict=False)  # what is folded follows what is loaded
    setattr(net, "classifier" if name == "mobilenet_v2" else "fc", nn.Identity())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = hooked([net.get_submodule(stage) for stage in stages], lambda: net(images))
        pooled = net(images)
    found = backbone.encode(images)
    for stage, tensor in zip(stages, want, strict=True):
        assert_same(found[stage], tensor)
        assert backbone.dim_of(stage) == tensor.shape[1]
    assert_same(found["pooled"], pooled)
    assert backbone.dim_of("pooled") == pooled.shape[1]
    early = create_backbone(name, weights="random", layers=stages[:1])
    assert sum(p.numel() for p in early.parameters()) < sum(p.numel() for p in backbone.parameters())
    early.net.load_state_dict(net.state_dict(), strict=False)
    assert_same(early.encode(images)[stages[0]], want[0])


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("vit_tiny_patch16_224", (2, 11)),
        ("vit_small_patch14_reg4_dinov2", (0, 11)),
        ("vit_small_patch16_dinov3", (0, 3)),
        ("xcit_nano_12_p16_224", (0, 11)),  # states its patch size as one number
        ("mobilenetv2_100", (1, 3)),
        ("mobilenetv3_small_050", (0, 3)),  # heads that widen what they pool
        ("mobilenetv4_conv_small", (1, 3)),
    ],
)
def test_timm_taps(name: str, taps: tuple[int, ...]) -> None:
    backbone = create_backbone(
        f"timm:{name}", weights="random", layers=[*taps, "pooled"], image_size=64 - 8 * ("14" in name)
    )
    net: Any = backbone.net
    images = torch.randn(1, 3, *backbone.image_size)
    found = backbone.encode(images)
    with torch.no_grad():
        assert_same(found["pooled"], net(images))
        blocks = [net.get_submodule(net.feature_info[i]["module"]) for i in taps]
        want = hooked(blocks, lambda: net(images))
        final = net.forward_features(images)
    for index, tensor in zip(taps, want, strict=True):
        tap = found[f"layer.{index}"]
        assert_same(tap, tensor[:, -tap.shape[1] :] if tensor.ndim == 3 else tensor)
        assert backbone.dim_of(f"layer.{index}") == (tap.shape[-1] if tap.ndim == 3 else tap.shape[1])
    assert backbone.dim_of("pooled") == found["pooled"].shape[1]
    alone = create_backbone(f"timm:{name}", weights="random", layers=["pooled"], image_size=backbone.image_size)
    assert_same(alone.encode(images)["pooled"], found["pooled"])
    if final.ndim == 3:
        ends = create_backbone(
            f"timm:{name}", weights="random", layers=["patch_tokens"], image_size=backbone.image_size
        )
        assert_same(ends.encode(images)["patch_tokens"], final[:, net.num_prefix_tokens :])
        assert ends.grid == (4, 4)
        assert final.shape[1] - net.num_prefix_tokens == 16


@pytest.mark.parametrize("name", ["tiny-dinov2", "tiny-dinov3", "tiny-vjepa2", "tiny-ast", "tiny-bert"])
def test_transformers_hidden_states(name: str) -> None:
    backbone = create_backbone(name, weights="random", layers=(0, 1, "prefix.1", "tokens", "pooled"))
    net: Any = backbone.net
    enlarge(net)
    shapes = {"tiny-vjepa2": (2, 4, 3, 32, 32), "tiny-ast": (2, 64, 32)}
    batch = torch.randn(shapes.get(name, (2, 3, 32, 32)))
    extra: dict[str, Any] = {"skip_predictor": True} if name == "tiny-vjepa2" else {}
    if name == "tiny-bert":
        batch = torch.tensor([[5, 9, 301, 7], [8, 4, 0, 0]])  # 0 pads
        extra["attention_mask"] = batch.ne(0)
    found = backbone.encode(batch)
    with torch.no_grad():
        want = net(batch, output_hidden_states=True, **extra)
    assert_same(found["tokens"], want.last_hidden_state)
    whole = torch.cat([found["prefix.1"], found["layer.1"]], dim=1)
    first = backbone.prefix_tokens
    assert_same(found["layer.0"], want.hidden_states[1][:, first:])
    norms = {
        "tiny-dinov2": "layernorm",
        "tiny-dinov3": "norm",
        "tiny-vjepa2": "encoder.layernorm",
        "tiny-ast": "layernorm",
    }
    normed = net.get_submodule(norms[name])(whole) if name in norms else whole  # bert ends without a norm
    assert_same(normed, want.last_hidden_state)
    assert found["prefix.1"].shape[1] == first
    if name == "tiny-bert":  # its pooler is another head
        assert_same(found["pooled"], want.last_hidden_state[:, 0])
    elif getattr(want, "pooler_output", None) is not None:
        assert_same(found["pooled"], want.pooler_output)


DEEP: dict[str, dict[str, Any]] = {
    "Dinov2": {"image_size": 32, "patch_size": 16},
    "DINOv3ViT": {"image_size": 32, "patch_size": 16, "num_register_tokens": 4, "intermediate_size": 64},
    "VJEPA2": {"crop_size": 32, "pred_hidden_size": 16, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 1},
    "AST": {"num_mel_bins": 32, "max_length": 64, "time_stride": 14, "frequency_stride": 14},
}
SHORT = {"Dinov2": "dinov2-base", "DINOv3ViT": "dinov3-vitb16", "VJEPA2": "vjepa2-vitl", "AST": "ast-14-14"}


@pytest.mark.parametrize("kind", sorted(DEEP))
def test_blocks_that_learn_equal_the_original_on_weight_files(kind: str, tmp_path: Path) -> None:
    """Four blocks in a folder as the hub has it: outputs above the cut, and gradients of the last two blocks."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, **DEEP[kind]}
    torch.manual_seed(0)
    net = getattr(transformers, f"{kind}Model")(config(**sizes)).eval()
    enlarge(net)
    net.save_pretrained(tmp_path)
    image = kind in ("Dinov2", "DINOv3ViT")
    asked = (1, "prefix.1", 3, "prefix.3") if image else ("tokens",)
    backbone = create_backbone(SHORT[kind], weights=tmp_path, layers=asked)
    top = cut_top(backbone, 2).requires_grad_(True)
    batch = torch.randn({"VJEPA2": (2, 4, 3, 32, 32), "AST": (2, 64, 32)}.get(kind, (2, 3, 32, 32)))
    low = backbone.encode(batch)
    found = top(low["tokens"], (32, 32))
    extra: dict[str, Any] = {"skip_predictor": True} if kind == "VJEPA2" else {}
    want = net(batch, output_hidden_states=True, **extra)
    first = backbone.prefix_tokens
    if image:
        assert_same(low["layer.1"], want.hidden_states[2][:, first:])
        assert list(found) == ["layer.3", "prefix.3"]
    mine = torch.cat([found["prefix.3"], found["layer.3"]], dim=1) if image else found["tokens"]
    theirs = want.hidden_states[4] if image else want.last_hidden_state
    assert_same(mine, theirs)
    mine.sin().mean().backward()
    theirs.sin().mean().backward()
    for ours, original in zip(top.blocks, block_list(net)[2:], strict=True):
        for (name, a), b in zip(ours.named_parameters(), original.parameters(), strict=True):
            assert a.grad is not None, name
            assert b.grad is not None, name
            assert_same(a.grad, b.grad)


def test_grey_video_is_repeated() -> None:
    backbone = create_backbone("tiny-vjepa2", weights="random", layers=("tokens",))
    grey = torch.rand(1, 4, 1, 32, 32)
    assert_same(backbone.encode(grey)["tokens"], backbone.encode(grey.repeat(1, 1, 3, 1, 1))["tokens"])
