"""Which samples a trained detector is to score."""

from dataclasses import dataclass
from typing import Optional

from anomaly_lib.config import Options, arg


@dataclass
class Choice(Options):
    """The samples to score."""

    split: str = arg("test", "which split to score", choices=["train", "val", "test"])
    data_path: Optional[str] = arg(
        None, "folder of the data; None = the data of the training run", type=str, aliases=["root-dir"]
    )
    dataset: Optional[str] = arg(None, "layout of the data; None = that of the training run", type=str)
    obj: Optional[str] = arg(
        None, "only this class; None = the class(es) of the checkpoint", type=str, aliases=["class-name"]
    )
    shot: Optional[int] = arg(
        None,
        "support images, for systems that can change them after training",
        type=int,
        aliases=["k-shot"],
        at_least=0,
    )
    batch_size: int = arg(16, "inputs scored together", at_least=1)
    on_error: str = arg("fail", "a damaged file stops the evaluation, or is skipped", choices=["fail", "skip"])


EVERYWHERE = frozenset({"data_path", "batch_size"})  # choices that every detector honours
