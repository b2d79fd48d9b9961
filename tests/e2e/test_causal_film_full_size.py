"""One forward and one optimiser step at full size, from weight folders in the published format (random values)."""

import json
from pathlib import Path

import pytest
import torch

from anomaly_lib.backbones import create_backbone
from anomaly_lib.models.weld.causal_film import CausalFiLM
from anomaly_lib.models.weld.causal_film_loss import CausalFiLMLoss, anomaly_score
from anomaly_lib.systems.weld.data.demo import weld_demo_runs
from anomaly_lib.systems.weld.encoders import WeldEncoders, image_outputs
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.options import WeldSettings

pytestmark = pytest.mark.slow


def write_folder(folder: Path, model_class: type, config: object) -> Path:
    """config.json and model.safetensors as the hub has them, half precision, small random values."""
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in model_class(config).state_dict().items()}
    g = torch.Generator().manual_seed(0)
    tensors = {name: (0.02 * torch.randn(shape, generator=g)).half() for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_full_size_forward_from_weight_files(tmp_path: Path) -> None:
    import transformers as t

    from anomaly_lib.backbones.huggingface_names import KNOWN

    video = write_folder(tmp_path / "vjepa2", t.VJEPA2Model, t.VJEPA2Config(**KNOWN["vjepa2-vitl"].config))
    audio = write_folder(tmp_path / "ast", t.ASTModel, t.ASTConfig(**KNOWN["ast-14-14"].config))
    image = write_folder(tmp_path / "dinov3", t.DINOv3ViTModel, t.DINOv3ViTConfig(**KNOWN["dinov3-vith16plus"].config))
    settings = WeldSettings(branches="best", video_frames=4, views=2)
    encoders = WeldEncoders(
        create_backbone("vjepa2-vitl", weights=video, layers=["patch_tokens"]),
        create_backbone("ast-14-14", weights=audio, layers=["tokens"]),
        create_backbone("dinov3-vith16plus", weights=image, layers=image_outputs(settings)),
        settings,
    )
    assert not encoders.image.is_random
    features = WeldFeatures(settings, encoders, cache="off", device=torch.device("cpu"))
    assert features.dims() == {"video_dim": 1024, "audio_dim": 768, "image_dim": 1280}
    batch = features.batch(weld_demo_runs(train=1, good=1, per_defect=1)[:1])
    assert batch["video"].shape == (1, 2 * 14 * 14, 1024)
    assert batch["audio"].shape == (1, 659, 768)
    assert [tuple(x.shape) for x in batch["images"]] == [(1, 2, 1, 1280), (1, 2, 201, 1280), (1, 2, 1, 1280)]
    model = CausalFiLM(**features.dims())
    assert sum(p.numel() for p in model.parameters()) == 18_264_385
    out = model(batch)
    CausalFiLMLoss()(out.z_result, out.z_pred)["loss"].backward()
    assert anomaly_score(out.z_result, out.z_pred).isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
