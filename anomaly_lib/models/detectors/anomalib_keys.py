"""Reading and writing anomalib's checkpoints: the same tensors under anomalib's names.

Only tensors travel. anomalib's file is a dict whose ``state_dict`` holds them; open it with ``weights_only=True``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from anomaly_lib.models.detectors.draem import Draem
from anomaly_lib.models.detectors.memory_bank import MemoryBank
from anomaly_lib.models.detectors.padim import Padim
from anomaly_lib.models.detectors.patchcore import PatchCore
from anomaly_lib.models.detectors.reverse_distillation import ReverseDistillation

EXTRACTOR = "feature_extractor.feature_extractor."
TEACHER = "encoder.feature_extractor."
BLUR = "anomaly_map_generator.blur.kernel"
WRAPPED = "discriminative_subnetwork.original_subnet."  # SevNet registers its discriminator twice
SINGLE_SCALE_HEAD = {"processor.attention.": "spatial_attention.", "processor.reducer.": "spatial_reducer."}


def load_anomalib(detector: nn.Module, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Fill `detector` from an anomalib ``state_dict``; answers its thresholds and score range (unset ones left out)."""
    model = {name[len("model.") :]: tensor for name, tensor in state.items() if name.startswith("model.")}
    if not model:
        raise ValueError("no tensors named model.*: this is not the state_dict of an anomalib checkpoint")
    if isinstance(detector, PatchCore):
        detector.bank = MemoryBank(model["memory_bank"])
        _fill_extractor(detector.extractor, model, EXTRACTOR)
    elif isinstance(detector, Padim):
        detector.channels = model["idx"].long()
        detector.mean = model["gaussian.mean"].T.contiguous()
        # inv = K K^T, so |K^T d|^2 = d^T inv d: K^T whitens.
        detector.whitening = torch.linalg.cholesky(model["gaussian.inv_covariance"])
        _fill_extractor(detector.extractor, model, EXTRACTOR)
    elif isinstance(detector, ReverseDistillation):
        _fill_extractor(detector.extractor, model, TEACHER)
        trained = {n: t for n, t in model.items() if n.startswith(("bottleneck.", "decoder."))}
        _fill(detector, trained, {n for n in detector.state_dict() if n.startswith("extractor.")})
    elif isinstance(detector, Draem):
        _fill(detector, {_own_head(n): t for n, t in model.items() if not n.startswith(WRAPPED) and n != BLUR}, set())
    else:
        raise TypeError(f"no anomalib names are known for {type(detector).__name__}")
    found = {n.rpartition("._")[2]: float(t) for n, t in state.items() if n.startswith("post_processor._")}
    return {name: value for name, value in found.items() if value == value}


def to_anomalib(detector: nn.Module) -> dict[str, Tensor]:
    """`detector`'s tensors under anomalib's names."""
    if isinstance(detector, PatchCore):
        model = {"memory_bank": detector.bank.rows, **_extractor_state(detector.extractor, EXTRACTOR)}
    elif isinstance(detector, Padim):
        inverse = detector.whitening @ detector.whitening.mT
        model = {"idx": detector.channels, "gaussian.mean": detector.mean.T.contiguous()}
        model |= {"gaussian.inv_covariance": inverse, **_extractor_state(detector.extractor, EXTRACTOR)}
    elif isinstance(detector, ReverseDistillation):
        model = {n: t for n, t in detector.state_dict().items() if not n.startswith("extractor.")}
        model |= _extractor_state(detector.extractor, TEACHER)
    elif isinstance(detector, Draem):
        model = {_their_head(n): t for n, t in detector.state_dict().items()}
        if hasattr(detector, "severity_head"):
            twice = {n: t for n, t in model.items() if n.startswith("discriminative_subnetwork.")}
            model |= {n.replace("discriminative_subnetwork.", WRAPPED, 1): t for n, t in twice.items()}
    else:
        raise TypeError(f"no anomalib names are known for {type(detector).__name__}")
    state = {f"model.{name}": tensor.detach().clone() for name, tensor in model.items()}
    if isinstance(detector, PatchCore | Padim):
        state["_is_fitted"] = torch.tensor([True])
    return state


def backbone_state(detector: nn.Module) -> dict[str, Tensor]:
    """The frozen network's tensors under the usual ResNet names; none for the DRAEMs."""
    extractor = getattr(detector, "extractor", None)
    return {} if extractor is None else _extractor_state(extractor, "")


def _own_head(name: str) -> str:
    for own, theirs in SINGLE_SCALE_HEAD.items():
        name = name.replace(f"severity_head.{theirs}", f"severity_head.{own}", 1)
    return name


def _their_head(name: str) -> str:
    for own, theirs in SINGLE_SCALE_HEAD.items():
        name = name.replace(f"severity_head.{own}", f"severity_head.{theirs}", 1)
    return name


def _fill(module: nn.Module, state: Mapping[str, Tensor], may_lack: set[str]) -> None:
    missing, unexpected = module.load_state_dict(state, strict=False)
    missing = [name for name in missing if name not in may_lack]
    if missing or unexpected:
        raise ValueError(f"the checkpoint does not fit: missing {missing[:3]}, unexpected {list(unexpected)[:3]}")


def _root(extractor: nn.Module) -> str:
    """What stands before ``conv1.weight`` in the extractor's names, e.g. ``net.``; the rest are timm's names."""
    stems = [n[: -len("conv1.weight")] for n in extractor.state_dict() if n.endswith("conv1.weight")]
    return min(stems, key=len) if stems else ""


def _fill_extractor(extractor: nn.Module, model: Mapping[str, Tensor], prefix: str) -> None:
    """Use the backbone weights of the checkpoint when it has them; what the extractor does not have is ignored."""
    given = {name[len(prefix) :]: tensor for name, tensor in model.items() if name.startswith(prefix)}
    root, own = _root(extractor), extractor.state_dict()
    if not given:
        return
    fitting = {root + name: tensor for name, tensor in given.items() if root + name in own}
    lacking = [n for n in own if n not in fitting and not n.endswith("num_batches_tracked")]
    if lacking:
        raise ValueError(f"the checkpoint's backbone is another one: it has no {lacking[0]}")
    extractor.load_state_dict(fitting, strict=False)


def _extractor_state(extractor: nn.Module, prefix: str) -> dict[str, Tensor]:
    root = _root(extractor)
    return {prefix + name[len(root) :]: t for name, t in extractor.state_dict().items() if name.startswith(root)}
