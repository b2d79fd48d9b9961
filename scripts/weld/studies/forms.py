"""V4 in other forms: int8, pruned, and as files that run without this library; how good, large and fast they are."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.files import atomic_file
from anomaly_lib.metrics import auroc
from anomaly_lib.models.adapters import merge_adapters
from anomaly_lib.models.deploy import prune_linears, quantize_linears, read_model, write_model
from anomaly_lib.systems.weld.data.manifest import WeldRun, select_runs
from anomaly_lib.systems.weld.supcon.detector import QuadDetector
from anomaly_lib.systems.weld.supcon.knn import defect_margin
from anomaly_lib.systems.weld.supcon.task import quad_batch

OUTPUTS = ("features", "logits", "anomaly_score")
SUFFIXES = {"torch.export": ".pt2", "onnx": ".onnx"}
FORMS = ("float32", "int8", "pruned", *SUFFIXES)
AT_ONCE = 8  # runs of a timed call
Answer = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def margin_auroc(detector: QuadDetector) -> Callable[[Tensor, Tensor], float]:
    """AUROC of features as the k-NN protocol has it: nearest defect against nearest good training run."""

    def judge(features: Tensor, labels: Tensor) -> float:
        return auroc(defect_margin(detector.bank, features.float().cpu()), labels)

    return judge


def form_of(
    name: str, model: nn.Module, batch: Mapping[str, Tensor], folder: Path, *, pruning: float
) -> tuple[Answer, int]:
    """One of `FORMS` as what it answers to a batch, and the bytes of its file, which is written to `folder`."""
    if name in SUFFIXES:
        path = folder / f"model{SUFFIXES[name]}"
        write_model(model, batch, OUTPUTS, path)
        return read_model(path), path.stat().st_size
    form = quantize_linears(model) if name == "int8" else copy.deepcopy(model)
    if name == "pruned":
        prune_linears(form, pruning)
    path = folder / f"{name}.pt"
    with atomic_file(path) as stream:
        torch.save(form.state_dict(), stream)
    return form, path.stat().st_size


@torch.no_grad()
def deployment(
    detector: QuadDetector,
    runs: Sequence[WeldRun],
    folder: Path,
    *,
    pruning: float,
    names: Sequence[str] = FORMS,
    repeats: int = 15,
) -> list[dict[str, Any]]:
    """For each form: AUROC on TEST, bytes, median milliseconds and their ratio to the first's, change of a feature."""
    test, judge = select_runs(runs, "test"), margin_auroc(detector)
    detector.features.prepare(test)
    whole = quad_batch(detector.features, test)
    batch = {name: value[:AT_ONCE] for name, value in whole.items()}
    labels = torch.tensor([run.label for run in test])
    model = detector.task.model.eval()
    plain = copy.deepcopy(model)
    merge_adapters(plain)  # LoRA costs nothing in use, and pruning and int8 see the weights that act
    forms = {name: form_of(name, plain, batch, folder, pruning=pruning) for name in names}
    wanted = model(batch)["features"]
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):  # in turn, so that a busy moment of the machine meets all of them
        for name, (answer, _) in forms.items():
            started = time.perf_counter()
            answer(batch)
            times[name].append(1e3 * (time.perf_counter() - started))
    middle = {name: sorted(taken)[repeats // 2] for name, taken in times.items()}
    return [
        {
            "form": name,
            "auroc": judge(answer(whole)["features"], labels),
            "bytes": size,
            "ms": middle[name],
            "ms_ratio": middle[name] / middle[names[0]],
            "largest_change": float((answer(batch)["features"] - wanted).abs().max()),
        }
        for name, (answer, size) in forms.items()
    ]
