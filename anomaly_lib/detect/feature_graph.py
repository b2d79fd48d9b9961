"""What a detector hands to an exporter that is scored from features: its frozen networks run elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class FeatureGraph:
    """Scores as a function of named tensors, the first axis of each being the samples."""

    module: nn.Module  # the tensors in the order of `inputs` -> scores [B]
    inputs: Mapping[str, str]  # name -> what it is, in words
    examples: Mapping[str, Tensor]  # a few samples of the right shapes
    of: Callable[[Any], dict[str, Tensor]]  # what `predict` takes -> the tensors
