"""Options of the fusion modules, under the names of the published crystal + text program; imports no torch."""

from dataclasses import dataclass

from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.errors import OptionError

HEADS = (1, 2, 4, 8)


@dataclass
class MiddleFusionConfig(Options):
    """Text inside the graph layers."""

    middle_fusion_hidden_dim: int = arg(128, "hidden width of the text transform", at_least=1)
    middle_fusion_dropout: float = arg(0.1, "dropout of the text transform and of the output", at_least=0, at_most=0.95)
    middle_fusion_use_gate_norm: Switch = arg(False, "normalise [atoms | text] before the gate")
    middle_fusion_norm_per_half: Switch = arg(
        False,
        "one norm for atoms and one for text instead of one over both",
        needs={"middle_fusion_use_gate_norm": True},
    )
    middle_fusion_use_learnable_scale: Switch = arg(False, "learn a scale on the text")
    middle_fusion_initial_scale: float = arg(1.0, "where that scale starts")
    middle_fusion_use_residual_scaling: Switch = arg(True, "improved variant: learn a scale on the atoms")
    middle_fusion_use_dynamic_gating: Switch = arg(True, "improved variant: importance of each atom")
    middle_fusion_initial_node_scale: float = arg(1.0, "improved variant: where the atoms' scale starts")


@dataclass
class FineGrainedConfig(Options):
    """Atoms that read words."""

    fine_grained_hidden_dim: int = arg(256, "width of that attention", at_least=1)
    fine_grained_num_heads: int = arg(8, "its heads", choices=HEADS)
    fine_grained_dropout: float = arg(0.1, "its dropout", at_least=0, at_most=0.95)
    fine_grained_use_projection: Switch = arg(True, "project atoms and words first")

    def check(self) -> None:
        check_heads(self, "fine_grained_hidden_dim", "fine_grained_num_heads")


@dataclass
class CrossModalConfig(Options):
    """Graph and text vectors that read each other."""

    cross_modal_hidden_dim: int = arg(256, "width of the exchange", at_least=1)
    cross_modal_num_heads: int = arg(4, "its heads", choices=HEADS)
    cross_modal_dropout: float = arg(0.1, "its dropout, also that of late fusion", at_least=0, at_most=0.95)
    cross_modal_attention_type: str = arg(
        "bidirectional", "unidirectional = only the graph reads", choices=["bidirectional", "unidirectional"]
    )

    def check(self) -> None:
        check_heads(self, "cross_modal_hidden_dim", "cross_modal_num_heads")


def check_heads(config: Options, width: str, heads: str) -> None:
    """The width must be a multiple of the number of heads."""
    if getattr(config, width) % getattr(config, heads):
        raise OptionError(f"{width}={getattr(config, width)}: is not a multiple of {heads}={getattr(config, heads)}")
