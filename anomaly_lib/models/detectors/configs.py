"""Options of the detectors of HDMAP's studies, each with its only default. This file loads no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Optional

from anomaly_lib.config import Options, Switch, arg, override, shown
from anomaly_lib.errors import OptionError
from anomaly_lib.options import BackboneArgs, RunArgs

DECODER_BLOCKS = {"resnet18": (2, 2, 2), "resnet34": (3, 4, 6), "resnet50": (3, 4, 6), "wide_resnet50_2": (3, 4, 6)}
"""ResNets that Reverse Distillation has a mirrored decoder for, and its blocks a stage."""


@dataclass
class PatchCoreConfig(Options):
    """PatchCore: a memory of normal patches."""

    layers: list[str] = arg(["layer2", "layer3"], "stages of the frozen network that are read")
    coreset_ratio: float = arg(
        0.1,
        "share of patches that are kept",
        at_least=0,
        at_most=1,
        aliases=["coreset-sampling-ratio"],
        needs={"coreset_size": None},
    )
    coreset_size: Optional[int] = arg(None, "number of patches that are kept; None = the share", type=int, at_least=1)
    neighbours: int = arg(
        9,
        "neighbours in the re-weighted image score",
        at_least=1,
        aliases=["num-neighbors"],
        needs={"scoring": "reweighted"},
    )
    scoring: str = arg("reweighted", "image score: re-weighted or plain maximum", choices=["reweighted", "max"])
    patch_neighbours: int = arg(1, "nearest patches averaged in a patch's score", at_least=1)
    chunk_rows: Optional[int] = arg(
        None,
        "patches held in memory at a time (two-level coreset); None = all",
        type=int,
        at_least=1,
    )
    rows: str = arg(
        "auto",
        "vectors of each layer as they are, of length 1, or of mean 0 and deviation 1; auto = unit for transformers "
        "(a few of whose channels outweigh all others), raw for others",
        choices=["auto", "raw", "unit", "layernorm"],
    )
    squared: Switch = arg(False, "squared distances, as in the original PatchCore")
    embedding: str = arg("concat", "patch vectors: anomalib's or the original's", choices=["concat", "aggregate"])
    aggregate_dim: int = arg(1024, "length of aggregated patch vectors", at_least=1, needs={"embedding": "aggregate"})
    projection: Switch = arg(True, "choose the coreset on a random projection where that is narrower")
    upsample: str = arg("bilinear", "resize of the map", choices=["bilinear", "nearest"])
    sigma: float = arg(4.0, "Gaussian smoothing of the map", at_least=0)
    seed: int = override(RunArgs, "seed")


@dataclass
class PadimConfig(Options):
    """PaDiM: a Gaussian at each position."""

    features: int = arg(
        100,
        "feature channels that are kept (published: 100 on resnet18, 550 on wide_resnet50_2)",
        at_least=1,
        aliases=["n-features"],
    )
    layers: list[str] = override(PatchCoreConfig, "layers", ["layer1", "layer2", "layer3"])
    rows: str = override(PatchCoreConfig, "rows")
    sigma: float = override(PatchCoreConfig, "sigma")
    seed: int = override(RunArgs, "seed")


@dataclass
class ReverseDistillationConfig(Options):
    """Reverse Distillation: a student of the frozen network's normal features."""

    backbone: str = override(
        BackboneArgs, "backbone", "wide_resnet50_2", help="the frozen network, which the decoder mirrors"
    )
    layers: list[str] = override(PadimConfig, "layers")
    map_mode: str = arg(
        "add", "how the maps of the layers are joined", choices=["add", "multiply"], aliases=["anomaly-map-mode"]
    )
    sigma: float = override(PatchCoreConfig, "sigma")

    def check(self) -> None:
        if self.backbone not in DECODER_BLOCKS:
            raise OptionError(
                f"backbone={self.backbone}: no decoder mirrors it; choose from {', '.join(DECODER_BLOCKS)}"
            )
        if len(self.layers) != 3:
            raise OptionError(f"layers={shown(self.layers)}: Reverse Distillation needs three layers")


