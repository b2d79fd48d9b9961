"""Checkpoints of PromptAD's authors: three tensors, the rest in the file's name."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import anomaly_lib
from anomaly_lib.backbones import create_backbone
from anomaly_lib.data.demo.items import write_demo
from anomaly_lib.engine.checkpoint import Checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.evaluation.evaluate import evaluate_checkpoint
from anomaly_lib.evaluation.options import EvaluateArgs
from anomaly_lib.models.promptad import released
from anomaly_lib.systems.promptad import released as adopting
from anomaly_lib.systems.promptad.data import open_task
from anomaly_lib.systems.promptad.options import Args, tiny
from anomaly_lib.systems.promptad.train import train
from anomaly_lib.systems.registry import SYSTEMS
from tests.support.programs import load_script

TINY_WIDTH, TINY_JOINT = 64, 32


def checkpoint(folder: Path, task: str, *, width: int, joint: int, galleries: list[torch.Tensor] | None = None) -> Path:
    """As the original saves it: half precision, exactly three keys."""
    torch.manual_seed(3)
    rows = galleries or [F.normalize(torch.randn(450, width), dim=-1) for _ in range(2)]
    content = {f"feature_gallery{i}": value.half() for i, value in enumerate(rows, start=1)}
    content["text_features"] = F.normalize(torch.randn(2, joint), dim=-1).half()
    path = folder / f"{task}-Seed_111-metal_nut-check_point.pt"
    torch.save(content, path)
    return path


@pytest.fixture
def _tiny_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(released.BACKBONES, TINY_WIDTH, "tiny-clip")


@pytest.mark.parametrize("task", ["CLS", "SEG"])
@pytest.mark.usefixtures("_tiny_width")
def test_scores_as_the_original(task: str, tmp_path: Path) -> None:
    net = create_backbone(
        "tiny-clip", weights="random", image_size=240, layers=("next_attn.0", "next_attn.2", "pooled", "vv_tokens")
    )
    image = torch.randn(1, 3, 240, 240)
    found = net.encode(image)
    taps = [F.normalize(found[f"next_attn.{i}"][0], dim=-1) for i in (0, 2)]
    # One patch in four is remembered twice, the others are strangers.
    torch.manual_seed(7)
    galleries = [torch.where(torch.arange(225)[:, None] % 4 == 0, tap, torch.randn_like(tap)) for tap in taps]
    path = checkpoint(tmp_path, task, width=TINY_WIDTH, joint=TINY_JOINT, galleries=galleries)
    loaded = SYSTEMS.load(path, weights="random", device="cpu")
    assert loaded.class_name == "metal_nut"
    saved = torch.load(path, weights_only=True)
    visual = torch.zeros(225)
    for tap, rows in zip(taps, galleries, strict=True):
        cosine = tap @ F.normalize(rows.half().float(), dim=-1).T
        visual += (1 - cosine.amax(1)).clamp(min=0) / 4  # mean over two taps of (1 - cos) / 2
    text = F.normalize(saved["text_features"].float(), dim=-1)
    feature = F.normalize(found["pooled"][0] if task == "CLS" else found["vv_tokens"][0], dim=-1)
    textual = (net.logit_scale * feature @ text.T).softmax(-1)[..., 1]
    branches = loaded.model.branches(loaded.towers.encode(image))
    torch.testing.assert_close(branches.visual_grid.flatten(), visual, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(branches.textual.flatten(), textual.flatten(), rtol=1e-4, atol=1e-5)
    prediction = loaded.predict(image)
    if task == "CLS":
        torch.testing.assert_close(prediction.score, 1 / (1 / branches.textual + 1 / branches.visual))
    assert prediction.map.shape == (1, 400, 400)
    assert loaded.decision is None
    assert prediction.anomalous is None
    with pytest.raises(UserError, match="support scores"):
        loaded.with_fusion("rank")


class TheirModel(torch.nn.Module):
    """What the original's PromptAD keeps in a checkpoint: buffers in half precision, sized by --k-shot."""

    def __init__(self, shot: int, width: int, joint: int) -> None:
        super().__init__()
        for index in (1, 2):
            self.register_buffer(f"feature_gallery{index}", torch.zeros(shot * 225, width, dtype=torch.half))
        self.register_buffer("text_features", torch.zeros(2, joint, dtype=torch.half))


