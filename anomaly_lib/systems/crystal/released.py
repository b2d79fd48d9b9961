"""Checkpoints of the original crystal programs as checkpoints of ours: same weights, same graphs, same predictions."""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.backbones.weights import StandIn, tensors_of
from anomaly_lib.config import given_options, shown, to_plain
from anomaly_lib.engine.checkpoint import FORMAT, Checkpoint
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.files import read_json
from anomaly_lib.models.crystal.config import CrystalFusionConfig
from anomaly_lib.models.crystal.released import OriginalNetwork, read_network
from anomaly_lib.systems.crystal.data.settings import GraphSettings, SplitSettings
from anomaly_lib.systems.crystal.detector import SYSTEM, network
from anomaly_lib.systems.crystal.options import Args, LossArgs
from anomaly_lib.systems.crystal.original_config import in_our_words

TAKEN = {f.name for owner in (CrystalFusionConfig, LossArgs, GraphSettings, SplitSettings) for f in fields(owner)}
TAKEN |= {"epochs", "batch_size", "learning_rate", "weight_decay", "seed"}
TAKEN -= {"standardize"}
"""Options that a configuration of theirs may tell; the rest says how or where a run happened."""
THEIR_PROPERTY = "hse_bandgap-2"  # what their tools look at, whatever they are given
BESIDE = "config.json"


def adopt(
    content: Mapping[str, Any], path: Path, config: Mapping[str, Any] | None = None, **options: Any
) -> Checkpoint | None:
    """The file's content in the form of ours, or None when it is of no crystal program.

    Sizes follow from the tensors. The rest is told by `config` (a configuration of theirs), by the object that was
    pickled into the file or by a config.json beside it, in this order. `options`: of `Args`, what the file cannot tell.
    """
    try:
        found = read_network(_tensors(content))
        if found is None:
            return None
        config = _configuration(content, path) if config is None else _plain(config)
        chosen = "best-on-test" if any(str(name).startswith("test_") for name in content) else "val"
        args = _options(found, config, path, select=chosen, **options)
        _check_names(found, args)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    behind = [f"middle fusion after layer {place} left out: there is no such layer" for place in found.left_out]
    parts = {
        "args": to_plain(args),
        "model": found.tensors,
        "ema": None,
        "epoch": _epoch(content, path),
        "extra": {
            "text_features": found.text_features or 1,
            "target_scale": {"mean": 0.0, "std": 1.0},
            "original": True,
            "remarks": [*behind, *_guesses(args)],
        },
    }
    return Checkpoint(path, {"format": FORMAT, "system": SYSTEM, **parts})


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        return tensors_of(content, source="")
    except UserError:  # nothing of anybody's
        return {}


def _configuration(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What the file itself, or the file of its run's settings beside it, says."""
    config = _plain(content.get("config"))
    if config:
        return config
    beside = path.parent / BESIDE
    return _plain(read_json(beside)) if beside.is_file() else {}


def _plain(config: Any) -> dict[str, Any]:
    """The plain values of a configuration, whether it is a mapping or was an object."""
    values = config.values() if isinstance(config, StandIn) else config
    found = dict(values) if isinstance(values, Mapping) else {}
    nested = {name: _plain(value) for name, value in found.items() if isinstance(value, (StandIn, Mapping))}
    plain = {name: value for name, value in found.items() if isinstance(value, (bool, int, float, str, list, NoneType))}
    return {str(name): value for name, value in (plain | nested).items()}


def _options(found: OriginalNetwork, config: Mapping[str, Any], path: Path, **settings: Any) -> Args:
    """The options of the run: by its tensors, then by its configuration, which may not contradict them."""
    if config.get("standardize") is True:
        raise OptionError("standardize=True: by what its targets were scaled, only the checkpoint of that run says")
    if found.text_features is None and "weights" in settings:
        raise OptionError(f"weights={settings['weights']}: has no effect, this network reads no text")
    told = {name: value for name, value in in_our_words(config).items() if name in TAKEN and value is not None}
    if isinstance(told.get("middle_fusion_layers"), list):  # those behind the last layer were never called
        told["middle_fusion_layers"] = [place for place in told["middle_fusion_layers"] if place not in found.left_out]
    for name, value in found.options.items():
        if told.get(name, value) != value:
            said = f"its configuration says {name}={shown(told[name])}, its tensors {shown(value)}"
            raise OptionError(f"{said}; give another config_file=")
    if found.options.get("use_middle_fusion"):
        scales = [float(value) for name, value in found.tensors.items() if name.endswith("text_scale")]
        told.setdefault("middle_fusion_use_learnable_scale", any(scale != 1 for scale in scales))
    reads_text = {"backbone": "matscibert"} if found.text_features else {"modality": "graph"}
    return Args(**{"protocol": "paper", "property": _property(path), **reads_text, **told, **found.options, **settings})


def _property(path: Path) -> str:
    """Their runs lie in <output_dir>/<property>/, beside config.json."""
    return path.absolute().parent.name if (path.parent / BESIDE).is_file() else THEIR_PROPERTY


def _epoch(content: Mapping[str, Any], path: Path) -> int:
    epoch, numbered = content.get("epoch"), re.fullmatch(r"checkpoint_(\d{1,9})\.pt", path.name)
    return epoch if type(epoch) is int else int(numbered[1]) if numbered else 0


def _check_names(found: OriginalNetwork, args: Args) -> None:
    """Every tensor has its place, and every place its tensor."""
    with torch.device("meta"):
        wanted = network(args, text_features=found.text_features or 1).state_dict()
    shapes = {name: tuple(value.shape) for name, value in found.tensors.items()}
    for name in sorted(shapes.keys() - wanted.keys()):
        raise UserError(f"{name}: no network here has this tensor; was the program changed?")
    for name in sorted(wanted.keys() - shapes.keys()):
        raise UserError(f"{name} is missing: not a whole state dict, or of a changed program")
    for name, value in wanted.items():
        if shapes[name] != tuple(value.shape):
            raise UserError(f"{name} has shape {shapes[name]}, expected {tuple(value.shape)}")


def _guesses(args: Args) -> list[str]:
    """What decides predictions and is told by no tensor and, for want of a configuration, nowhere."""
    if args.use_fine_grained_attention and "fine_grained_num_heads" not in given_options(args):
        return [f"fine_grained_num_heads={args.fine_grained_num_heads} is assumed: the file does not tell it"]
    return []