@dataclass
class DraemNetConfig(Options):
    """DRAEM's networks: repair, then segment what the repair changed."""

    channels: int = arg(3, "channels of the input: 1 for grey images, else 3", choices=[1, 3])
    repair_width: int = arg(128, "base width of the repair network", at_least=1)
    segment_width: int = arg(64, "base width of the segmentation network", at_least=1)
    concat_order: str = arg(
        "image-first", "what comes first in the segmentation's input", choices=["image-first", "repair-first"]
    )
    score: str = arg(
        "max",
        "score of a map: its maximum, or that of its 21 x 21 means",
        choices=["max", "mean21-max"],
        aliases=["draem-score"],
    )
    anomaly_probability: float = arg(0.5, "share of training images that get damaged", at_least=0, at_most=1)
    focal_alpha: float = arg(
        -1.0, "focal weight of anomalous pixels; -1 = both kinds weigh alike, as the paper says", at_least=-1, at_most=1
    )
    focal_weight: float = arg(1.0, "weight of the focal term beside those of the repair", at_least=0)


@dataclass
class DraemConfig(DraemNetConfig):
    """DRAEM: repair, then segment what the repair changed."""

    textures: Optional[str] = arg(None, "folder of texture images; None = Perlin noise itself", type=str)


@dataclass
class DraemSevNetConfig(DraemNetConfig):
    """DRAEM-SevNet: a severity head on DRAEM."""

    patch_width_range: list[int] = arg([20, 80], "patch widths of the pasted faults", at_least=1, length=2)
    patch_ratio_range: list[float] = arg([2.0, 4.0], "height over width of the pasted faults", length=2)
    patch_count: int = arg(1, "patches an image", at_least=1)

    head_mode: str = arg(
        "single_scale",
        "activations that the severity head reads",
        choices=["single_scale", "multi_scale"],
        aliases=["severity-head-mode"],
    )
    head_pooling: str = arg(
        "gap", "how the head pools them", choices=["gap", "spatial_aware"], aliases=["severity-head-pooling-type"]
    )
    head_hidden: int = arg(128, "width of the head", at_least=2, aliases=["severity-head-hidden"])
    head_grid: int = arg(
        4,
        "grid of spatial pooling",
        at_least=1,
        aliases=["severity-head-spatial-size"],
        needs={"head_pooling": "spatial_aware"},
    )
    head_attention: Switch = arg(
        True,
        "attention before spatial pooling",
        aliases=["severity-head-use-spatial-attention"],
        needs={"head_pooling": "spatial_aware"},
    )
    combination: str = arg(
        "simple_average",
        "image score from map score and severity",
        choices=["simple_average", "weighted_average", "maximum"],
        aliases=["score-combination"],
    )
    combination_weight: float = arg(
        0.5,
        "weight of the severity in it",
        at_least=0,
        at_most=1,
        aliases=["severity-weight-for-combination"],
        needs={"combination": "weighted_average"},
    )
    severity_weight: float = arg(0.5, "weight of the severity loss", at_least=0)
    severity_loss: str = arg("mse", "severity loss", choices=["mse", "smooth_l1"], aliases=["severity-loss-type"])
    severity_max: float = arg(1.0, "largest severity drawn")
    severity_target: str = arg(
        "normalised",
        "label of the head: severity / severity_max, or the severity as it is (raw)",
        choices=["normalised", "raw"],
    )

    def check(self) -> None:
        if self.severity_max <= 0:
            raise OptionError(f"severity_max={self.severity_max}: must be positive")
        for name in ("patch_width_range", "patch_ratio_range"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise OptionError(f"{name}={low} {high}: takes two positive ascending numbers")


def summary_of(name: str, kind: type[Options], config: Any, facts: Sequence[str] = ()) -> str:
    """One line for a module's repr: its options as they are set, then what is known of its state."""
    options = [f"{f.name}={getattr(config, f.name)!r}" for f in fields(kind)]
    return f"{name}({', '.join(options)})" + "".join(f"; {fact}" for fact in facts)
