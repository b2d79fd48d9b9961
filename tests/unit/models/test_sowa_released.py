"""Checkpoints of SOWA's authors load under their own key names and shapes; the full-size model fits into memory."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import anomaly_lib
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa.keys import trained_tensors
from anomaly_lib.models.sowa.window_adapter import BasicLayer
from anomaly_lib.systems.registry import SYSTEMS

ROOT = Path(__file__).resolve().parents[3]


class HyperParameters:
    """Lightning stores objects of the training code beside the weights."""


def released_state(width: int, joint: int) -> dict[str, Tensor]:
    """Keys and shapes as the released file has them: trained values, frozen copies and tables."""
    state: dict[str, Tensor] = {}
    for stage in range(4):
        block = f"net.visual_encoder.adapters.{stage}.blocks.0"
        state |= {
            f"{block}.attn_mask": torch.zeros(1),
            f"{block}.attn.logit_scale": torch.full((8, 1, 1), 2.0 + stage),
            f"{block}.attn.qkv": torch.zeros(3 * width, width),
            f"{block}.attn.relative_coords_table": torch.zeros(1, 23, 23, 2),
            f"{block}.attn.relative_position_index": torch.zeros(144, 144, dtype=torch.long),
            f"{block}.attn.cpb_mlp.0.weight": torch.randn(64, 2),
            f"{block}.attn.cpb_mlp.0.bias": torch.randn(64),
            f"{block}.attn.cpb_mlp.2.weight": torch.randn(8, 64),
            f"{block}.attn.proj.weight": torch.zeros(width, width),
            f"{block}.attn.proj.bias": torch.zeros(width),
            **{f"{block}.norm{n}.{leaf}": torch.randn(width) for n in (1, 2) for leaf in ("weight", "bias")},
            f"{block}.mlp.layers.0.weight": torch.randn(width, width),
        }
    return state | {
        "net.prompt_learner.ctx_pos": torch.randn(1, 1, 12, joint),
        "net.prompt_learner.ctx_neg": torch.randn(1, 1, 12, joint),
        "net.prompt_learner.token_prefix_pos": torch.zeros(1, 1, 1, joint),
        "net.prompt_learner.tokenized_prompts_pos": torch.zeros(1, 1, 77, dtype=torch.long),
        "net.cross_fusion.linear.weight": torch.randn(joint, joint),
        "net.cross_fusion.linear.bias": torch.randn(joint),
        "net.clip_model.visual.proj": torch.zeros(width, joint),
        "net.visual_encoder.clip_model.visual.proj": torch.zeros(width, joint),
        "train_loss.mean_value": torch.zeros(()),
    }


def test_released_names_and_shapes(tmp_path: Path) -> None:
    state = released_state(1024, 768)
    content = {"state_dict": state, "hyper_parameters": {"net": HyperParameters()}, "epoch": 1}
    path = tmp_path / "visa.ckpt"
    torch.save(content, path)
    checkpoint = SYSTEMS.read(path)
    assert (checkpoint.system, checkpoint.args["weights"]) == ("sowa", str(path))
    options = {name: checkpoint.args[name] for name in ("backbone", "map_calibration", "image_score")}
    assert options == {"backbone": "ViT-L-14-336:openai", "map_calibration": "none", "image_score": "text"}
    found = checkpoint["model"]
    attn = nn.MultiheadAttention(1024, 16, device="meta")
    layer = BasicLayer(attn, (24, 24)).state_dict()
    want = {f"visual_encoder.adapters.{s}.{name}": value.shape for s in range(4) for name, value in layer.items()}
    want |= {f"prompt_learner.ctx_{kind}": torch.Size((1, 1, 12, 768)) for kind in ("pos", "neg")}
    want |= {"cross_fusion.linear.weight": torch.Size((768, 768)), "cross_fusion.linear.bias": torch.Size((768,))}
    assert {name: value.shape for name, value in found.items()} == want
    assert sum(value.numel() for value in found.values()) == 4_822_560
    for name, value in found.items():
        assert value.equal(state[f"net.{name}"])


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    """Models take tensors: what a file is, its reader decides."""
    assert trained_tensors({"net.something": torch.zeros(1), "net.prompt_learner.ctx_pos": torch.zeros(1)}) == {}
    torch.save({"state_dict": {"net.something": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of this library"):
        SYSTEMS.read(tmp_path / "other.ckpt")


FULL_SIZE = """
import resource, torch
from anomaly_lib.backbones.clip import create_clip
from anomaly_lib.models.sowa.model import AnomalyCLIP
from anomaly_lib.models.sowa.scores import sowa_loss
clip = create_clip("ViT-L-14-336", weights="random", layers=(5, 11, 17, 23, "pooled"))
model = AnomalyCLIP(clip, start="random", map_calibration="none")
assert sum(p.numel() for p in model.parameters()) == 4_822_560
output = model(torch.randn(2, 3, 336, 336), ["bottle", "cable"])
assert [tuple(m.shape) for m in output.anomaly_maps] == [(2, 2, 336, 336)] * 4
loss = sum(sowa_loss(output, torch.tensor([0, 1]), torch.rand(2, 336, 336) > 0.9).values())
loss.backward()
assert all(p.grad is not None for p in model.parameters())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_full_size_step_fits_into_eight_gigabytes() -> None:
    done = subprocess.run([sys.executable, "-c", FULL_SIZE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 8e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the module exists here: this test is for Unix


@pytest.mark.slow
def test_released_checkpoint_becomes_a_detector(tmp_path: Path) -> None:
    """A whole file: CLIP and trained values together, as the authors publish it."""
    from anomaly_lib.backbones.clip import create_clip

    clip = create_clip("ViT-L-14-336", weights="random", layers=(0,)).clip.state_dict()
    state = released_state(1024, 768) | {f"net.clip_model.{name}": value for name, value in clip.items()}
    torch.save({"state_dict": state}, tmp_path / "mvtec.ckpt")
    detector = anomaly_lib.load(tmp_path / "mvtec.ckpt")
    assert detector.model.visual_encoder.adapters[2].blocks[0].attn.logit_scale[0].item() == 4.0  # type: ignore[union-attr]
    assert detector.model.frozen[0].clip.visual.proj.equal(clip["visual.proj"])
