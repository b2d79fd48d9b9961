"""Checkpoints as the original crystal programs write them: their modules' names, their pickled configuration objects.

Only what decides the content of a file is written out here, layer by layer from the published descriptions: networks to
take a state dict from, not to run.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

TEXT = 24  # width of the text vectors of `tiny_bert`


Norm = Callable[[int], nn.Module]


def linear_norm(inputs: int, outputs: int, norm: Norm = nn.BatchNorm1d) -> nn.Module:
    holder = nn.Module()
    holder.layer = nn.Sequential(nn.Linear(inputs, outputs), norm(outputs), nn.SiLU())
    return holder


def gated_convolution(width: int, norm: Norm = nn.BatchNorm1d) -> nn.Module:
    holder = nn.Module()
    for name in ("src_gate", "dst_gate", "edge_gate", "src_update", "dst_update"):
        holder.add_module(name, nn.Linear(width, width))
    holder.bn_edges, holder.bn_nodes = norm(width), norm(width)
    return holder


def line_graph_layer(width: int, norm: Norm = nn.BatchNorm1d) -> nn.Module:
    holder = nn.Module()
    holder.node_update, holder.edge_update = gated_convolution(width, norm), gated_convolution(width, norm)
    return holder


def radial(bins: int, low: float, high: float) -> nn.Module:
    holder = nn.Module()
    holder.register_buffer("centers", torch.linspace(low, high, bins))
    return holder


def alignn(
    *,
    hidden: int = 16,
    embedding: int = 8,
    layers: int = 3,
    gcn: int = 2,
    outputs: int = 1,
    norm: Norm = nn.BatchNorm1d,
) -> nn.Module:
    """ALIGNN: atoms, bonds, angles, one value."""
    net = nn.Module()
    net.atom_embedding = linear_norm(92, hidden, norm)
    for name, bins, (low, high) in (("edge_embedding", 80, (0, 8)), ("angle_embedding", 40, (-1, 1))):
        parts = radial(bins, low, high), linear_norm(bins, embedding, norm), linear_norm(embedding, hidden, norm)
        net.add_module(name, nn.Sequential(*parts))
    net.alignn_layers = nn.ModuleList(line_graph_layer(hidden, norm) for _ in range(layers))
    net.gcn_layers = nn.ModuleList(gated_convolution(hidden, norm) for _ in range(gcn))
    net.fc = nn.Linear(hidden, outputs)
    return net


def projection(width: int) -> nn.Module:
    holder = nn.Module()
    holder.projection, holder.fc, holder.layer_norm = nn.Linear(width, 64), nn.Linear(64, 64), nn.LayerNorm(64)
    return holder


def crysmmnet(*, hidden: int = 16, **sizes: int) -> nn.Module:
    """CrysMMNet: ALIGNN and a text vector, joined by two layers."""
    net = alignn(hidden=hidden, **sizes)
    net.graph_projection, net.text_projection = projection(hidden), projection(TEXT)
    net.fc1, net.fc = nn.Linear(128, 64), nn.Linear(64, 1)
    return net


def middle_fusion(
    hidden: int, *, norm: bool = False, scale: float | None = None, improved: bool = False, old: bool = False
) -> nn.Module:
    """`scale`: a learned one; None = the constant 1. `old`: from before there was a scale."""
    holder = nn.Module()
    holder.text_transform = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, hidden))
    if not old:
        if scale is None:
            holder.register_buffer("text_scale", torch.tensor(1.0))
        else:
            holder.text_scale = nn.Parameter(torch.tensor(scale))
    if norm:
        holder.gate_norm = nn.LayerNorm(2 * hidden)
    holder.gate = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.Sigmoid())
    holder.layer_norm = nn.LayerNorm(hidden)
    if improved:
        half = hidden // 2
        holder.node_scale = nn.Parameter(torch.tensor(1.5))
        holder.importance_net = nn.Sequential(
            nn.Linear(hidden, half), nn.ReLU(), nn.Dropout(0.1), nn.Linear(half, 1), nn.Sigmoid()
        )
        holder.importance_modulation = nn.Parameter(torch.tensor(0.7))
    return holder


def exchange(width: int = 32) -> nn.Module:
    holder = nn.Module()
    for side in ("g2t", "t2g"):
        for part in ("query", "key", "value"):
            holder.add_module(f"{side}_{part}", nn.Linear(64, width))
    holder.graph_output, holder.text_output = nn.Linear(width, 64), nn.Linear(width, 64)
    holder.layer_norm_graph, holder.layer_norm_text = nn.LayerNorm(64), nn.LayerNorm(64)
    return holder


def fine_grained(hidden: int, width: int = 32) -> nn.Module:
    holder = nn.Module()
    holder.node_proj_in, holder.token_proj_in = nn.Linear(hidden, width), nn.Linear(TEXT, width)
    for side in ("a2t", "t2a"):
        for part in ("query", "key", "value"):
            holder.add_module(f"{side}_{part}", nn.Linear(width, width))
    holder.node_output, holder.token_output = nn.Linear(width, hidden), nn.Linear(width, TEXT)
    holder.layer_norm_node, holder.layer_norm_token = nn.LayerNorm(hidden), nn.LayerNorm(TEXT)
    return holder


def sage(*, layers_of_text: tuple[int, ...] = (2,), hidden: int = 16, **fusion: Any) -> nn.Module:
    """The program of the document: middle fusion, and the exchange that is on by default."""
    net = crysmmnet(hidden=hidden)
    net.middle_fusion_modules = nn.ModuleDict(
        {f"layer_{place}": middle_fusion(hidden, **fusion) for place in layers_of_text}
    )
    net.cross_modal_attention = exchange()
    return net


def trained(net: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Its state dict with numbers that matter everywhere: no bias and no mean of a batch norm is 0."""
    torch.manual_seed(seed)
    state = net.state_dict()
    for name, value in state.items():
        if value.is_floating_point() and value.ndim and not name.endswith("centers"):
            noise = torch.rand_like(value) - 0.5
            state[name] = 1 + 0.4 * noise if name.endswith(("running_var", "norm.weight")) else 0.6 * noise
    return state


