"""Each preset of Causal-FiLM is its stage of the document in every number; the text term's vector is kept."""

from pathlib import Path

import pytest
import torch

from anomaly_lib.errors import UserError
from anomaly_lib.models.weld.causal_film import CausalFiLM, parameter_report
from anomaly_lib.models.weld.causal_film_loss import CausalFiLMLoss
from anomaly_lib.models.weld.config import STAGES
from anomaly_lib.systems.weld.causal_film.options import Args, tiny
from anomaly_lib.systems.weld.causal_film.stages import STAGE_LINES, stage_table
from anomaly_lib.systems.weld.causal_film.task import CausalFiLMTask
from anomaly_lib.systems.weld.causal_film.text import text_vector
from anomaly_lib.systems.weld.causal_film.train import train

TINY_ENCODERS = {"video_backbone", "audio_backbone", "image_backbone", "branches"}


@pytest.mark.parametrize("preset", STAGES)
def test_preset_is_its_stage_line_by_line(preset: str) -> None:
    args = Args(data_path="x", preset=preset)
    lines = STAGE_LINES[preset]
    assert len({line.option for line in lines}) == len(lines)
    for line in lines:
        assert getattr(args, line.option) == line.value, (line.option, line.says)
    table = stage_table(args)
    assert len(table) == len(lines) + 1
    assert not [row for row in table if "differs" in row]
    assert not args.legacy_video  # slips are no part of a stage
    assert not args.align  # nor are extensions
    assert args.ema_warmup


@pytest.mark.parametrize("preset", ["doc", "stage1"])
def test_a_preset_that_is_named_keeps_its_numbers_on_built_in_data(preset: str) -> None:
    built_in = Args(preset=preset)
    other = {line.option for line in STAGE_LINES[preset] if getattr(built_in, line.option) != line.value}
    assert other == TINY_ENCODERS
    assert built_in.text_backbone == "demo-clip"
    assert (Args().d_model, Args().learning_rate) == (64, 3e-3)


def test_paper_protocol_is_apart_from_the_presets() -> None:
    slips = Args(data_path="x", preset="doc", protocol="paper")
    assert (slips.legacy_video, slips.video_size, slips.decoder_activation, slips.ema_warmup) == (True, 64, "silu", False)  # fmt: skip  # noqa: E501
    assert (slips.weight_decay, slips.branches) == (2e-3, "doc")


@pytest.mark.parametrize(
    ("preset", "sizes", "learning"),
    [
        ("doc", {}, 13_508_866),
        ("best", {}, 8_648_832),
        ("stage1", {"image_dim": 768}, 5_302_016),
    ],
)
def test_parameters_that_receive_gradients(preset: str, sizes: dict[str, int], learning: int) -> None:
    args = Args(data_path="x", preset=preset, process_dropout=0.0)
    task = CausalFiLMTask(CausalFiLM(args, **sizes), CausalFiLMLoss(args, d_model=args.d_model), args)
    width, wanted = sizes.get("image_dim", 1280), len(task.model.result.branches)
    batch = {
        "video": torch.randn(2, 2, 1024), "audio": torch.randn(2, 2, 768), "sensors": torch.randn(2, 4, 6),
        "images": [torch.rand(2, 1, 3, width) for _ in range(wanted)],
    }  # fmt: skip
    assert f" {learning:,} receive gradients" in parameter_report(task, 0, fixed=task.fixed)
    task(batch)["loss"].backward()
    assert sum(p.numel() for p in task.parameters() if p.grad is not None) == learning


def test_the_prompt_is_encoded_and_kept_beside_the_run(tmp_path: Path) -> None:
    args = tiny(text_prompt="a normal weld", lambda_text=0.1, epochs=1, output_dir=str(tmp_path))
    result = train(args)
    kept = torch.load(tmp_path / "text_vector.pt", weights_only=True)
    saved = torch.load(result.checkpoint, weights_only=True)
    torch.testing.assert_close(saved["model"]["criterion.text"], torch.nn.functional.normalize(kept, dim=0))
    assert saved["history"][0]["text"] > 0
    log = (tmp_path / "log.txt").read_text()
    assert "'a normal weld' by demo-clip" in log
    assert "lacks 'weld'" in log
    said: list[str] = []
    again = text_vector(tiny(text_vector=str(tmp_path / "text_vector.pt")), tmp_path, said.append)
    assert torch.equal(again, kept)
    assert text_vector(tiny(), tmp_path, said.append) is None
    assert said == ["no --text-prompt and no --text-vector: the text term is off"]


def test_a_text_tower_whose_weights_are_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HOME", "ANOMALY_LIB_WEIGHTS", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="text_weights="):
        text_vector(tiny(text_prompt="a", text_backbone="ViT-B-16:openai"), tmp_path, print)
    with pytest.raises(UserError, match=r"lambda_text=0\.5: has no effect without text_vector"):
        tiny(lambda_text=0.5)
