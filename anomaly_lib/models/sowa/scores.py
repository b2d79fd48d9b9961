"""SOWA's training loss, few-shot memory and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.losses import dice_loss, focal_loss
from anomaly_lib.models.sowa.config import ScoreConfig
from anomaly_lib.models.sowa.model import AnomalyCLIP, Output
from anomaly_lib.models.sowa.text import OneClass
from anomaly_lib.ops.distance import nearest_neighbours
from anomaly_lib.ops.smooth import gaussian_blur
from anomaly_lib.types import Prediction


def sowa_loss(output: Output, label: Tensor, mask: Tensor, *, paper: bool = False) -> dict[str, Tensor]:
    """CE(image, label) + sum over stages of focal(map, mask) + dice(anomaly, mask) + dice(normal, 1 - mask).

    label [B] and mask [B, H, W] are 0/1. `paper` repeats two slips of the original: cross entropy takes the softmaxed
    probabilities for logits (a second softmax), and focal adds 1e-5 to the probability in both of its factors.
    """
    image = F.cross_entropy(output.text_probs, label) if paper else F.nll_loss(output.text_probs.log(), label)
    truth = mask.to(output.text_probs.dtype)
    focal = [_shifted_focal(m, mask) if paper else focal_loss(m.log(), mask.long()) for m in output.anomaly_maps]
    dice = [dice_loss(m[:, 1], truth) + dice_loss(m[:, 0], 1 - truth) for m in output.anomaly_maps]
    return {"image": image, "focal": torch.stack(focal).sum(), "dice": torch.stack(dice).sum()}


def _shifted_focal(probability: Tensor, mask: Tensor, *, shift: float = 1e-5) -> Tensor:
    """-(1 - p)^2 log p with p = sum over classes of clamped one-hot x probability, plus `shift`."""
    truth = mask.to(probability.dtype).clamp(shift, 1 - shift)
    p = truth * probability[:, 1] + (1 - truth) * probability[:, 0] + shift
    return (-((1 - p) ** 2) * p.log()).mean()


@dataclass(frozen=True)
class Memory:
    """What k normal images of a class say: their raw patch tokens, and how far normal patches lie from each other."""

    patches: list[Tensor]  # per stage [k, L, D], unit length
    reference: float  # largest memory-map value to expect of a normal image

    def state(self) -> dict[str, object]:
        """Plain content for a checkpoint."""
        return {"patches": [tokens.half() for tokens in self.patches], "reference": self.reference}

    @classmethod
    def restore(cls, state: Mapping[str, object]) -> "Memory":
        """Inverse of `state`."""
        patches, reference = state["patches"], state["reference"]
        assert isinstance(patches, list)
        assert isinstance(reference, float)
        return cls([F.normalize(tokens.float(), dim=-1) for tokens in patches], reference)


def build_memory(model: AnomalyCLIP, patches: Sequence[Tensor], *, tiles: int = 1) -> Memory:
    """Memory of raw support tokens, per stage [k * tiles, L, D], those of an image's tiles beside one another.

    The reference is the mean over support images of the maximum of their map against the other ones; a single image is
    compared with itself, each patch without its own neighbourhood.
    """
    unit = [F.normalize(tokens.float(), dim=-1) for tokens in patches]
    rows = torch.arange(len(unit[0])).unflatten(0, (-1, tiles))  # [k, tiles]
    peaks = []
    for own in rows.tolist():
        if len(rows) == 1:
            each = [torch.stack([_distance_to_other_places(tokens[i], model.grid) for i in own]) for tokens in unit]
        else:
            others = [tokens[[i for i in range(len(tokens)) if i not in own]] for tokens in unit]
            each = [_distance(tokens[own], bank) for tokens, bank in zip(unit, others, strict=True)]
        peaks.append(float(_map(model, torch.stack(each)).amax()))
    return Memory(unit, sum(peaks) / len(rows))


@torch.no_grad()
def kshot_step(model: AnomalyCLIP, batch: Mapping[str, Any]) -> dict[str, Memory]:
    """{class name: memory} of k normal images ``{"image": [k, 3, H, W], "cls_name": "cup"}``, for `detect`."""
    name = batch["cls_name"]
    return {name: build_memory(model, model(batch["image"], [name] * len(batch["image"])).patches)}


def memory_map(model: AnomalyCLIP, memory: Memory, patches: Sequence[Tensor]) -> Tensor:
    """Sum over stages of the cosine distance to the nearest support token, as maps [B, H, W]."""
    stages = [
        _distance(F.normalize(tokens.float(), dim=-1), bank)
        for bank, tokens in zip(memory.patches, patches, strict=True)
    ]
    return _map(model, torch.stack(stages))


def _distance(tokens: Tensor, bank: Tensor) -> Tensor:
    """1 - cosine of unit rows [..., D] to their nearest row of `bank` [k, L, D]: half the squared distance, [...]."""
    rows = tokens.reshape(-1, tokens.shape[-1])
    found = nearest_neighbours(rows, bank.flatten(0, 1).to(tokens.device))[0]
    return (found.square() / 2).reshape(tokens.shape[:-1])


def _distance_to_other_places(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The same inside one image [L, D], a patch and its eight neighbours not counting: [L]."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    near = ((rows.flatten()[:, None] - rows.flatten()).abs() <= 1) & (
        (columns.flatten()[:, None] - columns.flatten()).abs() <= 1
    )
    cosines = tokens @ tokens.T
    return 1 - cosines.masked_fill(near.to(tokens.device), -1.0).amax(1)


def _map(model: AnomalyCLIP, stages: Tensor) -> Tensor:
    """Per-token values [S, B, L] -> their sum as maps [B, H, W]."""
    return model.upsampled(stages.sum(0).unsqueeze(-1))[:, 0]


@torch.no_grad()
def detect(
    model: AnomalyCLIP,
    taps: Mapping[str, Tensor],
    cls_names: Sequence[str] | OneClass,
    memories: Mapping[str, Memory] | None = None,
    config: ScoreConfig | None = None,
    **options: Any,
) -> Prediction:
    """Scores [B] and maps [B, H, W] of stored taps and a class name for each image; options: `ScoreConfig`.

    Without memories the map is the (blurred) sum over stages of the anomaly channel (`AnomalyCLIP.fused_map`), and the
    score P(anomaly) of the pooled feature, or with ``image_score="mean"`` the mean of that and the map's peak (over the
    number of stages). With memories the memory map is added unblurred, and the score is the mean of P(anomaly) and the
    final map's scaled peak:
    ``support`` divides the memory map's peak m by m + (what normal images reach), so 1/2 is "as far as normal images
    go" and one image can be scored alone; ``transductive`` leaves that to `scale_transductively`.
    """
    c = configure(ScoreConfig, config, options)
    output = model.from_taps(taps, cls_names)
    count = len(output.anomaly_maps)
    if c.stages and max(c.stages) >= count:
        raise UserError(f"stages={' '.join(map(str, c.stages))}: the model has stages 0 to {count - 1}")
    if c.stages:
        text = torch.stack([output.anomaly_maps[stage][:, 1] for stage in c.stages]).sum(0)
    else:
        text = model.fused_map(output.anomaly_maps)
    text = gaussian_blur(text, c.sigma, border="symmetric")  # [B, H, W], as SciPy's filter, which the original uses
    probability = output.text_probs[:, 1]
    parts = {"text": probability}
    if not memories:
        if c.image_score == "mean":
            parts["peak"] = text.flatten(1).amax(1) / (len(c.stages) or count)
            return Prediction((probability + parts["peak"]) / 2, text, parts, cell=model.cell)
        return Prediction(probability, text, parts, cell=model.cell)
    distance = torch.empty_like(text, dtype=torch.float32)  # `text` is narrower under autocast
    reference = torch.empty_like(probability, dtype=torch.float32)
    for name, rows in _rows_of_classes(cls_names).items():
        if name not in memories:
            raise UserError(f"no support images of class {name!r}; there are {', '.join(memories)}")
        distance[rows] = memory_map(model, memories[name], [tokens[rows] for tokens in output.patches])
        reference[rows] = memories[name].reference
    peak = distance.flatten(1).amax(1)
    scaled = peak / (peak + reference).clamp(min=1e-6)
    total = text + distance
    parts |= {"memory": scaled, "peak": total.flatten(1).amax(1)}
    score = (probability + scaled) / 2 if c.score_scaling == "support" else probability
    return Prediction(score, total, parts, cell=model.cell)


def _rows_of_classes(cls_names: Sequence[str] | OneClass) -> dict[str, Any]:
    """Which images of a batch are of each class."""
    if isinstance(cls_names, OneClass):
        return {cls_names.name: slice(None)}
    names = dict.fromkeys(cls_names)
    return {name: [i for i, other in enumerate(cls_names) if other == name] for name in names}


def scale_transductively(prediction: Prediction) -> Prediction:
    """The original's score: mean of P(anomaly) and the map's peak, min-max scaled over all test images of ONE class."""
    peak = prediction.parts["peak"]
    spread = (peak.amax() - peak.amin()).clamp(min=1e-12)
    return replace(prediction, score=(prediction.parts["text"] + (peak - peak.amin()) / spread) / 2)
