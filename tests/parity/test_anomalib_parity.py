"""Detectors beside anomalib's own modules: same weights, same draws, same images. Skipped where anomalib is absent."""

import pytest
import torch
from torch import Tensor, nn

from anomaly_lib.backbones import create_backbone
from anomaly_lib.models.detectors.anomalib_keys import load_anomalib, to_anomalib
from anomaly_lib.models.detectors.draem import Draem
from anomaly_lib.models.detectors.padim import Padim
from anomaly_lib.models.detectors.patchcore import PatchCore
from anomaly_lib.models.detectors.reverse_distillation import ReverseDistillation
from anomaly_lib.ops import greedy_coreset

pytest.importorskip("anomalib", reason="anomalib is not installed (pip install anomalib); the twins in tests/unit are")
pytestmark = [pytest.mark.parity, pytest.mark.slow]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def frozen(layers: list[str]) -> nn.Module:
    return create_backbone("resnet18", weights="random", layers=layers)


def stirred(module: nn.Module) -> nn.Module:
    """Statistics and weights other than their initial values, so that agreement means something."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor) if tensor.dim() < 2 else 0.002 * torch.randn_like(tensor))
    return module


def compare(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        got, want = ours.eval()(images), theirs.eval()(images)
    torch.testing.assert_close(got.map, want.anomaly_map.reshape(got.map.shape), **CLOSE)
    torch.testing.assert_close(got.score, want.pred_score.flatten(), **CLOSE)
    assert got.map.std() > 1e-3 * got.map.mean()


def fit_peer(theirs: nn.Module, images: Tensor) -> None:
    theirs.train()
    with torch.no_grad():
        theirs(images)


def test_coreset_picks_the_same_rows(monkeypatch):
    from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy

    rows = torch.randn(900, 400)
    monkeypatch.setattr(torch, "randint", lambda *a, **k: torch.tensor([7]))  # its first pick
    sampler = KCenterGreedy(rows, sampling_ratio=0.1)
    theirs = sampler.select_coreset_idxs()
    assert sampler.features.shape[1] < 400  # its own projection was used
    assert greedy_coreset(sampler.features, 90, start=7).tolist() == theirs


def test_patchcore():
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    layers = ["layer2", "layer3"]
    extractor, images = frozen(layers), torch.rand(5, 3, 64, 96)
    theirs = PatchcoreModel(layers=layers, backbone="resnet18", pre_trained=False)
    theirs.feature_extractor = extractor
    fit_peer(theirs, images[:3])
    theirs.subsample_embedding(0.3)
    ours = PatchCore(extractor=extractor, layers=layers, upsample="nearest")
    load_anomalib(ours, {"model.memory_bank": theirs.memory_bank})
    compare(ours, theirs, images[3:] * 1.2)


def test_padim():
    from anomalib.models.image.padim.torch_model import PadimModel

    layers = ["layer1", "layer2", "layer3"]
    extractor, images = frozen(layers), torch.rand(24, 3, 64, 64)
    theirs = PadimModel(layers=layers, backbone="resnet18", pre_trained=False, n_features=40)
    theirs.feature_extractor = extractor
    fit_peer(theirs, images[:20])
    theirs.fit()
    ours = Padim(extractor=extractor, layers=layers, features=40)
    ours.channels = theirs.idx.clone()
    ours.fit(images[:20].split(7))
    compare(ours, theirs, images[20:])
    read = Padim(extractor=extractor, layers=layers, features=40)
    state = {f"model.{n}": t for n, t in theirs.state_dict().items() if not n.startswith("feature_extractor.")}
    load_anomalib(read, state)
    compare(read, theirs, images[20:])


@pytest.mark.parametrize("mode", ["add", "multiply"])
def test_reverse_distillation(mode):
    from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
    from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel

    layers = ["layer1", "layer2", "layer3"]
    theirs = ReverseDistillationModel(
        backbone="resnet18", input_size=(64, 64), layers=layers, pre_trained=False,
        anomaly_map_mode=AnomalyMapGenerationMode.MULTIPLY if mode == "multiply" else AnomalyMapGenerationMode.ADD,
    )  # fmt: skip
    stirred(theirs)
    ours = ReverseDistillation(extractor=frozen(layers), backbone="resnet18", layers=layers, map_mode=mode)
    load_anomalib(ours, {f"model.{name}": tensor for name, tensor in theirs.state_dict().items()})
    compare(ours, theirs, torch.rand(2, 3, 64, 64))
    theirs.train()
    theirs.encoder.eval()
    student, images = ours.train(), torch.rand(2, 3, 64, 64)
    teacher_maps, student_maps = theirs(images)
    want = sum(
        (1 - torch.nn.functional.cosine_similarity(t.flatten(1), s.flatten(1))).mean()
        for t, s in zip(teacher_maps, student_maps, strict=True)
    )
    student.extractor.eval()
    torch.testing.assert_close(
        sum(student.training_losses(student.features_of(images, student.support_views)).values()), want, **CLOSE
    )


def test_draem_at_its_full_size():
    from anomalib.models.image.draem.loss import DraemLoss
    from anomalib.models.image.draem.torch_model import DraemModel

    theirs = stirred(DraemModel())
    ours = Draem(focal_alpha=1.0, focal_weight=0.5)  # what protocol=paper sets
    state = {f"model.{name}": tensor for name, tensor in theirs.state_dict().items()}
    load_anomalib(ours, state)
    images = torch.rand(2, 3, 64, 64)
    compare(ours, theirs, images)
    assert all(torch.equal(tensor, state[name]) for name, tensor in to_anomalib(ours).items())
    with torch.no_grad():
        repair, logits = ours.networks(images)
        mask = (torch.rand(2, 1, 64, 64) > 0.7).float()
        want = DraemLoss()(images * 0.9, repair, mask, logits)
        terms = ours.repair_and_mask_losses(repair, logits, images * 0.9, mask[:, 0])
    got = terms["l2"] + terms["ssim"] + terms["focal"]
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
