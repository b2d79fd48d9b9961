"""A detector is one file: registered, found by name, trained, scored and loaded without a change to the library."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import anomaly_lib
import evaluate
from anomaly_lib.__main__ import main as program
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.models.detectors import registry
from anomaly_lib.systems.detectors.options import Args
from anomaly_lib.systems.registry import SYSTEMS
from scripts import train_detector as script

HISTOGRAM = '''
"""A detector of one's own: how far an image's colours lie from the mean colours of normal images."""

from dataclasses import dataclass

import torch
from torch import nn

from anomaly_lib.config import Options, arg, configure
from anomaly_lib.models.detectors import register
from anomaly_lib.types import Prediction


@dataclass
class HistogramConfig(Options):
    """Colour histogram: distance to the mean histogram of normal images."""

    bins: int = arg(8, "bins of each colour channel", at_least=2)


@register("histogram", config=HistogramConfig)
class Histogram(nn.Module):
    """Images [B, 3, H, W] with values 0..1 -> scores [B]."""

    def __init__(self, config=None, **options):
        super().__init__()
        self.config = configure(HistogramConfig, config, options)
        self.register_buffer("mean", torch.zeros(3 * self.config.bins))

    def histograms(self, images):
        """[B, 3 * bins], each channel's share of pixels in each bin."""
        place = (images * self.config.bins).long().clamp(0, self.config.bins - 1).flatten(2)
        return nn.functional.one_hot(place, self.config.bins).float().mean(2).flatten(1)

    def fit(self, batches):
        self.mean = torch.cat([self.histograms(images) for images in batches]).mean(0)
        return self

    def forward(self, images):
        return Prediction((self.histograms(images) - self.mean).abs().sum(1))
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "mine.py"
    file.write_text(HISTOGRAM)
    yield file
    forget()


def forget() -> None:
    """As in a new process."""
    registry._ENTRIES.pop("histogram", None)
    registry._FILES.clear()


def test_a_file_of_one_s_own_trains_decides_and_is_scored(plugin: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--plugin", str(plugin), "--model", "histogram", "--bins", "4", "--output-dir", str(run), "--no-figures"]
    assert script.main(words) == 0
    detector = anomaly_lib.load(run / "checkpoint.pt")
    assert detector.args.bins == 4
    assert len(detector.decision.normal) == 10  # it cannot leave one out, so some were kept from it
    found = detector.predict(torch.rand(2, 3, 128, 128))
    assert found.map is None
    assert found.anomalous.tolist() == [True, True]
    forget()
    with pytest.raises(UserError, match=r"model=histogram: choose from .*a detector of your own: give plugin="):
        anomaly_lib.load(run / "checkpoint.pt")  # the file that the checkpoint names is not run unasked
    assert anomaly_lib.load(run / "checkpoint.pt", plugin=plugin).args.bins == 4
    forget()
    words = ["--checkpoint", str(run), "--output-dir", str(tmp_path / "out"), "--no-figures", "--bootstrap", "0"]
    assert evaluate.main(words) == 2
    assert evaluate.main([*words, "--plugin", str(plugin)]) == 0


PACKAGE = {"histogram": "their_detectors", "broken": "their_broken", "renamed": "their_other:nothing"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with two detectors, one of which cannot be imported, and a third that it does not define."""
    (tmp_path / "their_detectors.py").write_text(HISTOGRAM)
    (tmp_path / "their_broken.py").write_text("import anomaly_lib.nothing")
    (tmp_path / "their_other.py").write_text(HISTOGRAM.replace('"histogram"', '"other"') + "\nnothing = None\n")
    install(tmp_path, "their_package", PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()
    registry._ENTRIES.pop("other", None)
    for value in PACKAGE.values():
        sys.modules.pop(value.partition(":")[0], None)


def install(folder: Path, name: str, points: dict[str, str]) -> None:
    """The metadata of a package."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{point} = {value}\n" for point, value in points.items())
    (info / "entry_points.txt").write_text(f"[anomaly_lib.detectors]\n{lines}")


def test_a_detector_of_an_installed_package_is_imported_when_it_is_named(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(["list"]) == 0
    assert "broken, draem, draem_sevnet, fewshot, histogram, musc" in capsys.readouterr().out
    with pytest.raises(OptionError, match=r"model=histgram: choose from .*; did you mean histogram\?"):
        Args(model="histgram")
    assert not hasattr(Args(model="padim"), "bins")
    assert not {"their_detectors", "their_broken", "their_other"} & set(sys.modules)  # for none of these
    words = ["--model", "histogram", "--bins", "4", "--output-dir", str(tmp_path / "run"), "--no-figures"]
    assert script.main(words) == 0
    assert "their_broken" not in sys.modules
    forget()
    sys.modules.pop("their_detectors")
    assert anomaly_lib.load(tmp_path / "run" / "checkpoint.pt").args.bins == 4  # no plugin= is needed


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("broken", r"model=broken of the package their_package \(their_broken\): ModuleNotFoundError: No module named"),
        (
            "renamed",
            r"model=renamed .*registers no detector of this name; .* its class with @register\('renamed'",
        ),
    ],
)
def test_a_broken_package_is_one_line(model: str, said: str, package: Path) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        Args(model=model)
    assert "\n" not in str(caught.value)


def test_two_packages_with_one_name_are_told_apart_by_nobody(package: Path) -> None:
    install(package, "another_package", {"histogram": "another:thing"})
    with pytest.raises(OptionError, match=r"model=histogram: several packages have .*another_package.*their_package"):
        Args(model="histogram")


def test_its_options_are_its_own(plugin: Path) -> None:
    args = Args(plugin=str(plugin), model="histogram")
    assert (args.bins, hasattr(args, "backbone"), hasattr(args, "epochs")) == (8, False, False)
    with pytest.raises(OptionError, match="bins=1: must be at least 2"):
        Args(plugin=str(plugin), model="histogram", bins=1)
    with pytest.raises(OptionError, match="bins=3: only for model=histogram"):
        Args(bins=3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import anomaly_lib.nothing", "plugin=.*mine.py: ModuleNotFoundError: No module named"),
        ("x = 1", "registers no detector; decorate its class with @register"),
        (HISTOGRAM.replace('"histogram"', '"padim"'), "there is a detector 'padim' already; choose another name"),
    ],
)
def test_a_file_that_is_no_plugin_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(OptionError, match=said) as caught:
        Args(plugin=str(tmp_path / "mine.py"), model="histogram")
    assert "\n" not in str(caught.value)
    with pytest.raises(OptionError, match=r"plugin=nowhere\.py: no such file"):
        Args(plugin="nowhere.py")


def test_the_small_run_of_every_detector_is_small() -> None:
    for entry in registry.entries():
        args = SYSTEMS["detectors"].tiny(model=entry.name)
        assert args.image_size == [64, 64]
        assert getattr(args, "weights", "random") == "random"
