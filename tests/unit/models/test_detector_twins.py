"""The trained detectors' networks written down a second time, from their weights and torch.nn.functional alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anomaly_lib.models.detectors.configs import DraemSevNetConfig
from anomaly_lib.models.detectors.draem import DiscriminativeSubNetwork, Draem
from anomaly_lib.models.detectors.draem_sevnet import SeverityHead
from anomaly_lib.models.detectors.reverse_distillation import Bottleneck, Decoder, stage

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def stirred(module: nn.Module) -> nn.Module:
    """No number at its initial value, so that agreement means something."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1 if tensor.dim() < 2 else torch.randn_like(tensor) * 0.02)
    return module.eval()


class Weights:
    """Layers by their names in a state dict."""

    def __init__(self, module: nn.Module) -> None:
        self.w = module.state_dict()

    def norm(self, x, name):
        return F.batch_norm(x, *(self.w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    def conv(self, x, name, stride=1):
        kernel = self.w[f"{name}.weight"]
        return F.conv2d(x, kernel, self.w.get(f"{name}.bias"), stride, kernel.shape[-1] // 2)

    def unit(self, x, conv, norm):
        return F.relu(self.norm(self.conv(x, conv), norm))

    def mlp(self, x, name):
        for i in (0, 3, 6):
            x = x @ self.w[f"{name}.{i}.weight"].T + self.w[f"{name}.{i}.bias"]
            x = F.relu(x) if i < 6 else torch.sigmoid(x)
        return x[:, 0]


def segment_twin(net: DiscriminativeSubNetwork, pair):
    w = Weights(net)

    def double(x, name):
        return w.unit(w.unit(x, f"{name}.0", f"{name}.1"), f"{name}.3", f"{name}.4")

    acts = [double(pair, "encoder_segment.block1")]
    for i in range(2, 7):
        acts.append(double(F.max_pool2d(acts[-1], 2), f"encoder_segment.block{i}"))
    x = acts[5]
    for name, skip in (("_b", 4), ("1", 3), ("2", 2), ("3", 1), ("4", 0)):
        large = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        up = w.unit(large, f"decoder_segment.up{name}.1", f"decoder_segment.up{name}.2")
        x = double(torch.cat([up, acts[skip]], 1), f"decoder_segment.db{name}")
    return acts, w.conv(x, "decoder_segment.fin_out.0")


@torch.no_grad()
def test_draem_segmentation_and_score():
    model = stirred(Draem(repair_width=4, segment_width=4))
    images = torch.rand(2, 3, 32, 64)
    pair = torch.cat([images, model.reconstructive_subnetwork(images)], 1)
    _, logits = segment_twin(model.discriminative_subnetwork, pair)
    share = logits[:, 1].exp() / logits.exp().sum(1)
    found = model(images)
    torch.testing.assert_close(found.map, share, **CLOSE)
    torch.testing.assert_close(found.score, share.flatten(1).max(1).values, **CLOSE)
    assert share.std() > 1e-4


def severity_twin(head: SeverityHead, acts, *, mode: str, pooling: str, attention: bool):
    w = Weights(head)
    used = acts[5:] if mode == "single_scale" else acts[1:]
    if pooling == "gap":
        return w.mlp(torch.cat([x.flatten(2).mean(2) for x in used], 1), "severity_mlp")
    pooled = []
    for number, x in enumerate(used, start=2):
        name = "processor" if mode == "single_scale" else f"scale_spatial_processors.act{number}"
        if attention:
            x = x * torch.sigmoid(w.conv(x, f"{name}.attention.0"))
        x = F.relu(w.conv(x, f"{name}.reducer.0"))
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        cells = [
            x[:, :, r * rows : (r + 1) * rows, c * columns : (c + 1) * columns].mean((2, 3))
            for r in (0, 1)
            for c in (0, 1)
        ]
        pooled.append(torch.stack(cells, 2).flatten(1))
    return w.mlp(torch.cat(pooled, 1), "spatial_severity_mlp" if mode == "single_scale" else "multi_scale_spatial_mlp")


@torch.no_grad()
@pytest.mark.parametrize("mode", ["single_scale", "multi_scale"])
@pytest.mark.parametrize(("pooling", "attention"), [("gap", True), ("spatial_aware", True), ("spatial_aware", False)])
def test_severity_head(mode, pooling, attention):
    acts = [torch.randn(3, 4 * m, 64 // 2**i, 64 // 2**i) for i, m in enumerate((1, 2, 4, 8, 8, 8))]
    spatial = {"head_grid": 2, "head_attention": attention} if pooling == "spatial_aware" else {}
    config = DraemSevNetConfig(head_mode=mode, head_pooling=pooling, segment_width=4, head_hidden=8, **spatial)
    head = stirred(SeverityHead(config))
    want = severity_twin(head, acts, mode=mode, pooling=pooling, attention=attention)
    torch.testing.assert_close(head(acts), want, **CLOSE)
    assert want.std() > 1e-4


def residual_twin(w: Weights, x, name: str, *, basic: bool, stride: int, grow: bool):
    def resized(y, conv):
        if grow:
            return F.conv_transpose2d(y, w.w[f"{conv}.weight"], stride=2)
        return w.conv(y, conv, stride)

    other = "upsample" if grow else "downsample"
    identity = x
    if f"{name}.{other}.0.weight" in w.w:
        identity = w.norm(resized(x, f"{name}.{other}.0"), f"{name}.{other}.1")
    first = resized(x, f"{name}.conv1") if basic else w.conv(x, f"{name}.conv1")
    y = F.relu(w.norm(first, f"{name}.bn1"))
    y = w.norm(w.conv(y, f"{name}.conv2") if basic else resized(y, f"{name}.conv2"), f"{name}.bn2")
    if not basic:
        y = w.norm(w.conv(F.relu(y), f"{name}.conv3"), f"{name}.bn3")
    return F.relu(y + identity)


def stage_twin(w: Weights, x, name: str, *, blocks: int, basic: bool, stride: int = 1, grow: bool = False):
    x = residual_twin(w, x, f"{name}0", basic=basic, stride=stride, grow=grow)
    for block in range(1, blocks):
        x = residual_twin(w, x, f"{name}{block}", basic=basic, stride=1, grow=False)
    return x


@torch.no_grad()
@pytest.mark.parametrize(("basic", "stride", "grow"), [(False, 2, False), (False, 1, True), (True, 2, False)])
def test_reverse_distillation_stages(basic, stride, grow):
    net = stirred(stage(inputs=16, planes=8, blocks=3, basic=basic, stride=stride, grow=grow, width=128))
    x = torch.randn(2, 16, 8, 8)
    want = stage_twin(Weights(net), x, "", blocks=3, basic=basic, stride=stride, grow=grow)
    torch.testing.assert_close(net(x), want, **CLOSE)


@torch.no_grad()
def test_reverse_distillation_bottleneck_and_decoder():
    bottleneck, decoder = stirred(Bottleneck(basic=True)), stirred(Decoder(basic=True, blocks=(2, 2, 2)))
    maps = [torch.rand(2, 64 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(3)]
    w = Weights(bottleneck)
    first = F.relu(w.norm(w.conv(maps[0], "conv1", 2), "bn1"))
    first = F.relu(w.norm(w.conv(first, "conv2", 2), "bn2"))
    second = F.relu(w.norm(w.conv(maps[1], "conv3", 2), "bn3"))
    code = stage_twin(w, torch.cat([first, second, maps[2]], 1), "bn_layer.", blocks=2, basic=True, stride=2)
    torch.testing.assert_close(bottleneck(maps), code, **CLOSE)
    w = Weights(decoder)
    want = []
    for name in ("layer1.", "layer2.", "layer3."):
        code = stage_twin(w, code, name, blocks=2, basic=True, grow=True)
        want.insert(0, code)
    for ours, twin, teacher in zip(decoder(bottleneck(maps)), want, maps, strict=True):
        assert ours.shape == teacher.shape
        torch.testing.assert_close(ours / twin.std(), twin / twin.std(), **CLOSE)
