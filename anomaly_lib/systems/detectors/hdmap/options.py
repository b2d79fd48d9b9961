"""Options of the domain-transfer experiments. This file loads no torch."""

from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from anomaly_lib.config import Preset, arg, override
from anomaly_lib.models.detectors.configs import DRAEMS, READS_BACKBONE
from anomaly_lib.systems.detectors.hdmap.names import DOMAINS, RESIZE_METHODS, VALIDATION
from anomaly_lib.systems.detectors.options import TRAINED, DetectorArgs


@dataclass
class Args(DetectorArgs):
    """Train on one HDMAP domain, test on the others."""

    PRESETS: ClassVar = (
        Preset(when={"data_path": None}, then={"scale": "demo"}),
        Preset(when={"scale": "demo"}, then={"image_size": [32, 96], "batch_size": 16, "sample_images": 2}),
        Preset(when={"scale": "demo", "model": READS_BACKBONE}, then={"backbone": "resnet18", "weights": "random"}),
        Preset(when={"scale": "demo", "model": DRAEMS}, then={"repair_width": 8, "segment_width": 8}),
        Preset(when={"scale": "demo", "model": "draem_sevnet"}, then={"patch_width_range": [4, 16]}),
        Preset(when={"scale": "demo", "model": TRAINED}, then={"epochs": 2}),
    )
    model: str = override(DetectorArgs, "model", aliases=["model-type"])
    image_size: list[int] = override(DetectorArgs, "image_size", aliases=["target-size"])
    epochs: int = override(DetectorArgs, "epochs", aliases=["max-epochs"])
    batch_size: int = override(DetectorArgs, "batch_size", aliases=["train-batch-size"])
    grad_clip: float = override(DetectorArgs, "grad_clip", aliases=["gradient-clip-val"])
    dataset: str = override(DetectorArgs, "dataset", "hdmap", help="always hdmap here", choices=["hdmap"])
    data_path: Optional[str] = override(
        DetectorArgs,
        "data_path",
        help="folder that holds domain_A ... domain_D; None = built-in synthetic maps",
        aliases=["dataset-root"],
    )
    source_domain: str = arg("domain_A", "domain to train on", choices=DOMAINS)
    target_domains: list[str] = arg(["auto"], "domains to test on; auto = all others", choices=["auto", *DOMAINS])
    validation_strategy: str = arg(
        "source_test",
        "source_test: as published, the source's test split both selects the epoch and is reported; "
        "held_out: one half selects, the other is reported",
        choices=VALIDATION,
    )
    false_alarms: float = override(DetectorArgs, "false_alarms", needs={"protocol": "clean"})
    protocol: str = override(
        DetectorArgs,
        "protocol",
        help="clean = the decision keeps a promise on good maps; paper = best F1 on the source, and other quirks",
    )
    resize_method: str = arg("resize_bilinear", "how maps reach image_size", choices=RESIZE_METHODS)
    condition: str = arg("experiment", "name of the experiment")
    sample_images: int = arg(4, "maps drawn per domain and class", at_least=0, needs={"figures": True})
    scale: str = arg("full", "full, or demo = small networks and maps, without data_path too", choices=["full", "demo"])


SIZES_OF_DEMO = frozenset(
    name for preset in Args.PRESETS if preset.when.get("scale") == "demo" for name in preset.then if name != "weights"
)
"""Options that the demo scale sets, even where a condition file has larger values."""


def tiny(**changes: Any) -> Args:
    """Seconds on a CPU: the demo scale with one target."""
    small: dict[str, Any] = {"target_domains": ["domain_B"], "figures": False}
    small |= {"coreset_size": 60} if changes.get("model", "patchcore") == "patchcore" else {}
    return Args(**(small | changes))
