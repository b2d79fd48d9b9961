"""Causal-FiLM as a graph from features: which tensors it takes, and where they come from."""

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.detect.feature_graph import FeatureGraph
from anomaly_lib.systems.weld.causal_film.task import CausalFiLMTask
from anomaly_lib.systems.weld.data.manifest import RawRun, WeldRun
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.runs_of import runs_of

BLANK = WeldRun("blank", "unknown", "", Path("blank"), render=lambda _: RawRun())
WORDS = {
    "video": "tokens of the process video",
    "audio": "tokens of the process sound",
    "sensors": "z-scores of the sensor series",
    "views": "which photos there are",
    "has_video": "is there a video?",
    "has_audio": "is there sound?",
    "has_sensors": "are there sensors?",
}
EXAMPLES = 4


class ScoreOfFeatures(nn.Module):
    """Tensors by `WORDS`, then one [B, V, N, C] a branch of the photos -> scores [B]; NaN where there is no photo."""

    def __init__(self, task: CausalFiLMTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, *given: Tensor) -> Tensor:
        named = dict(zip(WORDS, given, strict=False))
        photos = named["views"].any(1)
        present = torch.stack([named["has_video"], photos, named["has_audio"], named["has_sensors"]], dim=1)
        out = self.task.model({**named, "present": present, "images": list(given[len(WORDS) :])})
        return torch.where(photos, self.task.score(out), torch.nan)


def tensors_of(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """A batch of features by the names of the graph's inputs."""
    there = dict(zip(("has_video", "", "has_audio", "has_sensors"), batch["present"].unbind(1), strict=True))
    photos = {f"photos_{index}": tokens for index, tokens in enumerate(batch["images"])}
    return {**{name: there[name] if name in there else batch[name] for name in WORDS}, **photos}


def feature_graph(task: CausalFiLMTask, features: WeldFeatures) -> FeatureGraph:
    """The graph of a trained detector."""

    def of(inputs: Any) -> dict[str, Tensor]:
        runs = runs_of(inputs)
        features.prepare(runs)
        return tensors_of(features.batch(runs))

    photos = {f"photos_{i}": f"tokens of the photos, {one.name}" for i, one in enumerate(features.encoders.branches)}
    return FeatureGraph(ScoreOfFeatures(task).eval(), {**WORDS, **photos}, drawn_examples(features), of)


def drawn_examples(features: WeldFeatures) -> dict[str, Tensor]:
    """Random features of the right shapes; each modality is absent once."""
    unkept = copy(features)
    unkept.cache = "off"
    shapes, generator = tensors_of(unkept.batch([BLANK])), torch.Generator().manual_seed(0)
    lacking = iter(range(1, EXAMPLES))
    examples = {}
    for name, value in shapes.items():
        if value.dtype != torch.bool:
            examples[name] = torch.randn(EXAMPLES, *value.shape[1:], generator=generator)
        else:
            examples[name] = torch.ones(EXAMPLES, *value.shape[1:], dtype=torch.bool)
            if name == "views":
                examples[name][1:, 1:] = False  # one photo is left
            else:
                examples[name][next(lacking)] = False
    return {name: one.to(features.device) for name, one in examples.items()}
