"""Options of the detectors that need no training, each with its published default. This file loads no torch."""

from dataclasses import dataclass
from typing import Any, Optional

from anomaly_lib.config import Options, Preset, Switch, arg, override, shown
from anomaly_lib.errors import OptionError
from anomaly_lib.options import RunArgs

SUMMARY = "pooled"
"""The output of a frozen network that is one vector an image."""


@dataclass
class AnomalyDinoConfig(Options):
    """AnomalyDINO: nearest normal patch of turned supports."""

    layers: list[str] = arg(["patch_tokens"], "outputs of the frozen network whose mean is compared")
    rotations: int = arg(8, "evenly spread turns of a normal image that are learnt; 1 = as it is", at_least=1)
    mask: Switch = arg(
        False,
        "score the object alone (published: on for all of VisA; in MVTec for capsule hazelnut pill screw toothbrush)",
    )
    mask_support: Switch = arg(False, "learn the object alone, too", needs={"mask": True})
    mask_threshold: float = arg(10.0, "first principal component beyond which a patch is object", needs={"mask": True})
    neighbours: int = arg(1, "nearest patches averaged in a patch's score", at_least=1)
    top_share: float = arg(0.01, "share of patches whose mean is the image score", at_least=0, at_most=1)
    sigma: float = arg(4.0, "Gaussian smoothing of the map", at_least=0)


@dataclass
class FewShotConfig(Options):
    """Few normal images: nearest normal patch and principal subspace together (our own)."""

    layers: list[str] = override(
        AnomalyDinoConfig,
        "layers",
        ["layer.2", "layer.5", "layer.8"],
        help="outputs of the frozen network that are compared, each at length 1, side by side",
    )
    rotations: int = override(AnomalyDinoConfig, "rotations")
    variance: float = arg(0.95, "share of the variance of each output that its subspace keeps", at_least=0, at_most=1)
    top_share: float = override(AnomalyDinoConfig, "top_share", 0.03)
    sigma: float = override(AnomalyDinoConfig, "sigma")


@dataclass
class SubspaceAdConfig(Options):
    """SubspaceAD: distance to the principal subspace of normal patches."""

    layers: list[str] = arg(
        [f"layer.{n}" for n in range(22, 29)], "outputs of the frozen network whose mean is looked at"
    )
    rotations: int = arg(
        30, "random turns of a normal image that are learnt beside it (published: 0 for transistor, 0 with all images)",
        at_least=0,
    )  # fmt: skip
    variance: float = arg(
        0.99, "share of the variance that the subspace keeps", at_least=0, at_most=1, needs={"components": None}
    )
    components: Optional[int] = arg(
        None, "dimensions of the subspace; None = as many as keep the share", type=int, at_least=1
    )
    top_share: float = override(AnomalyDinoConfig, "top_share", help="share of pixels whose mean is the image score")
    sigma: float = override(AnomalyDinoConfig, "sigma", help="Gaussian smoothing of the map, in a window of 3 x 3")
    seed: int = override(RunArgs, "seed")


@dataclass
class VisionAdConfig(Options):
    """VisionAD: nearest normal patch in three kinds of views."""

    layers: list[str] = arg(
        [f"layer.{n}" for n in range(4, 19)], "outputs of the frozen network whose mean is compared"
    )
    augment_support: Switch = arg(True, "learn each normal image in six views; off = as it is alone")
    augment_query: Switch = arg(True, "sum the maps of three views of a scored image; off = as it is alone")
    top_share: float = override(SubspaceAdConfig, "top_share")
    sigma: float = override(AnomalyDinoConfig, "sigma", 0.0)

    def check(self) -> None:
        sides = getattr(self, "image_size", [])
        if self.augment_support and len(set(sides)) > 1:
            raise OptionError(
                f"image_size={shown(sides)}: quarter turns of the six views take squares; give one number, or "
                "augment_support=False"
            )


@dataclass
class RadConfig(Options):
    """RAD: nearest patch near the same place of the most similar normal images."""

    layers: list[str] = arg(
        ["pooled", "normed.3", "normed.6", "normed.9", "normed.11"],
        "outputs of the frozen network: pooled says which images are similar, the others are compared one by one",
    )
    nearest_images: int = arg(150, "most similar normal images whose patches are searched", at_least=1)
    radius: int = arg(1, "rows and columns by which a normal patch may lie elsewhere (published: 0 to 2)", at_least=0)
    top_share: float = override(SubspaceAdConfig, "top_share")
    sigma: float = override(AnomalyDinoConfig, "sigma", 1.0)

    def check(self) -> None:
        if SUMMARY not in self.layers or len(self.layers) < 2:
            raise OptionError(f"layers={shown(self.layers)}: takes {SUMMARY}, which says what is similar, and others")


