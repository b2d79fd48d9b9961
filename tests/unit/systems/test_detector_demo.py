"""Without data flags a detector runs at demo scale on the built-in backbone; what the user said stays."""

import torch

from anomaly_lib.backbones import create_backbone
from anomaly_lib.systems.detectors.build import FrozenFeatures
from anomaly_lib.systems.detectors.options import MODELS, on_demo_data, resolve
from anomaly_lib.systems.detectors.train import Args


def test_demo_scale_needs_no_weights_file() -> None:
    for model in MODELS:
        args = resolve(on_demo_data(Args(model=model)))
        assert args.image_size == [128, 128]
        assert args.model.startswith("draem") or args.backbone == "demo-clip" or args.weights == "random"


def test_what_the_user_said_stays() -> None:
    real = Args(dataset="mvtec", data_path="somewhere")
    assert on_demo_data(real) == real
    named = Args(backbone="resnet18", weights="random")
    assert on_demo_data(named) == named
    assert on_demo_data(Args(image_size=[64, 64])).image_size == [64, 64]
    assert on_demo_data(Args(model="draem", epochs=1)).epochs == 1


def test_patch_rows_become_maps_in_row_major_order() -> None:
    net = create_backbone("tiny-clip", weights="random", layers=["layer.1"])
    features = FrozenFeatures(net, mean=net.mean, std=net.std)
    images = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor(net.mean).view(3, 1, 1), torch.tensor(net.std).view(3, 1, 1)
    tokens = net.encode((images - mean) / std)["layer.1"]  # [B, P, C]
    maps = features(images)["layer.1"]  # [B, C, h, w]
    for row in range(4):
        for column in range(4):
            torch.testing.assert_close(maps[:, :, row, column], tokens[:, row * 4 + column])
