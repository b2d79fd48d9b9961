"""Every backbone answers what its own library's forward answers, and every tap what a hook on the original sees."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.backbones import create_backbone

pytestmark = pytest.mark.parity
# With the usual initialisation a tiny network's blocks hardly move their input; larger weights make errors visible.
GAIN = 3.0


def assert_same(found: Tensor, want: Tensor) -> None:
    """Largest difference below 1e-5 of the largest value (or of 1)."""
    assert found.shape == want.shape
    assert (found - want).abs().max() <= 1e-5 * want.abs().max().clamp(min=1)


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
    assert_same(short, context.grad)
    assert short.abs().sum() > 0


def test_shared_beginnings_equal_separate_prompts() -> None:
    backbone = create_backbone("tiny-clip", weights="random")
    enlarge(backbone.clip.transformer)
    text = backbone.text
    prefix = torch.randn(3, 5, 32, requires_grad=True)
    suffix = torch.randn(7, 9, 32)
    group = torch.tensor([0, 1, 2, 2, 1, 0, 0])
    end = torch.tensor([5, 8, 11, 12, 9, 6, 7])
    want = text.encode(torch.cat([prefix[group], suffix], dim=1), end)
    want.sum().backward()
    gradient = prefix.grad.clone()
    prefix.grad = None
    found = text.encode_shared(prefix, suffix, group, end)
    found.sum().backward()
    assert_same(found, want)
    assert_same(prefix.grad, gradient)


def test_tokens_equal_open_clip() -> None:
    import open_clip

    texts = ["", "A photo of a CAT.", "naive cafe, 3.5 mm &amp; more", "transistor with a misplaced lead " * 3]
    backbone = create_backbone("tiny-clip", weights="random")
    assert backbone.text.tokenize(texts).equal(open_clip.get_tokenizer("ViT-B-32")(texts))
    long = ["word " * 100]
    assert backbone.text.tokenize(long, truncate=True).equal(open_clip.get_tokenizer("ViT-B-32")(long))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_stages(name: str) -> None:
    import torchvision.models as zoo

    stages = ["layer1", "layer2", "layer3", "layer4"] if name == "resnet18" else ["features.3", "features.18"]
    backbone = create_backbone(name, weights="random", layers=[*stages, "pooled"])
    net = zoo.get_model(name, weights=None)
    state = {**net.state_dict(), **backbone.net.state_dict()}
    net.load_state_dict(state)
    net.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = hooked([net.get_submodule(stage) for stage in stages], lambda: net(images))
    found = backbone.encode(images)
    for stage, tensor in zip(stages, want, strict=True):
        assert_same(found[stage], tensor)
        assert backbone.dim_of(stage) == tensor.shape[1]
    assert_same(found["pooled"], want[-1].mean((2, 3)))
    early = create_backbone(name, weights="random", layers=stages[:1])
    assert sum(p.numel() for p in early.parameters()) < sum(p.numel() for p in backbone.parameters())
    assert_same(early.encode(images)[stages[0]], want[0])


@pytest.mark.parametrize(
    ("name", "taps"),
    [("vit_tiny_patch16_224", (2, 11)), ("vit_small_patch16_dinov3", (0, 3)), ("mobilenetv2_100", (1, 3))],
)
def test_timm_taps(name: str, taps: tuple[int, ...]) -> None:
    backbone = create_backbone(f"timm:{name}", weights="random", layers=[*taps, "pooled"], image_size=64)
    net: Any = backbone.net
    images = torch.randn(1, 3, 64, 64)
    found = backbone.encode(images)
    with torch.no_grad():
        assert_same(found["pooled"], net(images))
        blocks = [net.get_submodule(net.feature_info[i]["module"]) for i in taps]
        want = hooked(blocks, lambda: net(images))
    for index, tensor in zip(taps, want, strict=True):
        tensor = tensor[:, net.num_prefix_tokens :] if tensor.ndim == 3 else tensor
        assert_same(found[f"layer.{index}"], tensor)


@pytest.mark.parametrize("name", ["tiny-dinov2", "tiny-dinov3", "tiny-vjepa2", "tiny-ast"])
def test_transformers_hidden_states(name: str) -> None:
    backbone = create_backbone(name, weights="random", layers=(0, 1, "prefix.1", "tokens", "pooled"))
    net: Any = backbone.net
    enlarge(net)
    shapes = {"tiny-vjepa2": (2, 4, 3, 32, 32), "tiny-ast": (2, 64, 32)}
    batch = torch.randn(shapes.get(name, (2, 3, 32, 32)))
    found = backbone.encode(batch)
    extra = {"skip_predictor": True} if name == "tiny-vjepa2" else {}
    with torch.no_grad():
        want = net(batch, output_hidden_states=True, **extra)
    assert_same(found["tokens"], want.last_hidden_state)
    whole = torch.cat([found["prefix.1"], found["layer.1"]], dim=1)
    first = backbone.prefix_tokens
    assert_same(found["layer.0"], want.hidden_states[1][:, first:])
    if name != "tiny-dinov2" and name != "tiny-dinov3":
        norm = net.layernorm if name == "tiny-ast" else net.encoder.layernorm
        assert_same(norm(whole), want.last_hidden_state)
    if getattr(want, "pooler_output", None) is not None:
        assert_same(found["pooled"], want.pooler_output)


def test_grey_video_is_repeated() -> None:
    backbone = create_backbone("tiny-vjepa2", weights="random", layers=("tokens",))
    grey = torch.rand(1, 4, 1, 32, 32)
    assert_same(backbone.encode(grey)["tokens"], backbone.encode(grey.repeat(1, 1, 3, 1, 1))["tokens"])