def convert(*words: object) -> int:
    return load_script("scripts/promptad/convert_checkpoint.py").main([str(word) for word in words])


@pytest.mark.parametrize("task", ["cls", "seg"])
def test_there_and_back(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of ours as a file of theirs, which their loader takes whole, and that file as ours, of any CLIP's width."""
    write_demo(tmp_path / "data", categories=["grid"], size=64, train=4, test_good=2, per_defect=1)
    data = {"dataset": "mvtec", "data_path": str(tmp_path / "data"), "obj": "grid"}
    ours = train(
        tiny(**data, task=task, shot=2, image_size=[240], protocol="paper", select="last", test_color="rgb",
             resolution=400, output_dir=str(tmp_path / "run"))
    ).checkpoint  # fmt: skip
    assert convert("--source", ours, "--to", "original") == 0
    theirs = tmp_path / "run" / f"{task.upper()}-Seed_111-grid-check_point.pt"
    content = torch.load(theirs, weights_only=True)
    assert sorted(content) == ["feature_gallery1", "feature_gallery2", "text_features"]
    TheirModel(2, TINY_WIDTH, TINY_JOINT).load_state_dict(content)  # strict: exactly these, of these sizes
    assert {value.dtype for value in content.values()} == {torch.float16}
    assert convert("--source", theirs) == 2
    assert "64 wide" in capsys.readouterr().err
    back = tmp_path / "back.pth"
    words = ["--source", theirs, "--write-to", back, "--backbone", "tiny-clip", "--data-path", data["data_path"]]
    assert convert(*words) == 0
    images = [item.path for item in open_task(Args(**data, shot=2)).test[:3]]
    one = SYSTEMS.load(ours, device="cpu").predict(images)
    other = SYSTEMS.load(back, weights="random", device="cpu")
    assert (other.class_name, other.args.task, other.args.shot, other.args.dataset) == ("grid", task, 2, "mvtec")
    torch.testing.assert_close(other.predict(images).score, one.score, rtol=2e-3, atol=2e-4)
    done = evaluate_checkpoint(back, EvaluateArgs(checkpoint=str(back), weights="random", device="cpu"), SYSTEMS)
    assert len(done.scores) == len(open_task(Args(**data, shot=2)).test)
    assert convert("--source", back, "--to", "original", "--write-to", tmp_path / "again.pt") == 0
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    torch.testing.assert_close(again["feature_gallery2"], content["feature_gallery2"])


def test_what_the_names_do_not_tell_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path, "SEG", width=TINY_WIDTH, joint=TINY_JOINT).rename(tmp_path / "best.pt")
    assert convert("--source", path, "--backbone", "tiny-clip") == 2
    assert "task and class stand only in the name" in capsys.readouterr().err
    said = ["--task", "seg", "--obj", "bolt", "--seed", 5, "--shot", 9, "--image-size", 64]
    assert convert("--source", path, "--backbone", "tiny-clip", *said) == 0
    args = SYSTEMS.read(tmp_path / "bolt_seg.pth").args
    assert [args[name] for name in ("task", "obj", "seed", "shot", "image_size")] == ["seg", "bolt", 5, 9, [64]]
    assert convert("--source", path, "--backbone", "tiny-clip", *said[:-4], "--shot", 7) == 2
    assert "450 patches is not that of 7 images" in capsys.readouterr().err
    theirs = checkpoint(tmp_path, "SEG", width=896, joint=TINY_JOINT)
    assert convert("--source", theirs, "--to", "original") == 2
    assert "not a PromptAD checkpoint of this library" in capsys.readouterr().err
    assert convert("--source", path, "--to", "original", "--shot", 2) == 2
    assert "--shot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "memory_tap=post_attn_next, this memory holds block_out; train with protocol=paper"),
        ({"protocol": "paper", "logit_scale": "exp"}, "logit_scale=exp"),
        ({"protocol": "paper", "memory_layers": [1]}, "remembers two layers"),
        ({"protocol": "paper", "obj": "all"}, "one model for all classes"),
    ],
)
def test_what_the_original_would_read_wrongly_is_refused(options: dict[str, Any], complaint: str) -> None:
    args = asdict(Args(**options))
    state = {"feature_gallery1": torch.zeros(1, 2), "text_features": torch.zeros(2, 2)}
    state |= {} if "memory_layers" in options else {"feature_gallery2": torch.zeros(1, 2)}
    extra = {"class_name": "bolt", "decision": None}
    ours = Checkpoint(Path("x.pth"), {"system": "promptad", "args": args, "model": state, "extra": extra})
    with pytest.raises(UserError, match=complaint):
        adopting.to_original(ours)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["CLS", "SEG"])
