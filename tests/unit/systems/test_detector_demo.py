"""What a detector means by default: published values on a user's data, the demo's without; the user's word stays."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from anomaly_lib.backbones import create_backbone
from anomaly_lib.command_line import parse
from anomaly_lib.config import default_of
from anomaly_lib.errors import OptionError
from anomaly_lib.models import detectors
from anomaly_lib.models.detectors.contract import FeatureDetector
from anomaly_lib.models.detectors.registry import entries, entry_of
from anomaly_lib.systems.detectors.build import FrozenFeatures
from anomaly_lib.systems.detectors.hdmap.options import Args as TransferArgs
from anomaly_lib.systems.detectors.options import Args, options_of, tiny

MODELS = [entry.name for entry in entries()]
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
    for f in fields(entry_of(model).config):  # what a model's module means by default is what its options say
        assert getattr(args, f.name) == default_of(f), f.name


def test_padim_keeps_more_channels_on_the_wide_network() -> None:
    assert Args(model="padim", backbone="wide_resnet50_2", **OWN).features == 550


def test_the_paper_s_quirks_are_those_of_the_model() -> None:
    assert Args(protocol="paper").upsample == "nearest"
    draem, sevnet = (Args(model=name, protocol="paper") for name in ("draem", "draem_sevnet"))
    assert (draem.focal_alpha, draem.focal_weight, hasattr(draem, "severity_target")) == (1.0, 0.5, False)
    assert (sevnet.focal_alpha, sevnet.focal_weight, sevnet.severity_target) == (1.0, 0.5, "raw")
    assert Args(model="draem", protocol="paper", focal_alpha=0.5).focal_alpha == 0.5


@pytest.mark.parametrize("model", MODELS)
def test_a_model_has_its_options_and_no_other_s(model: str) -> None:
    entry = entry_of(model)
    own = {f.name for f in fields(entry.config)}
    names = {f.name for f in fields(options_of(Args, entry))}
    assert own <= names
    assert ("epochs" in names) == entry.trained
    assert ({"backbone", "cache"} <= names) == entry.frozen
    assert ("calibration_share" in names) != (entry.leaves_out or entry.transductive)
    assert ("false_alarms" in names) != entry.transductive
    foreign = {f.name for other in entries() for f in fields(options_of(Args, other))} - names
    for name in foreign:
        owners = [one.name for one in entries() if name in {f.name for f in fields(options_of(Args, one))}]
        with pytest.raises(OptionError, match=rf"^{name}=1: only for model={'.'.join(owners)}$"):
            Args(model=model, **{name: 1})


@pytest.mark.parametrize("model", MODELS)
def test_an_entry_says_what_its_module_is(model: str) -> None:
    entry = entry_of(model)
    module = entry.load()
    assert tiny(model=model).model == model
    assert getattr(detectors, module.__name__) is module
    assert issubclass(module, FeatureDetector) == entry.frozen
    assert hasattr(module, "training_losses") == entry.trained
    assert (getattr(module, "least_images", None) is not None) == entry.leaves_out


def test_an_unknown_model_and_an_option_of_another_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--model", "patchcor"], "--model patchcor: choose from patchcore, padim"),
        (["--features", "3"], "--features: only for --model padim"),
        (["--model", "draem", "--backbone", "resnet18"], "--backbone: only for --model patchcore|padim"),
        (["--model"], "--model: expected one argument"),
    ):
        with pytest.raises(SystemExit):
            parse(Args, words, prog="x")
        error = capsys.readouterr().err
        assert error.startswith(f"x: {said}")
        assert error.count("\n") == 1


def test_six_views_take_squares() -> None:
    with pytest.raises(OptionError, match=r"^image_size=32 96: quarter turns of the six views take squares"):
        Args(model="visionad", image_size=[32, 96], augment_support=True)
    assert Args(model="visionad", image_size=[32, 96], augment_support=False).image_size == [32, 96]


def test_a_configuration_file_may_choose_the_model(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"model": "padim", "net": {"features": 7}}')
    assert parse(Args, ["--config", str(file)]).features == 7
    assert parse(Args, ["--config", str(file), "--n-features", "9"]).features == 9


@pytest.mark.parametrize("model", ["patchcore", "fewshot", "rad"])
def test_the_demo_network_has_layers_and_a_size_of_its_own_whatever_the_data(model: str) -> None:
    own = Args(model=model, backbone="demo-clip", data_path="x")
    assert own.layers == Args(model=model).layers != Args(model=model, data_path="x").layers
    assert own.image_size == [224, 224]  # 784 of its small patches; of built-in data 128
    assert Args(model=model, backbone="demo-clip", data_path="x", image_size=[96]).image_size == [96, 96]
    assert Args(model=model, backbone="demo-clip", layers=["pooled", "layer.2"]).layers == ["pooled", "layer.2"]


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
