"""The weights of frozen networks: recorded, compared on loading and continuing, and no remark where real."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import anomaly_lib
from anomaly_lib import backbones
from anomaly_lib.backbones import create_backbone
from anomaly_lib.backbones.hashed_text import HashedTextEncoder
from anomaly_lib.backbones.identity import weight_remarks, weights_of
from anomaly_lib.backbones.weights import file_sha256
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_json
from anomaly_lib.systems.detectors.build import build
from anomaly_lib.systems.detectors.options import Args as DetectorArgs
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.types import RunResult
from scripts.pages.results_page import FinishedRun, result_table

DEMO_CLIP = Path(backbones.__file__).with_name("demo_clip.safetensors")
NETS = {"video": "tiny-vjepa2", "audio": "tiny-ast", "image": "tiny-dinov3", "clips": "tiny-dinov2"}
NETS |= {"tiny": "tiny-clip"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A weight file for each network: the packaged CLIP, and the tiny encoders' own tensors."""
    folder = tmp_path_factory.mktemp("weights")
    found = {"clip": folder / "clip.safetensors"}
    shutil.copyfile(DEMO_CLIP, found["clip"])
    for part, name in NETS.items():
        backbone: Any = create_backbone(name, weights="random")
        net = backbone.clip if part == "tiny" else backbone.net
        found[part] = folder / f"{part}.safetensors"
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, found[part])
    return found


def change(path: Path) -> None:
    """Another training of the same network: every tensor a little different."""
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)


def train(system: str, folder: Path, **options: Any) -> RunResult:
    return SYSTEMS[system].train(SYSTEMS[system].tiny(output_dir=str(folder), **options))


def weld(files: dict[str, Path]) -> dict[str, Any]:
    return (
        {f"{part}_weights": str(files[part]) for part in ("video", "audio", "image")}
        | {f"{part}_backbone": NETS[part] for part in ("video", "audio", "image")}
        | {"cache": "disk"}
    )


# system -> (options that give every network a weight file, the file that will be changed, the network it belongs to)
CASES: dict[str, tuple[Callable[[dict[str, Path]], dict[str, Any]], str, str]] = {
    "promptad": (lambda f: {"weights": str(f["tiny"]), "cache": "disk"}, "tiny", "tiny-clip"),
    "sowa": (lambda f: {"backbone": "demo-clip", "weights": str(f["clip"]), "cache": "disk"}, "clip", "demo-clip"),
    "detectors": (
        lambda f: {"backbone": "demo-clip", "weights": str(f["clip"]), "layers": ["layer.1"]}, "clip", "demo-clip",
    ),
    "hdmap": (
        lambda f: {"backbone": "demo-clip", "weights": str(f["clip"]), "layers": ["layer.1"]}, "clip", "demo-clip",
    ),
    "causal_film": (weld, "audio", "tiny-ast"),
    "weld_supcon": (weld, "video", "tiny-vjepa2"),
    "video_ae": (
        lambda f: {"backbone": "tiny-dinov2", "weights": str(f["clips"]), "cache": "disk"}, "clips", "tiny-dinov2",
    ),
}  # fmt: skip
LONG = ("causal_film", "detectors", "sowa")


@pytest.mark.parametrize(
    "system",
    [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in sorted(CASES)],
)
def test_weight_files_are_recorded_and_compared(system: str, files: dict[str, Path], tmp_path: Path) -> None:
    options, part, net = CASES[system]
    own = {name: Path(shutil.copyfile(path, tmp_path / path.name)) for name, path in files.items()}
    result = train(system, tmp_path / "run", **options(own))
    assert result.checkpoint is not None
    record = read_json(result.run_dir / "run.json")
    was = file_sha256(own[part])
    assert record["weights"][net] == was
    assert "random" not in record["weights"].values()
    assert "random weights" not in result_table([FinishedRun(result.run_dir, record)]).markdown()
    assert "random weights" not in (result.run_dir / "log.txt").read_text(encoding="utf-8")
    assert not any("random" in note for note in anomaly_lib.load(result.checkpoint).facts.remarks())

    change(own[part])
    now = file_sha256(own[part])
    with pytest.raises(UserError) as refused:
        anomaly_lib.load(result.checkpoint)
    text = str(refused.value)
    assert all(word in text for word in (str(result.checkpoint), net, was[:16], now[:16], "--fresh"))
    assert "\n" not in text


