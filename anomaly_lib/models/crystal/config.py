"""Configurations of the crystal networks, which are option groups of the crystal system; imports no torch."""

from dataclasses import dataclass

from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.errors import OptionError
from anomaly_lib.fusion.config import CrossModalConfig, FineGrainedConfig, MiddleFusionConfig
from anomaly_lib.fusion.names import LATE_FUSION_NAMES


@dataclass
class ALIGNNConfig(Options):
    """The graph encoder."""

    alignn_layers: int = arg(4, "layers with bond angles", at_least=0)
    gcn_layers: int = arg(4, "layers over bonds only", at_least=0)
    hidden_features: int = arg(256, "channels", at_least=8)
    embedding_features: int = arg(64, "width between the radial bases and the channels", at_least=1)
    graph_dropout: float = arg(0.0, "dropout in the graph layers", at_least=0, at_most=0.95)
    graph_norm: str = arg(
        "batch",
        "normalisation in the graph encoder: batch, or layer as in alignn_layernorm and alignn_atomwise",
        choices=["batch", "layer"],
        needs={"modality": ("both", "graph")},
    )
    learned_elements: Switch = arg(
        False, "add a learned vector per element to the 92 published features", needs={"modality": ("both", "graph")}
    )


@dataclass
class CrystalFusionConfig(ALIGNNConfig, MiddleFusionConfig, FineGrainedConfig, CrossModalConfig):
    """Where graph and text meet."""

    use_middle_fusion: Switch = arg(False, "inject the text after chosen ALIGNN layers")
    middle_fusion_layers: list[int] = arg([2], "ALIGNN layers, counted from 0, after which it is injected")
    use_improved_middle_fusion: Switch = arg(False, "the variant with node scale and importance gate")
    use_fine_grained_attention: Switch = arg(False, "atoms read word pieces before pooling")
    use_cross_modal: Switch = arg(True, "exchange between the graph vector and the text vector")
    cross_modal_tokens: Switch = arg(
        False,
        "attend to all atoms and words; without it each side is one vector and the attention weight is always 1",
        needs={"use_cross_modal": True},
    )
    late_fusion_type: str = arg("concat", "how both vectors become one", choices=["concat", *LATE_FUSION_NAMES])
    late_fusion_rank: int = arg(16, "rank of bilinear and tucker", at_least=1)
    late_fusion_output_dim: int = arg(64, "width after late fusion (all but concat)", at_least=1)

    @property
    def reads_tokens(self) -> bool:
        """True when something reads single word pieces, not only the vector of the whole text."""
        return self.use_fine_grained_attention or (self.use_cross_modal and self.cross_modal_tokens)

    def check(self) -> None:
        for layer in self.middle_fusion_layers if self.use_middle_fusion else ():
            if not 0 <= layer < self.alignn_layers:
                has = f"has layers 0 to {self.alignn_layers - 1}" if self.alignn_layers else "has none"
                raise OptionError(
                    f"middle_fusion_layers={' '.join(map(str, self.middle_fusion_layers))}: names layer {layer}, but "
                    f"alignn_layers={self.alignn_layers} {has}"
                )
