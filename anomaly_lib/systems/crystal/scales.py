"""The learned scales of a run over its epochs, and checkpoints with the text branch scaled by hand."""

import json
import re
from pathlib import Path

import torch

from anomaly_lib.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json
from anomaly_lib.systems.registry import SYSTEMS

LAST_LINEAR = re.compile(r"text_transform\.3\.(weight|bias)$")
PATTERNS = ("checkpoint_*.pt", "best_model.pt", "best_val_model.pt", "best_test_model.pt", "checkpoint.pt")


def crystal_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint of this system, ours or an original program's."""
    checkpoint = SYSTEMS.read(path)
    if checkpoint.system != "crystal":
        raise UserError(f"{path}: a checkpoint of {checkpoint.system!r}, but 'crystal' was expected")
    return checkpoint


def scale_history(folder: Path, pattern: str | None = None) -> tuple[list[int], dict[str, list[float]]]:
    """Epochs, and the scale of each fusion module at each: from metrics.jsonl, or from the checkpoints that match."""
    if not folder.is_dir():
        raise UserError(f"checkpoint_dir={folder}: no such folder")
    log = folder / "metrics.jsonl"
    points: dict[int, dict[str, float]] = {}
    if pattern is None and log.is_file():
        for line in log.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            scales = {k.removeprefix("text_scale_"): v for k, v in row.items() if k.startswith("text_scale_")}
            points |= {int(row["epoch"]): scales} if scales else {}
    else:
        files = [path for one in ([pattern] if pattern else PATTERNS) for path in folder.glob(one)]
        if pattern and not files:
            raise UserError(f"checkpoint_pattern={pattern}: no such file in {folder}")
        for path in files:
            saved = crystal_checkpoint(path)
            scales = {n.split(".")[-2]: float(v) for n, v in saved["model"].items() if n.endswith("text_scale")}
            points |= {max(int(saved["epoch"]) - 1, 0): scales} if scales else {}
    if not points:
        raise UserError(f"{folder}: no text_scale was logged; it exists with use_middle_fusion=True")
    epochs = sorted(points)
    return epochs, {name: [points[epoch][name] for epoch in epochs] for name in points[epochs[0]]}


def initial_scale(folder: Path) -> float | None:
    """Where the run's scale started; None when the folder does not say."""
    path = folder / "config.json"
    options = read_json(path) if path.is_file() else {}
    if "middle_fusion_initial_scale" not in options:
        return None
    return float(options["middle_fusion_initial_scale"]) if options["middle_fusion_use_learnable_scale"] else 1.0


def scale_checkpoint(source: Path, target: Path, factor: float) -> dict[str, tuple[float, float]]:
    """Multiply the last linear map of every text transform; returns the norms before and after, read back from disk.

    The same as multiplying text_scale by `factor`. An original program's checkpoint is written as one of ours.
    """
    if source.resolve() == target.resolve():
        raise UserError(f"output_checkpoint={target}: would overwrite its source")
    saved = crystal_checkpoint(source).content
    parts = [saved["model"], *([saved["ema"]["shadow"]] if saved.get("ema") else [])]
    names = [name for name in saved["model"] if LAST_LINEAR.search(name)]
    if not names:
        raise UserError(f"{source}: has no middle fusion to scale (no text_transform.3 in it)")
    before = {name: _norm(saved["model"][name]) for name in names}
    for part in parts:
        for name in names:
            part[name] = part[name] * factor
    save_checkpoint(target, {k: v for k, v in saved.items() if k not in ("format", "system")}, system="crystal")
    after = load_checkpoint(target, system="crystal")["model"]
    return {name: (before[name], _norm(after[name])) for name in names}


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.float()))
