"""Which weights the frozen networks of a run hold: recorded, and said where they are random.

One shape everywhere, in run.json and in a checkpoint's `extra`: ``{"weights": {network: sha256 or "random"}}``, and an
empty mapping for a system without a frozen network. `Run.payload` copies it from the record into every checkpoint;
`engine.checkpoint.check_weights` compares when one is loaded or continued.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from anomaly_lib.backbones import FrozenBackbone
from anomaly_lib.backbones.sources import RANDOM
from anomaly_lib.engine.run import Run

Weights = Mapping[str, str]


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


def random_notes(weights: Weights) -> list[str]:
    """The remark that a result needs: which networks are untrained, or nothing."""
    names = [name for name, identity in weights.items() if identity == RANDOM]
    return [f"random weights: {', '.join(names)}"] if names else []


def record_weights(run: Run, weights: dict[str, str]) -> None:
    """Write them into run.json before anything long starts, and say in one line which networks are untrained."""
    run.note(weights=weights)
    for note in random_notes(weights):
        run.log.line(f"{note} (untrained: the figures do not say what the method can do; for that give weight files)")