def test_another_text_encoder_is_refused_when_texts_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = train("crystal", tmp_path / "run")
    assert result.checkpoint is not None
    detector = anomaly_lib.load(result.checkpoint)
    data = detector.load_data(None)
    described = data.rows[0].source, data.rows[0].text
    detector.predict(described)
    monkeypatch.setattr(HashedTextEncoder, "weights_id", "hashed-text-2")
    with pytest.raises(UserError, match="hashed-text-1 of hashed-text"):
        detector.load_data(None)
    with pytest.raises(UserError, match="hashed-text-1 of hashed-text"):
        detector.predict(described)
    random = train("crystal", tmp_path / "random", backbone="tiny-bert", weights="random")
    assert "random weights: tiny-bert" in anomaly_lib.load(random.checkpoint).facts.remarks()
    assert "frozen: tiny-bert, UNTRAINED" in (random.run_dir / "log.txt").read_text(encoding="utf-8")


def test_a_second_untrained_network_is_marked_too(files: dict[str, Path], tmp_path: Path) -> None:
    options = {"weights": str(files["tiny"]), "cache": "auto"}  # on disk, and the untrained network's in memory
    result = train("promptad", tmp_path, **options, visual_backbone="tiny-dinov2", visual_weights="random")
    record = read_json(result.run_dir / "run.json")
    assert record["weights"] == {"tiny-clip": file_sha256(files["tiny"]), "tiny-dinov2": "random"}
    log = (result.run_dir / "log.txt").read_text(encoding="utf-8")
    assert log.count("frozen: tiny-dinov2, UNTRAINED (random weights") == 1  # at the start
    assert log.count("[random weights: tiny-dinov2]") == 1  # and behind the result
    assert "random weights" in result_table([FinishedRun(result.run_dir, record)]).markdown()
    assert "random weights: tiny-dinov2" in anomaly_lib.load(result.checkpoint).facts.remarks()


def test_a_run_is_not_continued_on_other_weights(files: dict[str, Path], tmp_path: Path) -> None:
    clips = Path(shutil.copyfile(files["clips"], tmp_path / "clips.safetensors"))
    options = {"backbone": "tiny-dinov2", "weights": str(clips), "cache": "ram"}
    result = train("video_ae", tmp_path / "run", **options)
    record = read_json(result.run_dir / "run.json")
    write_json(result.run_dir / "run.json", record | {"status": "interrupted"})
    change(clips)
    with pytest.raises(UserError, match=r"of tiny-dinov2, .*--fresh"):
        train("video_ae", tmp_path / "run", **options)
    with pytest.raises(UserError, match=r"of tiny-dinov2, .*--fresh"):
        train("video_ae", tmp_path / "elsewhere", **options, resume=str(result.checkpoint))
    shutil.copyfile(files["clips"], clips)
    assert train("video_ae", tmp_path / "run", **options).metrics == result.metrics


def test_a_detector_without_a_frozen_network_has_no_weights_whatever_it_was_told() -> None:
    options = [
        DetectorArgs(model="draem", repair_width=4, segment_width=4),
        DetectorArgs(model="reverse_distillation", backbone="resnet18", weights="random"),
    ]
    found = [weights_of(build(one, torch.device("cpu"))) for one in options]
    assert found == [{}, {"resnet18": "random"}]


def test_one_network_from_two_files_has_two_entries() -> None:
    first, same, other = (create_backbone("tiny-dinov2", weights="random") for _ in range(3))
    other.weights_id = "a" * 64
    inside = nn.ModuleDict({"deep": nn.Sequential(first)})
    assert weights_of(inside, None, same, other) == {"tiny-dinov2": "random", "tiny-dinov2 #2": "a" * 64}
    assert weights_of() == {}
    assert weight_remarks({"a": "random", "b": "0" * 64, "c": "random"}) == ["random weights: a, c"]
    demo = {"demo-clip": "0" * 64, "b": "random", "c": "1" * 64}
    assert weight_remarks(demo) == ["random weights: b", "demo weights: demo-clip"]
    assert weight_remarks({"b": "0" * 64}) == []
