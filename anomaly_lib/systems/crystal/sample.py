"""Options of the tools that look into trained crystal models; imports no torch."""

from dataclasses import dataclass
from typing import Optional

from anomaly_lib.config import Options, arg


@dataclass
class SampleArgs(Options):
    """The crystals that a trained model is looked at on."""

    data_path: Optional[str] = arg(
        None, "folder of the data; None = that of the training run", type=str, aliases=["root-dir"]
    )
    dataset: Optional[str] = arg(None, "layout of the data; None = that of the training run", type=str)
    property: Optional[str] = arg(None, "property folder; None = that of the training run", type=str)
    weights: Optional[str] = arg(None, "where the text encoder's weights lie now", type=str, aliases=["text-weights"])
    part: str = arg("all", "which crystals", choices=["all", "train", "val", "test"])
    n_samples: int = arg(200, "how many of them", at_least=2)
