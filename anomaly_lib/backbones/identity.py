"""Which weights frozen networks hold, in words and for the record.

One shape everywhere, in run.json and in a checkpoint's `extra`: ``{"weights": {network: sha256 or "random"}}``, and an
empty mapping for a system without a frozen network. `engine.checkpoint.check_weights` compares when one is loaded.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from anomaly_lib.backbones.base import FrozenBackbone
from anomaly_lib.backbones.sources import RANDOM

DEMO = "demo-clip"


def weights_of(*nets: Any) -> dict[str, str]:
    """{name: weights id} of every frozen network among `nets` or inside them; None stands for no network."""
    found: dict[str, str] = {}
    for net in nets:
        inside = [one for one in net.modules() if isinstance(one, FrozenBackbone)] if isinstance(net, nn.Module) else []
        for one in inside or ([net] if hasattr(net, "weights_id") else []):
            name, number = one.name, 1
            while found.setdefault(name, one.weights_id) != one.weights_id:  # one network twice, from two files
                number += 1
                name = f"{one.name} #{number}"
    return found


def weights_in_words(name: str, identity: str) -> str:
    """A weight file's checksum, with a warning where the network is untrained or the demo's."""
    if identity == RANDOM:
        return "UNTRAINED (random weights: the figures do not say what the method can do; for that give weight files)"
    return f"weights {identity[:16]}" + (" (DEMO WEIGHTS, learned from drawn pictures)" if name == DEMO else "")


def weight_remarks(weights: Mapping[str, str]) -> list[str]:
    """The remarks that stand beside a result: which networks are untrained, or know drawn pictures alone."""
    untrained = [name for name, identity in weights.items() if identity == RANDOM]
    demo = [name for name, identity in weights.items() if name.startswith(DEMO) and identity != RANDOM]
    said = {f"random weights: {', '.join(untrained)}": untrained, f"demo weights: {', '.join(demo)}": demo}
    return [line for line, names in said.items() if names]
