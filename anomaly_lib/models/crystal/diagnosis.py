"""What middle fusion does inside a model: raw measurements per atom, taken while one batch passes through."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from anomaly_lib.errors import UserError
from anomaly_lib.fusion.middle import GatedMiddleFusion
from anomaly_lib.models.crystal.fusion import CrystalFusionModel
from anomaly_lib.models.crystal.graph_batch import GraphBatch

# N atoms, B crystals, C hidden channels


@torch.no_grad()
def fusion_measures(
    model: nn.Module, graph: GraphBatch, text: Tensor, text_mask: Tensor | None = None
) -> dict[str, dict[str, Tensor]]:
    """Per fusion module (``layer_2``): named values, one a row (atom or crystal).

    u is the text as it is added, "raw" is the text before `text_scale`. Cosines "before" compare the atoms that enter
    the module with u, cosines "after" the atoms that leave it; only the latter can show that text has been mixed in.
    """
    if not isinstance(model, CrystalFusionModel) or not len(model.middle_fusion_modules):
        raise UserError("this model has no middle fusion: it is trained with use_middle_fusion=True")
    seen: dict[str, tuple[Any, Any]] = {}
    later: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _, given, out, name=name: seen.__setitem__(name, (given, out)))
        for name, module in model.middle_fusion_modules.items()
    ]
    for layer in [*model.alignn_layers, *model.gcn_layers]:
        handles.append(layer.register_forward_hook(lambda _, __, out: later.append(out[0])))
    try:
        model.eval()
        model(graph, text, text_mask)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: _measures(cast(GatedMiddleFusion, model.middle_fusion_modules[name]), given, out, later)
        for name, (given, out) in seen.items()
    }


def _measures(
    module: GatedMiddleFusion, given: tuple[Tensor, Tensor, Tensor], out: tuple[Tensor, Tensor], later: list[Tensor]
) -> dict[str, Tensor]:
    atoms, context, owner = given
    fused, gate = out
    raw = module.text_transform(context)  # [B, C]
    added = module.update(atoms, context, owner)  # [N, C]
    seen = module.gate_input(atoms, added)  # [N, 2C]
    half = atoms.shape[1]

    def length(rows: Tensor) -> Tensor:
        return torch.linalg.vector_norm(rows, dim=1)

    change = length(fused - atoms)
    found = {
        "text_input_norm": length(context),
        "text_raw_norm": length(raw),
        "text_added_norm": length(added),
        "node_norm_before": length(atoms),
        "node_norm_after": length(fused),
        "gate_node_half_norm": length(seen[:, :half]),
        "gate_text_half_norm": length(seen[:, half:]),
        "alpha": gate.mean(1),
        "alpha_channel_std": gate.std(1),
        "gate_below_0.1": (gate < 0.1).float().mean(1),
        "gate_above_0.9": (gate > 0.9).float().mean(1),
        "gate_0.3_to_0.7": ((gate > 0.3) & (gate < 0.7)).float().mean(1),
        "injected_share": length(gate * added) / length(atoms).clamp_min(1e-8),
        "cosine_before": cosine_similarity(atoms, added, dim=1),
        "cosine_after": cosine_similarity(fused, added, dim=1),
        "change": change,
        "relative_change": change / length(atoms).clamp_min(1e-8),
    }
    for depth, nodes in enumerate(later):
        found[f"cosine_layer_{depth}"] = cosine_similarity(nodes, added, dim=1)
    return found
