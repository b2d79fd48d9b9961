"""Options of the domain-transfer experiments. This file loads no torch."""

from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from anomaly_lib.config import Preset, arg, override
from anomaly_lib.errors import OptionError
from anomaly_lib.models.detectors.registry import Entry, entry_of
from anomaly_lib.options import DecisionArgs
from anomaly_lib.systems.detectors.hdmap.names import DOMAINS, RESIZE_METHODS, VALIDATION
from anomaly_lib.systems.detectors.options import DEFAULT, DetectorArgs, TrainingArgs


@dataclass
class Training(TrainingArgs):
    """Training in epochs."""

    epochs: int = override(TrainingArgs, "epochs", aliases=["max-epochs"])
    grad_clip: float = override(TrainingArgs, "grad_clip", aliases=["gradient-clip-val"])


DEMO = {"image_size": [32, 96], "batch_size": 16, "sample_images": 2, "epochs": 2, "patch_width_range": [4, 16]}
"""Sizes of the demo scale."""


@dataclass
class Args(DetectorArgs):
    """Train on one HDMAP domain, test on the others."""

    TRAINING: ClassVar = Training
    model: str = override(DetectorArgs, "model", aliases=["model-type"])
    image_size: list[int] = override(DetectorArgs, "image_size", aliases=["target-size"])
    batch_size: int = override(DetectorArgs, "batch_size", aliases=["train-batch-size"])
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
    false_alarms: float = override(DecisionArgs, "false_alarms", needs={"protocol": "clean"})
    protocol: str = override(
        DetectorArgs,
        "protocol",
        help="clean = the decision keeps a promise on good maps; paper = best F1 on the source, and other quirks",
    )
    resize_method: str = arg("resize_bilinear", "how maps reach image_size", choices=RESIZE_METHODS)
    condition: str = arg("experiment", "name of the experiment")
    sample_images: int = arg(4, "maps drawn per domain and class", at_least=0, needs={"figures": True})
    scale: str = arg("full", "full, or demo = small networks and maps, without data_path too", choices=["full", "demo"])

    @classmethod
    def presets_of(cls, entry: Entry) -> tuple[Preset, ...]:
        return (
            Preset(when={"data_path": None}, then={"scale": "demo"}),
            Preset(when={"scale": "demo"}, then=sizes_of_demo(entry)),
        )

    def check(self) -> None:
        if entry_of(self.model).transductive:
            raise OptionError(f"model={self.model}: scores images by one another, which a transfer cannot be read from")


def sizes_of_demo(entry: Entry) -> dict[str, Any]:
    """Options that the demo scale sets; of what an experiment keeps, the size of a coreset stays as it is."""
    return {name: value for name, value in entry.small.items() if name != "coreset_size"} | DEMO


def scale_remarks(args: Args) -> list[str]:
    """What must stand beside the figures of a run that is no full one."""
    synthetic = ["synthetic maps"] if args.data_path is None else []
    return synthetic + (["demo scale: small networks and maps, few epochs"] if args.scale == "demo" else [])


def tiny(**changes: Any) -> Args:
    """Seconds on a CPU: the demo scale with one target."""
    small: dict[str, Any] = {"target_domains": ["domain_B"], "figures": False}
    small |= {"coreset_size": 60} if changes.get("model", DEFAULT) == DEFAULT else {}
    return Args(**(small | changes))
