"""What a detector means by default: published values on a user's data, the demo's without; the user's word stays."""

from dataclasses import fields

import pytest
import torch

from anomaly_lib.backbones import create_backbone
from anomaly_lib.command_line import parse
from anomaly_lib.config import default_of
from anomaly_lib.models import detectors
from anomaly_lib.models.detectors.configs import CONFIGS
from anomaly_lib.systems.detectors.build import MODULES, FrozenFeatures
from anomaly_lib.systems.detectors.hdmap.options import Args as TransferArgs
from anomaly_lib.systems.detectors.options import MODELS, TRAINED, Args, tiny

OWN = {"dataset": "mvtec", "data_path": "somewhere"}


def test_demo_scale_needs_no_weights_file() -> None:
    for model in MODELS:
        args = Args(model=model)
        assert args.image_size == [128, 128]
        assert args.model.startswith("draem") or args.backbone == "demo-clip" or args.weights == "random"
    assert (Args(model="draem").repair_width, Args(model="draem").epochs) == (16, 20)


def test_what_the_user_said_stays() -> None:
    named = Args(backbone="resnet18", weights="random")
    assert (named.layers, named.image_size) == (["layer2", "layer3"], [256, 256])
    assert Args(image_size=[64]).image_size == [64, 64]
    assert Args(model="draem", epochs=1).epochs == 1
    assert Args(model="padim", backbone="wide_resnet50_2", features=7).features == 7


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("patchcore", {"backbone": "wide_resnet50_2", "layers": ["layer2", "layer3"], "batch_size": 32}),
        ("padim", {"backbone": "resnet18", "layers": ["layer1", "layer2", "layer3"], "features": 100}),
        (
            "reverse_distillation",
            {"backbone": "wide_resnet50_2", "layers": ["layer1", "layer2", "layer3"], "epochs": 200, "batch_size": 16}
            | {"learning_rate": 0.005},
        ),
        ("draem", {"epochs": 700, "batch_size": 8, "learning_rate": 1e-4, "repair_width": 128, "focal_alpha": -1.0}),
        ("draem_sevnet", {"epochs": 50, "batch_size": 16, "learning_rate": 1e-4, "severity_target": "normalised"}),
    ],
)
def test_a_user_s_data_get_the_published_values(model: str, values: dict[str, object]) -> None:
    args = Args(model=model, **OWN)
    assert {name: getattr(args, name) for name in values} == values
    assert parse(Args, ["--model", model, "--dataset", "mvtec", "--data-path", "somewhere"]) == args
    for f in fields(CONFIGS[model]):  # what a model's module means by default is what its options say
        assert getattr(args, f.name) == default_of(f), f.name


def test_padim_keeps_more_channels_on_the_wide_network() -> None:
    assert Args(model="padim", backbone="wide_resnet50_2", **OWN).features == 550


def test_the_paper_s_quirks_are_those_of_the_model() -> None:
    assert Args(protocol="paper").upsample == "nearest"
    draem, sevnet = (Args(model=name, protocol="paper") for name in ("draem", "draem_sevnet"))
    assert (draem.focal_alpha, draem.severity_target, draem.upsample) == (1.0, "normalised", "bilinear")
    assert (sevnet.focal_alpha, sevnet.severity_target) == (1.0, "raw")
    assert Args(model="draem", protocol="paper", focal_alpha=0.5).focal_alpha == 0.5


def test_who_reads_an_option_is_who_has_it() -> None:
    for f in fields(TransferArgs):
        readers = {model for model, config in CONFIGS.items() if f.name in {own.name for own in fields(config)}}
        wanted = f.metadata["needs"].get("model", MODELS)
        if readers and f.name not in ("seed", "backbone"):
            assert readers == {*([wanted] if isinstance(wanted, str) else wanted)}, f.name
    assert TRAINED == ("reverse_distillation", "draem", "draem_sevnet")


@pytest.mark.parametrize("model", MODELS)
def test_tiny_runs_of_every_model_have_options_that_it_reads(model: str) -> None:
    assert tiny(model=model).model == model
    assert set(MODULES) == set(CONFIGS)
    assert getattr(detectors, MODULES[model]).__name__ == MODULES[model]


def test_hdmap_is_small_without_data_only() -> None:
    small, real, full = TransferArgs(), TransferArgs(data_path="x"), TransferArgs(scale="full")
    assert (small.image_size, small.backbone, small.weights, small.batch_size) == ([32, 96], "resnet18", "random", 16)
    for args in (real, full):
        assert (args.image_size, args.backbone, args.weights) == ([256, 256], "wide_resnet50_2", None)
    sevnet = TransferArgs(model="draem_sevnet", scale="demo", data_path="x")
    assert (sevnet.patch_width_range, sevnet.epochs, sevnet.head_hidden) == ([4, 16], 2, 128)


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