def test_evaluate_scores_the_built_in_data(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = create_backbone("demo-clip", layers=("pooled",))
    monkeypatch.setitem(released.BACKBONES, net.width, "demo-clip")
    monkeypatch.setattr(adopting, "IMAGE_SIZE", 120)  # its patches are half as wide: as many as the original's
    path = checkpoint(tmp_path, task, width=net.width, joint=net.embed_dim)
    path = path.rename(path.with_name(path.name.replace("metal_nut", "brushed_metal")))
    args = EvaluateArgs(checkpoint=str(path), figures=False, bootstrap=0, device="cpu")
    done = evaluate_checkpoint(path, args, SYSTEMS)
    assert done.decision is None
    assert done.scores.name == "demo brushed_metal k=2 " + task.lower()
    assert 0 <= done.metrics["image_auroc"] <= 1
    assert "image_accuracy" not in done.metrics
    assert done.scores.scores.std() > 0


def test_missing_backbone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_LIB_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    path = checkpoint(tmp_path, "CLS", width=896, joint=640)
    with pytest.raises(UserError, match=r"ViT-B-16-plus-240 needs the weights vit_b_16_plus_240.*wget") as caught:
        anomaly_lib.load(path)
    assert "\n" not in str(caught.value)
    assert "demo-clip" not in str(caught.value)  # a trained detector cannot change its backbone


@pytest.mark.usefixtures("_tiny_width")
def test_refusals(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "CLS", width=5, joint=4)
    with pytest.raises(UserError, match="5 wide"):
        anomaly_lib.load(path)
    renamed = path.rename(tmp_path / "best.pt")
    with pytest.raises(UserError, match="CLS-Seed_111"):
        anomaly_lib.load(renamed)
    odd = [torch.randn(226, TINY_WIDTH)] * 2
    with pytest.raises(UserError, match="226 patches"):
        anomaly_lib.load(checkpoint(tmp_path, "SEG", width=TINY_WIDTH, joint=TINY_JOINT, galleries=odd))


def test_reading_needs_content_and_a_name_only(tmp_path: Path) -> None:
    """A10: the model's room opens no files."""
    content = torch.load(checkpoint(tmp_path, "SEG", width=896, joint=640), weights_only=True)
    assert released.is_released(content)
    assert not released.is_released({"feature_gallery1": 0})
    found = released.read_released(content, "SEG-Seed_7-metal_nut-check_point.pt")
    assert (found.task, found.seed, found.class_name, found.shot) == ("seg", 7, "metal_nut", 2)
    assert found.backbone == "ViT-B-16-plus-240"
    torch.testing.assert_close(found.tensors["text_features"].norm(dim=-1), torch.ones(2))
    with pytest.raises(UserError, match=r"^task and class stand only in the name"):
        released.read_released(content, "best.pt")
    assert adopting.adopt({"state_dict": {}}, tmp_path / "CLS-Seed_1-x-check_point.pt") is None
