"""Networks of the crystal system, by the names their documents give them."""

from typing import TYPE_CHECKING

from anomaly_lib.lazy import lazy_names

if TYPE_CHECKING:
    from anomaly_lib.fusion.cross_modal import CrossModalAttention
    from anomaly_lib.fusion.cross_modal import FineGrainedAttention as FineGrainedCrossModalAttention
    from anomaly_lib.fusion.middle import GatedMiddleFusion as MiddleFusionModule
    from anomaly_lib.fusion.middle import ImprovedMiddleFusion as ImprovedMiddleFusionModule
    from anomaly_lib.models.crystal.alignn import ALIGNN, ALIGNNConv, ALIGNNEncoder, EdgeGatedGraphConv
    from anomaly_lib.models.crystal.config import ALIGNNConfig, CrystalFusionConfig
    from anomaly_lib.models.crystal.fusion import CrystalFusionModel, CrystalOutput, ProjectionHead, TextRegressor
    from anomaly_lib.models.crystal.graph_batch import GraphBatch, batch_graphs

PLACES = {
    "ALIGNN": "alignn",
    "ALIGNNConfig": "config",
    "ALIGNNConv": "alignn",
    "ALIGNNEncoder": "alignn",
    "CrossModalAttention": "fusion",
    "CrystalFusionConfig": "config",
    "CrystalFusionModel": "fusion",
    "CrystalOutput": "fusion",
    "EdgeGatedGraphConv": "alignn",
    "FineGrainedCrossModalAttention": "fusion:FineGrainedAttention",
    "GraphBatch": "graph_batch",
    "ImprovedMiddleFusionModule": "fusion:ImprovedMiddleFusion",
    "MiddleFusionModule": "fusion:GatedMiddleFusion",
    "ProjectionHead": "fusion",
    "TextRegressor": "fusion",
    "batch_graphs": "graph_batch",
}
"""Name -> file of this folder it lies in; some fusion modules have another name in the document than in `fusion`."""

__getattr__, __dir__ = lazy_names(__name__, PLACES)
__all__ = [
    "ALIGNN",
    "ALIGNNConfig",
    "ALIGNNConv",
    "ALIGNNEncoder",
    "CrossModalAttention",
    "CrystalFusionConfig",
    "CrystalFusionModel",
    "CrystalOutput",
    "EdgeGatedGraphConv",
    "FineGrainedCrossModalAttention",
    "GraphBatch",
    "ImprovedMiddleFusionModule",
    "MiddleFusionModule",
    "ProjectionHead",
    "TextRegressor",
    "batch_graphs",
]