@dataclass
class MuScConfig(Options):
    """MuSc: test images that score one another."""

    layers: list[str] = override(RadConfig, "layers", [SUMMARY, "layer.5", "layer.11", "layer.17", "layer.23"])
    windows: list[int] = arg([1, 3, 5], "sides of the neighbourhoods whose mean is compared", at_least=1)
    nearest_share: float = arg(
        0.3, "share of the other images, the most alike, whose distances are averaged", at_least=0, at_most=1
    )
    rescore: list[int] = arg(
        [1, 2, 3], "over how many similar images an image score is averaged (published for VisA: 1 8 9); 0 = off",
        at_least=0,
    )  # fmt: skip
    sigma: float = override(AnomalyDinoConfig, "sigma", 0.0)

    def check(self) -> None:
        if len(self.layers) - (SUMMARY in self.layers) < 1 or (SUMMARY not in self.layers and 0 not in self.rescore):
            raise OptionError(
                f"layers={shown(self.layers)}: takes {SUMMARY} (or rescore=0), which says what is similar, and others"
            )
        even = [size for size in self.windows if size % 2 == 0]
        if even:
            raise OptionError(f"windows={even[0]}: a neighbourhood has a centre; give odd numbers")


@dataclass
class WinClipConfig(Options):
    """WinCLIP: windows of the image compared with words, and with normal images where there are any."""

    layers: list[str] = arg(
        [SUMMARY, "window.2", "window.3", "normed.11"],
        "outputs of CLIP: pooled and windows are compared with words; windows and all others with normal images",
    )
    class_text: str = arg("object", "what the class is called in prompts")
    few_shot: Switch = arg(True, "compare with normal images, too; off = zero-shot, with words alone")
    temperature: float = arg(0.07, "by which cosines are divided before their softmax", at_least=1e-6)
    sigma: float = override(AnomalyDinoConfig, "sigma", 0.0)

    def check(self) -> None:
        if SUMMARY not in self.layers or not any(name.startswith("window.") for name in self.layers):
            raise OptionError(f"layers={shown(self.layers)}: takes {SUMMARY} and at least one window.N")


FAMILY: dict[str, dict[str, Any]] = {
    "fewshot": {
        "config": FewShotConfig,
        "module": "fewshot:FewShot",
        "training": {"backbone": "timm:vit_small_patch14_reg4_dinov2", "image_size": [448, 448], "batch_size": 8},
        "demo": {"layers": ["layer.1", "layer.2", "layer.3"]},
        # Many images show what turns would add; eight turns of all of them would only fill the memory.
        "presets": [Preset(when={"shot": None}, then={"rotations": 1})],
    },
    "anomalydino": {
        "config": AnomalyDinoConfig,
        "module": "anomalydino:AnomalyDino",
        "training": {"backbone": "timm:vit_small_patch14_dinov2", "image_size": [448, 448], "batch_size": 8},
        "demo": {"layers": ["layer.3"]},
    },
    "subspacead": {
        "config": SubspaceAdConfig,
        "module": "subspacead:SubspaceAd",
        "training": {"backbone": "timm:vit_giant_patch14_reg4_dinov2", "image_size": [672, 672], "batch_size": 1},
        "demo": {"layers": ["layer.2", "layer.3"]},
    },
    "visionad": {
        "config": VisionAdConfig,
        "module": "visionad:VisionAd",
        "training": {"backbone": "timm:vit_large_patch14_reg4_dinov2", "image_size": [448, 448], "batch_size": 1},
        "demo": {"layers": ["layer.1", "layer.2", "layer.3"]},
        "small": {"layers": ["layer.1", "layer.2", "layer.3"], "augment_support": False},
    },
    "rad": {
        "config": RadConfig,
        "module": "rad:Rad",
        "placed": True,
        "training": {"backbone": "dinov3-vitb16", "image_size": [448, 448], "batch_size": 8},
        "demo": {"layers": [SUMMARY, "layer.1", "layer.3"]},
    },
    "musc": {
        "config": MuScConfig,
        "module": "musc:MuSc",
        "transductive": True,
        "training": {"backbone": "ViT-L-14-336:openai", "image_size": [518, 518], "batch_size": 4},
        "demo": {"layers": [SUMMARY, "layer.1", "layer.3"]},
    },
    "winclip": {
        "config": WinClipConfig,
        "module": "winclip:WinClip",
        "training": {"backbone": "ViT-B-16-plus-240", "image_size": [240, 240], "batch_size": 8},
        "demo": {"layers": [SUMMARY, "window.2", "window.3", "normed.4"]},
        "small": {"layers": [SUMMARY, "window.2", "normed.3"]},
    },
}
"""Detector -> its options, where its module lies, published values of what is no option of the module, and what
differs on the demo backbone."""
