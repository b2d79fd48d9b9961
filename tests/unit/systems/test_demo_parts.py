"""Demo parts and a user's data: no system takes them unasked, and names the demo's word list lacks are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anomaly_lib.backbones.clip import create_clip
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa.text import AnomalyPromptLearner, PromptEncoder
from anomaly_lib.systems.promptad.options import tiny as tiny_promptad
from anomaly_lib.systems.promptad.train import train as train_promptad
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.sowa.options import tiny as tiny_sowa
from anomaly_lib.systems.sowa.train import build

BACKBONES = ("backbone", "video_backbone", "audio_backbone", "image_backbone", "visual_backbone")
ASKED: dict[str, dict[str, Any]] = {"crystal": {"property": "gap"}, "sowa": {"dataset": "mvtec"}}


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_with_a_users_data_no_demo_part_and_no_untrained_one_is_taken(system: str) -> None:
    args = SYSTEMS[system].Args(data_path="parts", **ASKED.get(system, {}))
    for name in BACKBONES:
        chosen = str(getattr(args, name, ""))
        assert not chosen.startswith(("demo-", "tiny-")), (name, chosen)
        weights = "weights" if name == "backbone" else name.replace("backbone", "weights")
        assert getattr(args, weights, None) is None, weights
    assert getattr(args, "scale", "full") == "full"


def parts(root: Path, name: str) -> Path:
    for place in ("train/good/0", "train/good/1", "test/good/0", "test/bad/0"):
        path = root / name / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (90, 90, 90)).save(path)
    return root


def promptad(data: Path, run: Path, **more: Any) -> Any:
    words = {"dataset": "mvtec", "data_path": str(data), "backbone": "demo-clip", "weights": None, "shot": 1}
    return tiny_promptad(output_dir=str(run), **words, **more)


def test_promptad_refuses_a_class_the_demo_has_no_word_for(tmp_path: Path) -> None:
    data = parts(tmp_path / "data", "zipper")
    with pytest.raises(UserError, match=r"'zipper': this text tower's word list lacks 'zipper'.*class_text=object"):
        train_promptad(promptad(data, tmp_path / "a", obj="zipper"))
    assert train_promptad(promptad(data, tmp_path / "b", obj="zipper", class_text="object")).metrics
    assert train_promptad(promptad(parts(tmp_path / "more", "nut"), tmp_path / "c", obj="nut")).metrics


def test_sowa_refuses_names_it_cannot_tell_apart(tmp_path: Path) -> None:
    args = tiny_sowa(backbone="demo-clip", weights=None, class_names=["nut", "zipper"], output_dir=str(tmp_path))
    with pytest.raises(UserError, match="'zipper': this text tower's word list lacks"):
        build(args, torch.device("cpu"))
    text = create_clip("demo-clip").text
    for make in (AnomalyPromptLearner, PromptEncoder):
        with pytest.raises(UserError, match="class_names: 'bottle' and 'zipper' are the same words"):
            make(text, class_names=["nut", "bottle", "zipper"])
        with pytest.raises(UserError, match="class_names: 'nut' and 'nut' are"):
            make(text, class_names=["nut", "nut"])
        make(text, class_names=["nut", "tile"])


def test_word_lists_say_what_they_lack() -> None:
    assert create_clip("demo-clip").text.tokenizer.unknown_words("a wood bottle") == ["bottle"]
    assert create_clip("tiny-clip", weights="random").text.tokenizer.unknown_words("a bottle") == []
