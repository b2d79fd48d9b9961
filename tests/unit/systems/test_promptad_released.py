"""Checkpoints of PromptAD's authors: three tensors, the rest in the file's name."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import anomaly_lib
from anomaly_lib.backbones import create_backbone
from anomaly_lib.errors import UserError
from anomaly_lib.evaluation.evaluate import evaluate_checkpoint
from anomaly_lib.evaluation.options import EvaluateArgs
from anomaly_lib.models.promptad import released
from anomaly_lib.systems.promptad import released as adopting
from anomaly_lib.systems.registry import SYSTEMS

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
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(released.BACKBONES, TINY_WIDTH, "tiny-clip")


@pytest.mark.parametrize("task", ["CLS", "SEG"])
@pytest.mark.usefixtures("tiny")
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


@pytest.mark.usefixtures("tiny")
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
