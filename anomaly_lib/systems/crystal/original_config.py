"""Configurations of the original crystal programs (ALIGNN, CrysMMNet and those that grew from it) in our words."""

from collections.abc import Mapping
from typing import Any

from anomaly_lib.errors import OptionError
from anomaly_lib.systems.crystal.data.settings import DATASETS

RENAMED = {
    "use_cross_modal_attention": "use_cross_modal",
    "use_contrastive_loss": "use_contrastive",
    "contrastive_loss_weight": "contrastive_weight",
    "n_early_stopping": "early_stopping_patience",
    "random_seed": "seed",
    "root_dir": "data_path",
}
ONLY: Mapping[str, tuple[Any, ...]] = {
    "name": ("alignn", "alignn_layernorm", "alignn_atomwise"),
    "atom_features": ("cgcnn",),
    "atom_input_features": (92,),
    "edge_input_features": (80,),
    "triplet_input_features": (40,),
    "output_features": (1,),
    "use_cutoff_function": (False,),
    "extra_features": (0,),
    "link": ("identity",),
    "zero_inflated": (False,),
    "neighbor_strategy": ("k-nearest",),
    "criterion": ("mse", "bce"),
    "optimizer": ("adamw",),
    "scheduler": ("onecycle",),
    "standard_scalar_and_pca": (False,),
    "target_multiplication_factor": (None,),
    "keep_data_order": (False,),
}
"""Their settings that are no options here: what the networks and the training here are."""
BOOKKEEPING = frozenset(
    ["version", "target", "id_tag", "filename", "pin_memory", "save_dataloader", "write_checkpoint",
     "write_predictions", "store_outputs", "progress", "log_tensorboard", "distributed", "cutoff", "output_dir",
     "num_workers"]
)  # fmt: skip
"""Settings of theirs that say nothing about the model (`cutoff` grows there until all neighbours lie in it)."""
THEIRS = frozenset({"name", "atom_input_features", "atom_features"})


def in_our_words(content: Mapping[str, Any]) -> dict[str, Any]:
    """Options by our names, of one of their configurations (`name`, a nested `model`); any other content as it is."""
    model = content.get("model")
    flat = {**content, **(model if isinstance(model, Mapping) else {})}
    flat.pop("model", None)
    if not THEIRS & flat.keys():
        return dict(content)
    for name, allowed in ONLY.items():
        if name in flat and flat[name] not in allowed:
            raise OptionError(f"{name}={flat[name]}: only {' or '.join(map(str, allowed))} is here")
    dropped = set(ONLY) | BOOKKEEPING | ({"dataset"} if flat.get("dataset") not in DATASETS else set())
    found = {RENAMED.get(name, name): value for name, value in flat.items() if name not in dropped}
    layers = found.get("middle_fusion_layers")
    if isinstance(layers, str):
        found["middle_fusion_layers"] = [int(part) if part.strip().isdigit() else part for part in layers.split(",")]
    threshold = found.pop("classification_threshold", None)
    if threshold is not None:  # there the threshold is what makes it a classification
        found |= {"classification": True, "classification_threshold": threshold}
    return found