class PickledSettings:
    """What pydantic's first edition puts into a pickle: the values one level down, beside the names of those given."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __getstate__(self) -> dict[str, Any]:
        return {"__dict__": self.__dict__, "__fields_set__": set(self.__dict__), "__private_attribute_values__": {}}


SETTINGS = {
    "name": "alignn", "alignn_layers": 3, "gcn_layers": 2, "atom_input_features": 92, "edge_input_features": 80,
    "triplet_input_features": 40, "embedding_features": 8, "hidden_features": 16, "output_features": 1,
    "link": "identity", "zero_inflated": False, "classification": False,
}  # fmt: skip
SAGE_SETTINGS = {
    **SETTINGS, "graph_dropout": 0.15, "use_middle_fusion": True, "middle_fusion_layers": "2",
    "middle_fusion_hidden_dim": 12, "middle_fusion_num_heads": 2, "middle_fusion_dropout": 0.35,
    "middle_fusion_use_gate_norm": False, "middle_fusion_use_learnable_scale": False,
    "use_cross_modal_attention": True, "cross_modal_hidden_dim": 32, "cross_modal_num_heads": 2,
    "use_fine_grained_attention": False, "use_contrastive_loss": True, "contrastive_loss_weight": 0.2,
}  # fmt: skip


def save_with_object(path: Path, content: dict[str, Any], values: dict[str, Any], kind: type = PickledSettings) -> Path:
    """Save `content` with an object of a module that no longer exists when the file is read."""
    module = ModuleType("models.alignn")
    theirs = type("ALIGNNConfig", (kind,), {"__module__": module.__name__})
    module.ALIGNNConfig = theirs  # type: ignore[attr-defined]
    sys.modules |= {"models": ModuleType("models"), module.__name__: module}
    try:
        torch.save({**content, "config": theirs(**values)}, path)
    finally:
        del sys.modules["models"], sys.modules[module.__name__]
    return path


def best_test_model(folder: Path, net: nn.Module | None = None, **settings: Any) -> Path:
    """best_test_model.pt as the document's program leaves it, with the state of its optimizer."""
    net = net if net is not None else sage()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=10)
    content = {
        "model": trained(net), "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(), "epoch": 87,
        "test_mae": 0.0421,
    }  # fmt: skip
    return save_with_object(folder / "best_test_model.pt", content, {**SAGE_SETTINGS, **settings})


def tiny_bert(folder: Path) -> Path:
    """A local folder as the hub has it, with random weights and a small vocabulary."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "compound", "is", "sample", "was", "annealed"]
    words += ["quenched", "water", "high", "low", "vacancies"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=TEXT, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
