"""The networks of the original crystal programs, told by the names and shapes of their tensors.

ALIGNN, CrysMMNet and the programs that grew from it name their tensors as `CrystalFusionModel` and `ALIGNN` do here;
what differs between their versions is which tensors there are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.errors import UserError
from anomaly_lib.models.crystal.alignn import ANGLE_BINS, EDGE_BINS
from anomaly_lib.models.crystal.elements import NUM_ATOM_FEATURES
from anomaly_lib.models.crystal.fusion import PROJECTED

FIRST = "atom_embedding.layer.0.weight"
WRAPPERS = re.compile(r"^(?:_orig_mod\.|module\.)+")  # of torch.compile and DataParallel
LATE = {"gate_graph": "gated", "graph_proj": "bilinear", "graph_align": "adaptive", "graph_factor": "tucker"}


@dataclass
class OriginalNetwork:
    """What a state dict of theirs says."""

    tensors: dict[str, Tensor]
    text_features: int | None  # width of the text vectors; None: it reads no text
    options: dict[str, Any] = field(default_factory=dict)  # of `CrystalFusionConfig`, as far as tensors show them
    left_out: list[int] = field(default_factory=list)  # middle fusion after layers that there are not


def read_network(state: Mapping[str, Tensor]) -> OriginalNetwork | None:
    """The network of these tensors, or None where they are of no crystal program."""
    tensors = {WRAPPERS.sub("", name): value for name, value in state.items()}
    if FIRST not in tensors:
        return None
    _refuse_other_kinds(tensors)
    text = tensors.get("text_projection.projection.weight")
    found = OriginalNetwork(tensors, None if text is None else text.shape[1])
    found.options |= {
        "alignn_layers": _count(tensors, "alignn_layers"),
        "gcn_layers": _count(tensors, "gcn_layers"),
        "hidden_features": tensors[FIRST].shape[0],
        "embedding_features": tensors["edge_embedding.1.layer.0.weight"].shape[0],
        "graph_norm": "batch" if "atom_embedding.layer.1.running_mean" in tensors else "layer",
    }
    if text is not None:
        found.options |= _middle(found) | _late(tensors) | _exchange(tensors)
    _fill(found)
    return found


def _count(tensors: Mapping[str, Tensor], stack: str) -> int:
    """How many layers are stacked."""
    found = {int(match[1]) for match in map(re.compile(rf"{stack}\.(\d+)\.").match, tensors) if match}
    if found != set(range(len(found))):
        raise UserError(f"{stack} has gaps: not a whole state dict")
    return len(found)


def _refuse_other_kinds(tensors: Mapping[str, Tensor]) -> None:
    """One line for networks of the same family that are not here."""
    for name, width, what in (
        (FIRST, NUM_ATOM_FEATURES, "atom features (cgcnn)"),
        ("edge_embedding.1.layer.0.weight", EDGE_BINS, "bins of bond length"),
        ("angle_embedding.1.layer.0.weight", ANGLE_BINS, "bins of bond angle"),
    ):
        if name not in tensors or tensors[name].ndim != 2:
            raise UserError(f"{name} is missing: not a whole state dict of an ALIGNN")
        if tensors[name].shape[1] != width:
            raise UserError(f"reads {tensors[name].shape[1]} {what}; the networks here read {width}")
    if "fc.weight" not in tensors or tensors["fc.weight"].shape[0] != 1:
        raise UserError("predicts more than one value; the networks here predict one")


def _middle(found: OriginalNetwork) -> dict[str, Any]:
    """Middle fusion: where, how wide, which variant. Modules behind the last layer are never called and left out."""
    tensors, layers = found.tensors, found.options["alignn_layers"]
    places = sorted({int(m[1]) for m in map(re.compile(r"middle_fusion_modules\.layer_(\d+)\.").match, tensors) if m})
    found.left_out = [place for place in places if place >= layers]
    behind = tuple(f"middle_fusion_modules.layer_{place}." for place in found.left_out)
    for name in [name for name in tensors if name.startswith(behind)]:
        del tensors[name]
    places = [place for place in places if place < layers]
    if not places:
        return {"use_middle_fusion": False}
    for place in places:  # programs before the learned scale have none, which is the same as 1
        tensors.setdefault(f"middle_fusion_modules.layer_{place}.text_scale", torch.tensor(1.0))
    head = f"middle_fusion_modules.layer_{places[0]}"
    options = {
        "use_middle_fusion": True,
        "middle_fusion_layers": places,
        "middle_fusion_hidden_dim": _rows(tensors, f"{head}.text_transform.0.weight"),
        "middle_fusion_use_gate_norm": f"{head}.gate_norm.weight" in tensors,
        "use_improved_middle_fusion": f"{head}.node_scale" in tensors,
    }
    if options["use_improved_middle_fusion"]:
        options["middle_fusion_use_dynamic_gating"] = f"{head}.importance_modulation" in tensors
    return options


def _late(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    if "fc1.weight" in tensors:
        return {"late_fusion_type": "concat"}
    kind = next((kind for part, kind in LATE.items() if any(f"fusion_module.{part}" in name for name in tensors)), None)
    if kind is None:
        raise UserError("how graph and text are joined is not known here (neither fc1 nor a known fusion_module)")
    width = tensors["fc.weight"].shape[1]
    options = {"late_fusion_type": kind, "late_fusion_output_dim": width}
    if kind == "bilinear":
        options["late_fusion_rank"] = _rows(tensors, "fusion_module.graph_proj.weight") // width
    if kind == "tucker":
        options["late_fusion_rank"] = _rows(tensors, "fusion_module.graph_factor.weight")
    return options


def _exchange(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Cross-modal and fine-grained attention; how many heads share a width, no tensor shows."""
    if tensors["text_projection.projection.weight"].shape[0] != PROJECTED:
        raise UserError(f"projects texts to another width than {PROJECTED}, which the networks here have")
    options: dict[str, Any] = {"use_cross_modal": "cross_modal_attention.g2t_query.weight" in tensors}
    if options["use_cross_modal"]:
        options["cross_modal_hidden_dim"] = _rows(tensors, "cross_modal_attention.g2t_query.weight")
    options["use_fine_grained_attention"] = "fine_grained_attention.a2t_query.weight" in tensors
    if options["use_fine_grained_attention"]:
        options["fine_grained_hidden_dim"] = _rows(tensors, "fine_grained_attention.a2t_query.weight")
        options["fine_grained_use_projection"] = "fine_grained_attention.node_proj_in.weight" in tensors
    return options


def _rows(tensors: Mapping[str, Tensor], name: str) -> int:
    if name not in tensors or tensors[name].ndim != 2:
        raise UserError(f"{name} is missing: not a whole state dict")
    return tensors[name].shape[0]


def _fill(found: OriginalNetwork) -> None:
    """Counters of batch norm, which no output depends on and old files lack."""
    for name in [name for name in found.tensors if name.endswith(".running_mean")]:
        counter = name.replace("running_mean", "num_batches_tracked")
        found.tensors.setdefault(counter, torch.tensor(0))
